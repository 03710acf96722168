"""Compared pipelines from shards to clips, over the same clips with the same random draws.

`frames`: only the decoder, frames in RGB. `bare`: decoder, crop and resize in a loop, from bytes in memory, without
reading, order, captions or batches; `loops`: several such loops at once, each in its own process. `webdataset`: a
plain WebDataset and WebLoader pipeline with that decode."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
import webdataset

from tgm_scale.contracts import BatchLayout, Grid
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.video.decode import Video, window
from tgm_scale.data.video.transforms import draw_crop
from tgm_scale.runtime import seeding
from tgm_scale.runtime.outside.json_text import json_of

FRAMES, STRIDE, SIZE, BATCH = 16, 4, 224, 8
_FOREVER = 10**6


def loader(corpus: Corpus, workers: int, repeats: int = 1, size: int = SIZE) -> ClipLoader:
    """Return the loader of a run of one process."""
    grid = Grid.of(FRAMES, size, 2, 16)
    sampling = Sampling(FRAMES, STRIDE, size, grid, seed=0, repeated_augmentation=repeats)
    samples = Samples.in_order([corpus], sampling, window_shards=4)
    return ClipLoader(samples, BatchLayout(BATCH, BATCH), range(_FOREVER), workers=workers)


def clips_of(loading: ClipLoader) -> Iterator[int]:
    """Yield 1 for each clip as its batch arrives (a batch counts when its last clip is complete)."""
    for _, batches in loading:
        for batch in batches:
            assert float(batch.weight.sum()) == len(batch), batch.problems
            yield from itertools.repeat(1, len(batch))


def draws(corpus: Corpus) -> Iterator[tuple[bytes, int]]:
    """Yield for each sample of the run, in order, the video's bytes, read beforehand, and its seed."""
    loading = loader(corpus, 0)
    kept: dict[tuple[int, int], tuple[str, bytes]] = {}
    for position in loading.positions():
        address = loading.samples.mixture.locate(position)
        if (address.shard, address.row) not in kept:
            ref = corpus.sample(address.shard, address.row)
            kept[address.shard, address.row] = ref.name, corpus.read(ref, ["mp4"])["mp4"]
        name, data = kept[address.shard, address.row]
        yield data, seeding.key(0, "sample", address.epoch, corpus.fingerprint, name, 0)


def frames(corpus: Corpus) -> Iterator[int]:
    for data, seed in draws(corpus):
        with Video(data) as video:
            for _ in video.frames(_indices(video, seed)):
                pass
        yield 1


def bare(corpus: Corpus) -> Iterator[int]:
    for data, seed in draws(corpus):
        clip(data, seed)
        yield 1


def loops(corpus: Corpus, count: int) -> Iterator[int]:
    """Yield 1 for each clip; a batch counts when all loops have made their part of it."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(count, context, initializer=_begin_loop, initargs=(corpus,)) as pool:
        while True:
            yield from itertools.repeat(1, sum(pool.map(_make, itertools.repeat(-(-BATCH // count), count))))


_loop: Iterator[int]  # in a process of `loops`


def _begin_loop(corpus: Corpus) -> None:
    global _loop
    torch.set_num_threads(1)
    _loop = bare(corpus)


def _make(count: int) -> int:
    return sum(itertools.islice(_loop, count))


def clip(data: bytes, seed: int) -> torch.Tensor:
    """Return a clip, decoded, cropped and resized: uint8 [T, size, size, 3]."""
    with Video(data) as video:
        cuts: list[np.ndarray] = []
        crop = None
        for _, image in video.frames(_indices(video, seed)):
            crop = crop or draw_crop("multi_scale", image.shape[0], image.shape[1], seed, False)
            cuts.append(crop.cut(image))
    assert crop is not None
    return crop.resize(np.stack(cuts), SIZE)


def _indices(video: Video, seed: int) -> np.ndarray:
    return window(video.count, FRAMES, STRIDE, seeding.draw(seed, "offset")[0])


class _Decode:
    """Function that a user of WebDataset would map over samples: it makes the same clip as the loader."""

    def __init__(self, fingerprint: str):
        self.fingerprint, self.seen = fingerprint, Counter[str]()

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, str, str]:
        name = f"{sample['__url__'].rpartition('/')[2].removesuffix('.tar')}/{sample['__key__']}"
        epoch, self.seen[name] = self.seen[name], self.seen[name] + 1
        seed = seeding.key(0, "sample", epoch, self.fingerprint, name, 0)
        captions = json_of(sample["json"])["captions"]
        return (
            clip(sample["mp4"], seed),
            captions[int(seeding.draw(seed, "caption")[0] * len(captions))],
            name,
        )


def with_webdataset(corpus: Corpus, workers: int, prefetch: int = 4) -> Iterator[int]:
    """Yield 1 for each clip. Samples are decoded one at a time in the workers and batched here, as in our loader."""
    dataset = webdataset.WebDataset(corpus.shards, shardshuffle=False, empty_check=False).repeat(_FOREVER)
    options = {"prefetch_factor": prefetch} if workers else {}
    loading = webdataset.WebLoader(
        dataset.map(_Decode(corpus.fingerprint)), batch_size=None, num_workers=workers, **options
    )
    for video, _, _ in loading.batched(BATCH, partial=False):
        yield from itertools.repeat(1, len(video))
