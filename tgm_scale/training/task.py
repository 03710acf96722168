"""The part of a run that differs between tasks. `trainer.py` has the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import nn

from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.contracts import Batch

Steps = Iterable[tuple[int, list[Batch]]]  # steps made before, and the step's micro batches


@dataclass(frozen=True)
class StepResult:
    """Results of one step over the global batch. None: the task has no such value."""

    loss: float | None  # None: no clip of the step had weight
    grad_norm: float | None  # before clipping; None where it is not finite
    refusal: str | None  # as in update.Outcome
    digest: float = 0.0  # over the data of all ranks
    metrics: dict[str, float] = field(default_factory=dict)  # of the objective's terms, by column of metrics.jsonl

    @classmethod
    def without_clips(cls, digest: float) -> StepResult:
        """Return the result of a step in which no clip had weight: no loss, and no update."""
        return cls(loss=None, grad_norm=None, refusal=None, digest=digest)

    @property
    def updated(self) -> bool:
        return self.loss is not None and self.refusal is None


class PendingStep(NamedTuple):
    """A step whose clips are loaded."""

    step: int  # steps made before
    batches: list[Batch]  # this rank's micro batches, on the host
    prepare: Callable[[], list[Any]]  # returns the input of `Task.step`, one item per micro batch


class Task(ABC):
    """A task of the trainer. All ranks call each method together, except those marked "main process only"."""

    plan: RunPlan  # with its steps
    evaluate_every: int | None = None  # steps from one `evaluate` to the next
    visualise_every: int | None = None  # steps from one `visualise` to the next

    @abstractmethod
    def build_module(self, newest: Path | None) -> nn.Module:
        """Return the module to train, with first weights. newest: the checkpoint restored next; None in a new run."""

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]] | None:
        """Return groups of parameters, as `build_engine` takes them; None: the engine's default."""
        return None

    @abstractmethod
    def setup(self, engine: Any) -> None:
        """Receive the engine once it exists, with the weights that this start resumes from."""

    def load_extra_state(self, step: int) -> None:  # noqa: B027 - nothing by default
        """Restore what is stored beside a step's checkpoint, which the engine was set to (at a start, or by a
        rollback)."""

    @abstractmethod
    def loader(self, steps: range) -> Steps:
        """Return this rank's batches of these steps."""

    @abstractmethod
    def prepare_steps(self, steps: Steps) -> Iterator[PendingStep]:
        """Yield these steps of `loader`, from which the skip list is left out already, with the work prepared ahead of
        each. Clips that the task cannot use get weight 0 here, and are named."""

    @abstractmethod
    def step(self, micro: list[Any], valid: float, limit: float) -> StepResult:
        """Make one update, or none where the loss exceeds `limit` (-inf: never an update) or any value is not finite.

        valid: clips with weight in the global batch, over all ranks."""

    @abstractmethod
    def checkpoint_metadata(self) -> dict[str, Any]:
        """Return what a reader of a checkpoint needs besides the tensors."""

    def write_extra_state(self, step: int, retained: list[int]) -> None:  # noqa: B027 - nothing by default
        """Write the state that belongs to a step's checkpoint, which is written next, and delete that of checkpoints
        that are gone. retained: the steps of existing checkpoints. Main process only; may raise OSError."""

    @abstractmethod
    def data_metadata(self) -> list[dict[str, Any]]:
        """Return the content of RUN/data.json. Main process only."""

    @abstractmethod
    def print_start(self, start: int) -> None:
        """Print what the run reads, and what it will do from step `start` on. Main process only."""

    @abstractmethod
    def closing_message(self) -> str:
        """Return the text, printed at the end, on what comes after the training. Main process only."""

    def guidance_seconds(self) -> float:
        """Return the seconds that the device spent on frozen models since the last call."""
        return 0.0

    def metrics(self) -> dict[str, float]:
        """Return metrics of this process's clips since the last call, for metrics.jsonl. Main process only."""
        return {}

    def evaluate(self) -> dict[str, float]:
        """Return the measurements made every `evaluate_every` steps, for metrics.jsonl."""
        return {}

    def visualise(self) -> Image.Image | None:
        """Return the picture drawn every `visualise_every` steps; the main process's is kept."""
        return None

    def finish(self) -> None:  # noqa: B027 - nothing by default
        """Finish the task after the last step and its checkpoint, when the watchdog has ended."""
