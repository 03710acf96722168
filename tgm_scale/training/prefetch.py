"""The frozen models' pass over each step's clips: on demand, or one step ahead on a CUDA stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from tgm_scale.contracts import Batch
from tgm_scale.training.clip_guidance import GuidedBatch

Compute = Callable[[Batch], GuidedBatch]
Step = tuple[int, list[Batch], list[Callable[[], GuidedBatch]]]  # each returns its batch's computed guidance


def without_prefetch(loader: Iterable[tuple[int, list[Batch]]], compute: Compute) -> Iterator[Step]:
    """Yield the loader's steps, whose batches are computed on demand."""
    for step, batches in loader:
        yield step, batches, [partial(compute, batch) for batch in batches]


def prefetched(loader: Iterable[tuple[int, list[Batch]]], compute: Compute, device: torch.device) -> Iterator[Step]:
    """Yield the same steps, each computed before the previous one is handed over: on a GPU on a side stream, which
    works while that previous step runs; on a CPU at once. `compute` must depend on nothing that a step changes.

    Tensors of the pass belong to the side stream: memory of a finished step is reused by a later pass at the earliest,
    and that pass first waits for all work queued before it on the main stream."""
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    pending: Step | None = None
    for step, batches in loader:
        if side is not None:
            side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # None: no other stream
            computed = [compute(batch) for batch in batches]
            done = None if side is None else side.record_event()
        if pending is not None:
            yield pending
        pending = step, batches, [partial(_on_main_stream, guided_batch, done) for guided_batch in computed]
    if pending is not None:
        yield pending


def _on_main_stream(guided_batch: GuidedBatch, done: torch.cuda.Event | None) -> GuidedBatch:
    """Make the main stream wait for the computation, and return its result."""
    if done is not None:
        torch.cuda.current_stream().wait_event(done)
    return guided_batch
