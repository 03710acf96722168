"""Clips for benchmarks: moving texture, in shards, encoded as the shard tools encode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.runtime.files import making

FPS = 30.0


@dataclass(frozen=True)
class VideoFormat:
    """Width and height in pixels, frames from keyframe to keyframe, length in seconds."""

    width: int
    height: int
    gop: int = 12
    seconds: float = 10.0


def make_shards(folder: Path, clips: int, form: VideoFormat, per_shard: int = 2) -> Path:
    """Return a corpus of `clips` clips. The same arguments give the same bytes; an existing corpus is left alone."""
    if folder.exists():
        return folder
    with making(folder) as unfinished, ShardWriter(unfinished, clips_per_shard=per_shard) as writer:
        for number in range(clips):
            frames = moving_texture(number, form.width, form.height, round(form.seconds * FPS))
            captions = [f"texture {number} moves", f"a moving texture, number {number}", "noise"]
            writer.write(
                f"c{number:05d}", {"mp4": encode_video(frames, FPS, gop=form.gop), "json": {"captions": captions}}
            )
    return folder


def moving_texture(seed: int, width: int, height: int, count: int) -> Iterator[np.ndarray]:
    """Yield frames of a coarse texture that drifts over a finer one, with noise: about 75 kB/s at 320 x 240."""
    random = np.random.default_rng(seed)
    layers = []
    for scale in (32, 8):
        coarse = random.integers(0, 120, (height // scale + 1, 2 * width // scale + 1, 3), dtype=np.uint8)
        layers.append(coarse.repeat(scale, 0).repeat(scale, 1)[:height])
    noise = random.integers(0, 12, (4, height, width, 3), dtype=np.uint8)
    for number in range(count):
        coarse, fine = (
            layer[:, shift : shift + width] for layer, shift in zip(layers, (2 * number % width, -number % width))
        )
        yield coarse + fine + noise[number % 4]
