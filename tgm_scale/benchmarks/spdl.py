"""SPDL (PyPI `spdl`) as a pipeline to compare with the loader: threads without the GIL, crop and resize by ffmpeg.

It decodes the same frames of the same clips and cuts the same boxes; pixels differ, since ffmpeg resizes before it
converts colours, with a different bilinear filter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from tgm_scale.benchmarks.pipelines import BATCH, FRAMES, SIZE, STRIDE, draws
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.video.decode import window
from tgm_scale.data.video.transforms import draw_crop
from tgm_scale.runtime import seeding

_SINK = 4  # batches


def missing() -> str:
    """Return why SPDL is unavailable here; "" where it is available."""
    try:
        import spdl.io

        spdl.io.decode_config()  # loads the system's ffmpeg
    except (ImportError, RuntimeError) as error:  # spdl finds no ffmpeg
        return str(error).partition(". ")[0]
    return ""


def clip(data: bytes, seed: int) -> torch.Tensor:
    """Return a clip, decoded, cropped and resized: uint8 [T, size, size, 3]; frames and box as in `pipelines.clip`."""
    import spdl.io

    packets = spdl.io.demux_video(data)
    indices = window(len(packets), FRAMES, STRIDE, seeding.draw(seed, "offset")[0])
    crop = draw_crop("multi_scale", packets.height, packets.width, seed, False)
    box = f"{crop.width}:{crop.height}:{crop.left}:{crop.top}"
    filters = f"crop={box}:exact=1,scale={SIZE}:{SIZE}:flags=bilinear,format=rgb24"
    frames = spdl.io.sample_decode_video(packets, indices.tolist(), filter_desc=filters)
    return spdl.io.to_torch(spdl.io.convert_frames(frames))


def ahead(threads: int) -> int:
    """Return how many clips it decodes ahead: batches in the sink; per stage, of three, two results in its queue
    (SPDL's own number) and one waiting to enter it; and the clips in progress."""
    return (_SINK + 3 * (2 + 1) + 1) * BATCH + threads


def clips_of(corpus: Corpus, threads: int) -> Iterator[int]:
    """Yield 1 for each clip as its batch arrives. threads: 0 decodes in the calling thread."""
    if not threads:
        for data, seed in draws(corpus):
            clip(data, seed)
            yield 1
    from spdl.pipeline import PipelineBuilder

    builder: Any = PipelineBuilder()  # it cannot infer the argument of a lambda
    builder = builder.add_source(draws(corpus)).pipe(lambda drawn: clip(*drawn), concurrency=threads)
    pipeline = (
        builder.aggregate(BATCH, drop_last=True).pipe(torch.stack).add_sink(_SINK).build(num_threads=threads + 1)
    )
    with pipeline.auto_stop():
        for batch in pipeline:
            yield from itertools.repeat(1, len(batch))
