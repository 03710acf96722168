"""Inputs shared by the rows: shards of moving texture, a CLIP with random weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpu_checks.scale import SCALES, Scale
from tgm_scale.runtime.files import making


def make(scale: Scale, folder: Path) -> None:
    """Make both where they are missing."""
    from tgm_scale.benchmarks.clips import make_shards
    from tgm_scale.benchmarks.towers import random_clip

    if not (folder / "towers").is_dir():
        with making(folder / "towers") as unfinished:
            random_clip(scale.towers, unfinished)
    make_shards(folder / "shards", scale.clips, scale.videos, per_shard=8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True, choices=sorted(SCALES))
    parser.add_argument("--folder", required=True, type=Path)
    options = parser.parse_args()
    make(SCALES[options.device], options.folder)
