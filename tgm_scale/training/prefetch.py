"""The frozen models' look at each step's clips: when it is asked for, or a step ahead on a CUDA stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from tgm_scale.contracts import Batch
from tgm_scale.training.clip_guidance import GuidedBatch

Compute = Callable[[Batch], GuidedBatch]
Step = tuple[int, list[Batch], list[Callable[[], GuidedBatch]]]  # calling one gives what was computed


def without_prefetch(loader: Iterable[tuple[int, list[Batch]]], compute: Compute) -> Iterator[Step]:
    """The loader's steps, whose batches are looked at when that is asked for."""
    for step, batches in loader:
        yield step, batches, [partial(compute, batch) for batch in batches]


def prefetched(loader: Iterable[tuple[int, list[Batch]]], compute: Compute, device: torch.device) -> Iterator[Step]:
    """The same steps, each looked at before the one before it is handed over: on a GPU by a stream of its own, which
    works while that step runs; on a CPU at once. `compute` must depend on nothing that a step changes.

    What the look leaves in memory is the side stream's: memory of a step that is over is taken again by a later look
    at the earliest, and that waits first for all that the main stream was given before."""
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    pending: Step | None = None
    for step, batches in loader:
        if side is not None:
            side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # of None: nothing
            computed = [compute(batch) for batch in batches]
            done = None if side is None else side.record_event()
        if pending is not None:
            yield pending
        pending = step, batches, [partial(_on_main_stream, guided_batch, done) for guided_batch in computed]
    if pending is not None:
        yield pending


def _on_main_stream(guided_batch: GuidedBatch, done: torch.cuda.Event | None) -> GuidedBatch:
    """To the main stream, which waits for the look to be done."""
    if done is not None:
        torch.cuda.current_stream().wait_event(done)
    return guided_batch
