"""Batches of the run's global order, for one rank: decoded by worker processes, delivered in order.

Global batch t consists of positions t*S ... t*S + S - 1 of the order, S = global_batch_size / repeated_augmentation
= global_batch_size / R. Its slots are numbered 0 ... global_batch_size - 1; slot g holds repeat g % R of sample g
// R. Micro-step a of rank r has the slots a * (micro * world) + r * micro + [0, micro): a step's clips are the same
set at any world size, and the step is the loader's whole state.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice

import torch

from tgm_scale.contracts import Batch, BatchLayout
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Sample
from tgm_scale.data.loading.workers import decode_ahead

PREFETCH = 4  # samples that each worker is ahead: enough that a slow one does not hold up the others


class ClipLoader:
    """Iterable over (step, [one Batch per gradient accumulation micro-step]) for a range of steps.

    `workers` processes decode, each up to `prefetch` samples ahead, all together at least one step ahead; with 0
    workers, decoding takes place in this process, with bit-identical results.

    Raises ValueError for sizes that do not divide. Iterating raises OSError where a shard cannot be read,
    `WorkerDied`, and what `Sampling.relevance` raises; an unusable sample is not an error: see `Batch`."""

    def __init__(self, samples: Samples, layout: BatchLayout, steps: range, *, workers: int, prefetch: int = PREFETCH):
        repeats = samples.sampling.repeated_augmentation
        if layout.micro_batch % repeats:
            raise ValueError(
                f"train.micro_batch_size={layout.micro_batch} is not a multiple of data.repeated_augmentation="
                f"{repeats}: repeats of a sample share a micro batch, so choose a divisor"
            )
        self.samples, self.steps, self.workers, self.prefetch = samples, steps, workers, prefetch
        self._read = self._interlaced = 0
        self._warn_at = 1
        self.accumulation = layout.accumulation
        # All in samples, each of which gives `repeated_augmentation` clips:
        self._micro = layout.micro_batch // repeats
        self._rank_start = layout.rank * self._micro
        self._micro_step = layout.world_size * self._micro
        self._step = layout.global_batch // repeats

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        decoded = self._decoded()
        for step in self.steps:
            yield step, [self._batch(*next(decoded)) for _ in range(self.accumulation)]

    def positions(self) -> Iterator[int]:
        """Yield the positions of the order that this rank decodes, in sequence."""
        for step in self.steps:
            for micro_step in range(self.accumulation):
                first = step * self._step + micro_step * self._micro_step + self._rank_start
                yield from range(first, first + self._micro)

    def _decoded(self) -> Iterator[tuple[list[Sample], torch.Tensor]]:
        """Yield the samples of each batch, and their pixels, uint8 [samples, N, T, H, W, 3]."""
        positions, sampling = self.positions(), self.samples.sampling
        if self.workers:
            # A step is requested as a whole, and no samples are requested during it: with less than a step ahead,
            # workers would run dry during its computation (8 workers, 128 clips: after 32), and the GPU would wait for
            # the rest.
            ahead = max(self.workers * self.prefetch, self._micro * self.accumulation)
            yield from decode_ahead(self.samples, positions, self._micro, self.workers, ahead)
        shape = (self._micro, sampling.repeated_augmentation, sampling.frames, sampling.size, sampling.size, 3)
        while part := list(islice(positions, self._micro)):
            pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_initialized())
            yield [self.samples.read(*each) for each in zip(part, pixels)], pixels

    def _warn_of_interlaced(self, samples: list[Sample]) -> None:
        """Warn of the first interlaced sample by name, and again whenever their count has grown tenfold: each frame
        shows two moments, with comb artefacts, and is not deinterlaced here."""
        for sample in samples:
            self._read += 1
            self._interlaced += sample.interlaced
            if sample.interlaced and self._interlaced == self._warn_at:
                self._warn_at *= 10
                warnings.warn(
                    f"{sample.key} is interlaced: its frames show two moments in combs ({self._interlaced} of "
                    f"{self._read} samples so far); `tgm-scale shards check` names them all, "
                    "`tgm-scale shards make` deinterlaces",
                    stacklevel=2,
                )

    def _batch(self, samples: list[Sample], pixels: torch.Tensor) -> Batch:
        """Return the batch. The video is a [B, 3, T, H, W] view of pixels stored as decoded, channels last: they
        are permuted to the model's layout on its device, where that is cheap."""
        self._warn_of_interlaced(samples)
        repeats = self.samples.sampling.repeated_augmentation
        relevance = [torch.from_numpy(sample.relevance) for sample in samples if sample.relevance is not None]
        flow = [torch.from_numpy(sample.flow) for sample in samples if sample.flow is not None]
        motion = [torch.from_numpy(sample.motion) for sample in samples if sample.motion is not None]
        caption_sets = [
            sample.caption_set for sample in samples if sample.caption_set is not None for _ in range(repeats)
        ]

        def per_clip(values: list, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).repeat_interleave(repeats, dim=0)

        return Batch(
            video=pixels.flatten(0, 1).permute(0, 4, 1, 2, 3),
            captions=[caption for sample in samples for caption in sample.captions],
            keys=[sample.key for sample in samples for _ in range(repeats)],
            seeds=torch.tensor([seed for sample in samples for seed in sample.seeds]),
            weight=per_clip([float(sample.problem is None) for sample in samples], torch.float32),
            clip_ids=per_clip([sample.clip_id for sample in samples], torch.int64),
            crops=torch.tensor([row for sample in samples for row in sample.crops], dtype=torch.float32),
            starts=per_clip([sample.start for sample in samples], torch.float32),
            relevance=torch.cat(relevance) if relevance else None,
            motion=torch.cat(motion) if motion else None,
            flow=torch.cat(flow) if flow else None,
            caption_sets=caption_sets or None,
            problems=[sample.problem for sample in samples if sample.problem is not None],
        )
