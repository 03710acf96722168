"""A data worker that died, or a wait for clips that was stopped, on one rank or on several: all ranks learn of it
where they meet, save, and end alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

from tgm_scale.data.access.patience import StoppedWaiting
from tgm_scale.data.loading.workers import WorkerDied

T = TypeVar("T")


def until_death(steps: Iterable[T], instead: T) -> Iterator[tuple[T, WorkerDied | StoppedWaiting | None]]:
    """The steps, and `instead` of the one that a data worker did not live to make, or that was not waited for."""
    try:
        for one in steps:
            yield one, None
    except (WorkerDied, StoppedWaiting) as death:
        yield instead, death


def end(death: WorkerDied | None, save: Callable[[], object]) -> NoReturn:
    """Save, then raise what a rank ends with, also where the checkpoint could not be written. Collective."""
    died = after(death)
    try:
        save()
    except (OSError, RuntimeError) as error:
        raise WorkerDied(f"{died}; and {error}") from error
    raise died


def after(death: WorkerDied | None) -> WorkerDied:
    """What a rank ends with: its own worker's death, or another rank's."""
    return death or WorkerDied("a data worker of another rank died: its own output says which and why")
