"""Synthetic corpus: H.264 clips of moving shapes, captions, and the truth of every pixel.

A clip is a pure function of its index and the corpus' specification: corpora of any size begin with the same clips,
whatever the number of workers. scenes.py draws scenes, truth.py writes the json of a sample.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.scenes import MODES, MOTIONS, ROLES, draw_scenes, render
from tgm_scale.demo.corpus.shapes import COLOURS, SHAPES
from tgm_scale.demo.corpus.truth import ObjectTruth, Truth, captions
from tgm_scale.runtime import seeding


@dataclass(frozen=True)
class SyntheticSpec:
    """Contents and look of a synthetic corpus."""

    size: int = 64  # side in pixels
    frames: int = 16
    fps: float = 12.0
    difficulty: float = 0.5  # 0 (plain) to 1 (hard)
    seed: int = 0
    mode: str = "named"  # an object and distractors, or `one_mover`

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode} of a synthetic corpus: wanted one of {', '.join(MODES)}")
        if self.size < 32 or self.size % 2:
            raise ValueError(f"size={self.size} of synthetic clips: wanted an even number of at least 32 pixels")
        if self.frames < 2:
            raise ValueError(f"frames={self.frames} of synthetic clips: wanted at least 2, for anything to move")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps={self.fps} of synthetic clips: wanted more than 0, and at most 1000")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty={self.difficulty} of synthetic clips: wanted a number from 0 to 1")


@dataclass(frozen=True)
class SyntheticClip:
    frames: np.ndarray  # uint8 [T, H, W, 3] RGB
    captions: list[str]  # one fact in several phrasings
    truth: Truth


def render_clip(index: int, spec: SyntheticSpec = SyntheticSpec()) -> SyntheticClip:
    """Return clip `index` of a corpus."""
    seeds_B = torch.tensor([seeding.key(spec.seed, "synthetic", spec.mode, index)])
    scenes = draw_scenes(seeds_B, spec.mode, torch.tensor([spec.difficulty]))
    frames_BT3HW, visible_BTKHW = render(scenes, torch.linspace(0, 1, spec.frames)[None], spec.size)
    shapes, colours = list(SHAPES), list(COLOURS)
    objects = [
        ObjectTruth(
            role=ROLES[k],
            shape=shapes[int(scenes.shape[0, k])],
            colour=colours[int(scenes.colour[0, k])],
            motion=MOTIONS[int(scenes.motion[0, k])],
            visible=visible_BTKHW[0, :, k].numpy(),
        )
        for k in range(visible_BTKHW.shape[2])
    ]
    named = objects[0]
    frames_THW3 = np.ascontiguousarray(frames_BT3HW[0].permute(0, 2, 3, 1).numpy())
    return SyntheticClip(frames_THW3, captions(named.colour, named.shape, named.motion), Truth(objects))


def make_sample(index: int, spec: SyntheticSpec) -> tuple[str, dict[str, Any]]:
    """Return key and members of one sample: `mp4` and `json` (captions, truth, and its specification)."""
    clip = render_clip(index, spec)
    made_by = {"index": index, **asdict(spec)}
    fields = {"captions": clip.captions, "truth": clip.truth.to_json(), "made_by": made_by}
    return f"{spec.mode}_{index:06d}", {"mp4": encode_video(clip.frames, spec.fps), "json": fields}


def make_corpus(
    folder: str | os.PathLike,
    clips: int,
    spec: SyntheticSpec = SyntheticSpec(),
    workers: int = 1,
    clips_per_shard: int = 250,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write clips 0 to `clips` - 1 of a corpus as shards into `folder`.

    `progress` is called after each clip with the number done. Raises ValueError for a count below 1, and for a folder
    that already has shards."""
    if min(clips, workers, clips_per_shard) < 1:
        raise ValueError(
            f"clips={clips}, workers={workers}, clips_per_shard={clips_per_shard} of a synthetic corpus: wanted at "
            "least 1 of each"
        )
    if os.path.isdir(folder) and any(name.endswith(".tar") for name in os.listdir(folder)):
        raise ValueError(f"{folder} holds shards already; name another folder or remove them")
    with ShardWriter(folder, clips_per_shard) as writer:
        for done, (key, members) in enumerate(_samples(clips, spec, workers), 1):
            writer.write(key, members)
            progress(done)


def _samples(clips: int, spec: SyntheticSpec, workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    make = partial(make_sample, spec=spec)
    if workers == 1:
        yield from map(make, range(clips))
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        indices = iter(range(clips))
        for start in range(0, clips, 64 * workers):  # bounded: finished clips wait in memory for the writer
            yield from pool.map(make, islice(indices, min(64 * workers, clips - start)), chunksize=8)
