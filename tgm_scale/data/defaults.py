"""Defaults that options show, so that a `--help` need not import what uses them."""

from __future__ import annotations

# Lists of web videos lose up to a quarter of them in a few years (Kinetics-400, 600); more than that is rather a wrong
# folder, a copy that was cut short, or a list of other names.
MAX_LEFT_OUT_SHARE = 0.3

GOP, CRF, SHORT_SIDE = 12, 23, 256  # of clips in shards: frames from keyframe to keyframe, x264's quality, pixels
