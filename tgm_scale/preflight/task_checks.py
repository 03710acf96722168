"""What a preflight checks of a configuration, for any task."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tgm_scale.config.sections import TrainingConfig
from tgm_scale.contracts import Batch, Problem
from tgm_scale.data.shards.index import Corpus
from tgm_scale.planning.footprint import footprint
from tgm_scale.planning.run_plan import RunPlan
from tgm_scale.runtime.distributed import ProcessInfo

CLIPS = 8  # that are tried until one can be used: broken ones are left out in training, too
_QUICK_FLOP = 1e11  # of a step on a CPU: some seconds
_SPARE = 0.9  # of a GPU's free memory that a step may be expected to take


class TaskChecks(ABC):
    """Of one configuration. Every method raises ValueError, OSError or RuntimeError for what a run would meet."""

    config: TrainingConfig

    @abstractmethod
    def plan(self, process: ProcessInfo) -> RunPlan:
        """The run's plan."""

    @abstractmethod
    def check(self, process: ProcessInfo) -> None:
        """What needs neither processes nor data."""

    @abstractmethod
    def corpora(self, process: ProcessInfo) -> dict[str, Corpus]:
        """What the run reads, by name; empty where it is made when the run starts. May build indices."""

    @abstractmethod
    def _try(self, process: ProcessInfo) -> list[str]:
        """What the run will use, tried by one process. Returns what was tried and what was left out, a line each."""

    def try_run(self, process: ProcessInfo) -> list[str]:
        """As `_try`; what another package refuses is named, too."""
        try:
            return self._try(process)
        except (ValueError, OSError, RuntimeError):
            raise
        except Exception as error:  # of another package, whose versions differ
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


def first_usable(steps: Iterable[tuple[int, list[Batch]]], key: str, rank: int) -> Batch:
    """The first micro batch with a clip that can be used. key: of the configuration, for the message."""
    problems: list[Problem] = []
    for _, [batch] in steps:
        if bool((batch.weight > 0).any()):
            return batch
        problems += batch.problems
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(p.reason for p in problems).items())
    raise ValueError(
        f"{key}: none of the first {CLIPS} clips of rank {rank} can be used ({counts}); the last "
        f"is {problems[-1].key}: {problems[-1].detail}"
    )


def try_step(
    config: TrainingConfig, plan: RunPlan, module: nn.Module, loss_of: Callable[[Tensor], Tensor], given: int
) -> str:
    """A forward and a backward pass in the run's precision: on a GPU of a whole micro batch, else of what is given.

    loss_of: gives the loss of clips by their numbers among those given, int64 on the device."""
    device, precision = plan.device, plan.engine.precision
    on_gpu = device.type == "cuda"
    clips = plan.layout.micro_batch if on_gpu else given
    needed = footprint(plan, config.model.activation_checkpointing)
    if on_gpu:
        free, _ = torch.cuda.mem_get_info(device)
        if needed.device > _SPARE * free:
            return f"no step of the model: {needed.device / 1e9:.0f} GB expected, {free / 1e9:.0f} GB free"
    elif 6 * plan.macs_per_clip * clips > _QUICK_FLOP:
        return "no step of the model: it would take long on a CPU"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    began = time.perf_counter()
    module.to(device, dtype)
    try:
        loss = loss_of(torch.arange(clips, device=device) % given)
        loss.backward()
        finite = bool(torch.isfinite(loss))
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"a step of {clips} clips does not fit the GPU's memory: lower train.micro_batch_size, or set "
            f"model.activation_checkpointing=true ({str(error).splitlines()[0]})"
        ) from None
    if not finite:
        raise ValueError(f"a step of the model gave a loss of {loss.item()}")
    return f"a step of the model, {clips} clips in {precision}: {time.perf_counter() - began:.1f} s"
