"""The part of a run that differs between tasks. `trainer.py` has the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import nn

from tgm_scale.contracts import Batch
from tgm_scale.planning.run_plan import RunPlan

Steps = Iterable[tuple[int, list[Batch]]]  # the number of steps made before, and the step's micro batches


@dataclass(frozen=True)
class StepResult:
    """Figures of one step over the global batch. None: the task has no such figure."""

    loss: float | None  # None: no clip of the step had weight
    grad_norm: float | None  # before clipping; None where it is not finite
    refusal: str | None  # as update.Outcome
    digest: float = 0.0  # of the data of all ranks
    metrics: dict[str, float] = field(default_factory=dict)  # of the objective's terms, by column of metrics.jsonl

    @classmethod
    def without_clips(cls, digest: float) -> StepResult:
        """Of a step in which no clip had weight: no loss, and no update."""
        return cls(loss=None, grad_norm=None, refusal=None, digest=digest)

    @property
    def updated(self) -> bool:
        return self.loss is not None and self.refusal is None


class Ready(NamedTuple):
    """A step whose clips are there."""

    step: int  # steps made before
    batches: list[Batch]  # this rank's micro batches, on the host
    prepare: Callable[[], list[Any]]  # gives what `Task.step` takes, one for each micro batch


class Task(ABC):
    """A task of the trainer. All ranks call each method together, except those marked "main process only"."""

    plan: RunPlan  # with its steps
    measured_every: int | None = None  # steps from one `measure` to the next
    pictured_every: int | None = None  # steps from one `picture` to the next

    @abstractmethod
    def module(self, newest: Path | None) -> nn.Module:
        """What is trained, with its first weights. newest: the checkpoint that is restored then; None in a new run."""

    def groups(self, module: nn.Module) -> list[dict[str, Any]] | None:
        """Groups of parameters, as `build_engine` takes them; None: its own."""
        return None

    @abstractmethod
    def begin(self, engine: Any) -> None:
        """Called once the engine exists, with the weights that this start resumes from."""

    def restored(self, step: int) -> None:  # noqa: B027 - nothing by default
        """The engine was set to the checkpoint of a step, at a start or by a rollback: so is what lies beside it."""

    @abstractmethod
    def loader(self, steps: range) -> Steps:
        """This rank's batches of these steps."""

    @abstractmethod
    def ready(self, steps: Steps) -> Iterator[Ready]:
        """The steps of `loader`, less the samples that the run leaves out, with what is made ready ahead of a step.
        Clips that the task cannot use get weight 0 here, and are named."""

    @abstractmethod
    def step(self, micro: list[Any], valid: float, limit: float) -> StepResult:
        """One update, or none where the loss is above `limit` (-inf: none in any case) or anything is not finite.

        valid: clips of the global batch with weight, of all ranks."""

    @abstractmethod
    def checkpoint_metadata(self) -> dict[str, Any]:
        """What a reader of a checkpoint needs in addition to the tensors."""

    def write_extra_state(self, step: int, retained: list[int]) -> None:  # noqa: B027 - nothing by default
        """Write what belongs to the checkpoint of a step, which is written next, and drop what belonged to those that
        are gone; `retained`: the steps of those that are there. Main process only; may raise OSError."""

    @abstractmethod
    def data_metadata(self) -> list[dict[str, Any]]:
        """What RUN/data.json says. Main process only."""

    @abstractmethod
    def introduce(self, start: int) -> None:
        """Print what the run reads and will do, from this step on. Main process only."""

    @abstractmethod
    def what_next(self) -> str:
        """Printed at the end: what comes after the training. Main process only."""

    def guidance_seconds(self) -> float:
        """Seconds that the device spent on frozen models since the last call."""
        return 0.0

    def metrics(self) -> dict[str, float]:
        """Of this process's clips since the last call, for metrics.jsonl. Main process only."""
        return {}

    def measure(self) -> dict[str, float]:
        """What is measured every `measured_every` steps, for metrics.jsonl."""
        return {}

    def picture(self) -> Image.Image | None:
        """What is drawn every `pictured_every` steps; the main process's is kept."""
        return None

    def finish(self) -> None:  # noqa: B027 - nothing by default
        """After the last step and its checkpoint, once the watchdog is gone."""
