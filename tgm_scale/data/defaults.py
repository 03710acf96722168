"""Defaults shown in option help, kept apart so that `--help` need not import the modules that use them."""

from __future__ import annotations

# Lists of web videos lose up to a quarter of their videos in a few years (Kinetics-400, 600); a larger loss rather
# means a wrong folder, an interrupted copy, or a list with other names.
MAX_LEFT_OUT_SHARE = 0.3

GOP, CRF, SHORT_SIDE = 12, 23, 256  # encoding of clips in shards: keyframe interval in frames, x264 quality, pixels
