"""Death of a data worker, or a stopped wait for clips, on one or several ranks: all ranks learn of it at their next
collective, save, and end alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

from tgm_scale.data.access.patience import StoppedWaiting
from tgm_scale.data.loading.workers import WorkerDied

T = TypeVar("T")


def until_death(steps: Iterable[T], instead: T) -> Iterator[tuple[T, WorkerDied | StoppedWaiting | None]]:
    """Yield the steps; for one that a worker's death or a stopped wait prevents, yield `instead` and that error."""
    try:
        for one in steps:
            yield one, None
    except (WorkerDied, StoppedWaiting) as death:
        yield instead, death


def end(death: WorkerDied | None, save: Callable[[], object]) -> NoReturn:
    """Save, then raise the error that a rank ends with, even where the checkpoint cannot be written. Collective."""
    died = after(death)
    try:
        save()
    except (OSError, RuntimeError) as error:
        raise WorkerDied(f"{died}; and {error}") from error
    raise died


def after(death: WorkerDied | None) -> WorkerDied:
    """Return the error that a rank ends with: its own worker's death, or that of another rank's."""
    return death or WorkerDied("a data worker of another rank died: its own output says which and why")
