"""Batches of the run's global order, for one rank: decoded by worker processes, handed over in order.

Global batch t is the positions t*S ... t*S + S - 1 of the order, S = global_batch_size / repeated_augmentation. Its
slots are numbered 0 ... global_batch_size - 1; slot g holds repeat g % R of sample g // R. Micro-step a of rank r has
the slots a * (micro * world) + r * micro + [0, micro): so a step's clips are the same set at any world size, and the
loader's whole state is the step.
"""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from tgm_scale.contracts import Batch, Grid
from tgm_scale.data.index import Corpus
from tgm_scale.data.order import Mixture, Order
from tgm_scale.data.samples import RelevanceReader, Sample, Samples, Sampling
from tgm_scale.data.transforms import CROPS
from tgm_scale.runtime import seeding


class ClipLoader:
    """Iterates (step, [Batch, one for each accumulation micro-step]) for steps start_step ... stop_step - 1.

    weights: share of each corpus in the run's samples (default: by size); grid: the token grid, for maps;
    `workers` processes decode, each up to `prefetch` samples ahead; 0 decodes here, to the same bits.
    `captions=False` reads none; `relevance` reads the samples' cached scores; `motion` reads the codec's vectors;
    `caption_sets` hands over all captions of each sample beside the drawn one.

    Raises ValueError for sizes that do not divide. Iterating raises OSError where a shard cannot be read, RuntimeError
    where a worker died, what `relevance` raises; a sample that cannot be used is none of these: see `Batch`."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        *,
        weights: Sequence[float] | None = None,
        frames: int,
        stride: int,
        size: int,
        grid: Grid,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        workers: int,
        repeated_augmentation: int = 1,
        start_step: int = 0,
        stop_step: int,
        crop: str = "multi_scale",
        flip: bool = False,
        window_shards: int = 16,
        prefetch: int = 4,
        captions: bool = True,
        relevance: RelevanceReader | None = None,
        motion: bool = False,
        caption_sets: bool = False,
        segments: bool = False,
    ):
        assert 0 <= rank < world_size and frames % grid.slots == 0 and crop in CROPS
        if global_batch_size % (micro_batch_size * world_size):
            raise ValueError(
                f"train.global_batch_size={global_batch_size} is not a multiple of train.micro_batch_size="
                f"{micro_batch_size} times {world_size} processes: change one of them so that it divides"
            )
        if micro_batch_size % repeated_augmentation:
            raise ValueError(
                f"train.micro_batch_size={micro_batch_size} is not a multiple of data.repeated_augmentation="
                f"{repeated_augmentation}: repeats of a sample share a micro batch, so choose a divisor"
            )
        orders = [
            Order(corpus.counts, seeding.key(seed, "order", corpus.fingerprint), window_shards) for corpus in corpora
        ]
        sampling = Sampling(
            frames,
            stride,
            size,
            grid,
            seed,
            repeated_augmentation,
            crop,
            flip,
            captions,
            relevance,
            motion,
            caption_sets,
            segments,
        )
        self.samples = Samples(corpora, Mixture(orders, weights), sampling)
        self.workers = workers
        self.prefetch = prefetch
        self.start_step = start_step
        self.stop_step = stop_step
        self.accumulation = global_batch_size // (micro_batch_size * world_size)
        # All in samples, of which each gives `repeated_augmentation` clips:
        self._micro = micro_batch_size // repeated_augmentation
        self._rank_start = rank * self._micro
        self._micro_step = world_size * self._micro
        self._step = global_batch_size // repeated_augmentation

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        samples = self._decoded()
        for step in range(self.start_step, self.stop_step):
            yield step, [_batch([next(samples) for _ in range(self._micro)]) for _ in range(self.accumulation)]

    def positions(self) -> Iterator[int]:
        """The positions of the order that this rank decodes, one after another."""
        for step in range(self.start_step, self.stop_step):
            for micro_step in range(self.accumulation):
                first = step * self._step + micro_step * self._micro_step + self._rank_start
                yield from range(first, first + self._micro)

    def _decoded(self) -> Iterator[Sample]:
        if not self.workers:
            yield from map(self.samples.__getitem__, self.positions())
            return
        # A fork of this process would carry its GPU context and its threads' locks; a fork server is small and has the
        # imports done, so a worker starts in milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
            loader = DataLoader(
                _Guarded(self.samples),
                batch_size=None,
                sampler=_Positions(self),
                collate_fn=_unchanged,
                num_workers=self.workers,
                prefetch_factor=self.prefetch,
                worker_init_fn=_leave_interrupts_to_the_trainer,
                multiprocessing_context=context,
                generator=torch.Generator(),  # else it would draw from the run's global one
            )
            with _shielded():
                iterator = iter(loader)
        while True:
            try:
                sample = next(iterator, None)
            except (RuntimeError, OSError, EOFError) as error:  # also what reading from a dead process raises
                workers = iterator._workers  # type: ignore[attr-defined]
                explained = _explained(error, workers)
                for worker in workers:
                    worker.kill()  # the others may wait for a lock that the dead one held
                raise explained from error
            if sample is None:
                return
            if isinstance(sample, Exception):
                raise sample
            yield sample


class _Positions:
    """The loader's positions as the sampler that DataLoader asks for."""

    def __init__(self, loader: ClipLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[int]:
        return self.loader.positions()


class _Guarded(torch.utils.data.Dataset):
    """Hands over the user's errors for the trainer to raise: raised in a worker they arrive as text of a traceback."""

    def __init__(self, samples: Samples):
        self.samples = samples

    def __getitem__(self, position: int) -> Sample | Exception:
        try:
            return self.samples[position]
        except (OSError, ValueError) as error:
            return error


def _unchanged(sample: Any) -> Any:
    return sample


@contextmanager
def _shielded() -> Iterator[None]:
    """Processes started within never see SIGUSR1, which schedulers send to a whole job so that it saves itself: the
    trainer answers it. For this process the signal waits until the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_interrupts_to_the_trainer(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _explained(error: Exception, workers: list[BaseProcess]) -> Exception:
    """A worker's death with its likely cause; any other error as it is."""
    wait([worker.sentinel for worker in workers], timeout=5)  # the error may come before the exit code
    died = sorted({worker.exitcode for worker in workers if worker.exitcode is not None})
    if not died:
        return error
    causes = {
        -signal.SIGKILL: "killed, as the kernel does when memory is full: lower data.workers",
        -signal.SIGBUS: "shared memory is full: enlarge /dev/shm (docker: --shm-size) or lower data.workers",
        -signal.SIGSEGV: "crashed in the video decoder",
    }
    what = "; ".join(f"exit code {code}: {causes.get(code, 'its own output says why')}" for code in died)
    return RuntimeError(f"a data worker died ({what})")


def _batch(samples: list[Sample]) -> Batch:
    """The clips of some samples in order. The video is a [B, 3, T, H, W] view of pixels stored as they were decoded,
    colour last: they are put in the model's order where that is cheap, on its device."""
    repeats = len(samples[0].seeds)
    relevance = [torch.from_numpy(sample.relevance) for sample in samples if sample.relevance is not None]
    motion = [torch.from_numpy(sample.motion) for sample in samples if sample.motion is not None]
    caption_sets = [sample.caption_set for sample in samples if sample.caption_set is not None for _ in range(repeats)]

    def per_clip(values: list, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(repeats, dim=0)

    return Batch(
        video=torch.stack([video for sample in samples for video in sample.videos]).permute(0, 4, 1, 2, 3),
        captions=[caption for sample in samples for caption in sample.captions],
        keys=[sample.key for sample in samples for _ in range(repeats)],
        seeds=torch.tensor([seed for sample in samples for seed in sample.seeds]),
        weight=per_clip([float(sample.problem is None) for sample in samples], torch.float32),
        clip_ids=per_clip([sample.clip_id for sample in samples], torch.int64),
        crops=torch.tensor([row for sample in samples for row in sample.crops], dtype=torch.float32),
        starts=per_clip([sample.start for sample in samples], torch.float32),
        relevance=torch.cat(relevance) if relevance else None,
        motion=torch.cat(motion) if motion else None,
        caption_sets=caption_sets or None,
        problems=[sample.problem for sample in samples if sample.problem is not None],
    )
