"""Sizes of the rows' work: realistic on a GPU, tiny on a CPU, with the same code."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tgm_scale.benchmarks.clips import VideoFormat


@dataclass(frozen=True)
class Scale:
    """Sizes of the rows for one kind of device."""

    device: str  # "cuda" or "cpu"
    model: tuple[str, ...]  # overrides that scale configs/pretrain_vit*.yaml to the device
    micro: int  # clips per pass where speed and memory are measured
    few: int  # clips per pass elsewhere
    steps: int  # of a run whose speed is measured
    warm: int  # first steps that are not counted
    towers: str  # a shape of tgm_scale.benchmarks.towers
    clips: int  # clips of the corpus
    videos: VideoFormat
    exact_stages: tuple[int, ...]  # ZeRO stages of the restart that must be exact
    turns: int  # turns of the comparison with transformers
    matrix: int  # side of the square matrices whose product determines the device's own rate
    demo: tuple[str, ...]

    @property
    def workers(self) -> int:
        """Return the decoding processes of one run; none on a CPU, where the tiny clips decode in no time."""
        return 0 if self.device == "cpu" else max(1, min(10, len(os.sched_getaffinity(0)) - 2))


SCALES = {
    "cuda": Scale(
        device="cuda",
        model=(),
        micro=128,  # as in the configurations for 80 GB
        few=16,
        steps=10,
        warm=4,
        towers="B/32",
        clips=64,
        videos=VideoFormat(320, 240, seconds=2.5),
        exact_stages=(0, 1, 2),
        turns=5,
        matrix=8192,
        demo=("--clips", "48", "--test-clips", "32", "--steps", "10", "--seeds", "1"),
    ),
    "cpu": Scale(
        device="cpu",
        # of one block each: on a CPU compilation takes time per block
        model=(
            "model.size=tiny",
            "model.depth=1",
            "model.decoder_depth=1",
            "data.frames=4",
            "data.stride=2",
            "data.size=32",
        ),
        micro=4,
        few=4,
        steps=3,
        warm=1,
        towers="tiny",
        clips=16,
        videos=VideoFormat(64, 48, seconds=0.5),
        exact_stages=(1,),
        turns=2,
        matrix=256,
        demo=("--clips", "32", "--test-clips", "24", "--steps", "5", "--seeds", "1"),
    ),
}
