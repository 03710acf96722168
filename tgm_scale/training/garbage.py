"""Python's garbage collection at fixed steps.

A full collection walks all objects left by the imports, 420,000 in a run of configs/debug.yaml: 0.9 s on a busy core,
at an arbitrary step that differs between ranks, so that all wait. Objects that exist at the start are frozen, so no
collection walks them again, and collections run at the same steps on all ranks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 100  # steps: each leaves some 40 objects in reference cycles, none of them a batch


@contextmanager
def paused() -> Iterator[None]:
    """Disable automatic collection within this context; `collect_at` collects."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def collect_at(step: int) -> None:
    if step % EVERY == 0:
        gc.collect()
