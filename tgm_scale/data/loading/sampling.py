"""Settings for drawing clips from samples, and the resulting sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tgm_scale.contracts import Grid, Problem
from tgm_scale.data.shards.index import SampleRef
from tgm_scale.data.video.transforms import CROPS

# (the member's bytes, the caption's number, seconds [T]) -> that caption's relevance at these times of the clip, float
# [T, y, x] over the whole frame. A ValueError stops the run; any other exception is the sample's problem.
RelevanceReader = Callable[[bytes, int, np.ndarray], np.ndarray]


# (clip, uint8 [T, H, W, 3], the token grid) -> its optical flow in the form of `Batch.flow`, float32 [T, 2, h, w]
FlowEstimator = Callable[[Tensor, Grid], np.ndarray]


@dataclass(frozen=True)
class Sampling:
    """Settings for drawing clips from samples; the names are those of the `data` section of the configuration."""

    frames: int
    stride: int
    size: int
    grid: Grid  # of the maps
    seed: int
    repeated_augmentation: int = 1
    crop: str = "multi_scale"
    flip: bool = False
    captions: bool = True  # False: captions are not read, and a sample without one is usable
    # if given: each sample brings its cached scores, and one without them is broken
    relevance: RelevanceReader | None = None
    motion: bool = False  # True: each sample brings its codec's motion, all 0 where the stream has none
    caption_sets: bool = False  # True: each sample brings all its captions, and cached scores are the mean over them
    segments: bool = False  # True: one frame of each of equal segments of the whole source, not a window
    time_jitter: float = 0.0  # of segments: the share of the source by which they are shifted and stretched at most
    standardise: bool = False  # True: see transforms.standardised
    flow: FlowEstimator | None = None  # if given: each clip brings its optical flow

    def __post_init__(self) -> None:
        assert self.frames % self.grid.slots == 0 and self.crop in CROPS


@dataclass
class Sample:
    """Sample of N = repeated_augmentation clips, without their pixels."""

    captions: list[str]  # N
    key: str
    seeds: list[int]  # N
    clip_id: int
    crops: list[tuple[float, float, float, float, float]]  # N rows of Batch.crops
    start: float  # seconds
    relevance: np.ndarray | None  # float32 [N, S, R, C]
    problem: Problem | None
    motion: np.ndarray | None = None  # float32 [N, S, R, C]
    caption_set: list[str] | None = None
    flow: np.ndarray | None = None  # float32 [N, T, 2, h, w]
    interlaced: bool = False  # as marked in its video


@dataclass(frozen=True)
class Fetched:
    """Bytes of a sample, and the seeds of its random draws; or why it has none."""

    ref: SampleRef
    members: dict[str, bytes]
    seeds: list[int]  # N
    clip_id: int
    problem: Problem | None = None
