"""Reports of each step: the row of metrics, the digest of its data, the broken samples; and of the end of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.checkpoints.checkpoint import Progress
from tgm_scale.contracts import Problem
from tgm_scale.runs.bottleneck import duration
from tgm_scale.runs.faults import JUDGED_BEFORE
from tgm_scale.runs.metrics import in_words
from tgm_scale.training import data_digest
from tgm_scale.training.task import StepResult
from tgm_scale.training.throughput import Throughput

# in every row, null where the run does not have the term
_TERMS = ("loss_reconstruction", "loss_contrastive", "contrastive_accuracy", "temperature")
_ENOUGH_TO_JUDGE = 64  # samples before the share of broken ones can stop a run
_NONE_WHOLE = 4  # samples that stop a run if all are broken: at a share of 0.1 once in 10,000 runs


@dataclass
class Times:
    """Seconds of one step on this rank."""

    whole: float
    data: float
    guidance: float


class Reporter:
    """Metrics rows of a run's steps."""

    def __init__(self, plan: RunPlan):
        self._clips, self._repeats, self._ranks = plan.layout.global_batch, plan.repeats, plan.layout.world_size
        self._throughput = Throughput(plan.macs_per_clip, plan.device)

    def row(self, progress: Progress, result: StepResult, times: Times, learning_rate: float) -> dict[str, Any]:
        """Return one row of metrics.jsonl, for the step that `progress` has just completed."""
        speed = self._clips / times.whole
        values: dict[str, Any] = {
            "step": progress.step,
            "samples": progress.step * self._clips // self._repeats,
            "loss": result.loss,
            **(dict.fromkeys(_TERMS) | result.metrics),
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "update_refused": result.refusal is not None,
            "refusal": result.refusal,
            "step_seconds": times.whole,
            "data_seconds": times.data,
            "guidance_seconds": times.guidance,
            "clips_per_second": speed,
            "skipped_samples": sum(progress.skipped.values()),
            "data_digest": data_digest.in_words(result.digest),
        }
        mfu, memory = self._throughput.mfu(speed / self._ranks), self._throughput.device_memory_gb()
        of_device = {"mfu": mfu, "device_memory_gb": memory}
        return values | {name: value for name, value in of_device.items() if value is not None}


def concluded(steps: int, seconds: float, last: dict[str, Any] | None, updates: int) -> str:
    """Return a training's closing line. steps, seconds: of this start; last: its last metrics; updates: the run's."""
    if last is None:
        return "done: no step was left to make"
    losses = in_words(last)
    if last["skipped_samples"]:
        losses += f", {last['skipped_samples']} of {last['samples']} samples skipped"
    if skipped := last["step"] - updates:
        losses += f", {skipped} of {last['step']} updates skipped"
    return f"done: made {steps} steps in {duration(seconds)}, {losses}"


def count_problems(
    skipped: dict[str, int], problems: list[Problem], seen: int, limit: float, last: bool
) -> dict[str, int]:
    """Return the samples left out so far by reason, the new ones added. Those of `JUDGED_BEFORE` do not count as
    broken.

    Raises ValueError where too many are broken: once there are enough to judge, in the last step, and early where none
    was whole."""
    counts = Counter(skipped) + Counter(problem.reason for problem in problems)
    broken = Counter({reason: count for reason, count in counts.items() if reason not in JUDGED_BEFORE})
    judged = last or seen >= _ENOUGH_TO_JUDGE or broken.total() >= max(seen, _NONE_WHOLE)
    if judged and broken.total() > limit * seen:
        named = next((problem for problem in problems if problem.reason not in JUDGED_BEFORE), None)
        first = f"; such as {named.key}: {named.reason}: {named.detail}" if named else ""
        listed = ", ".join(f"{reason} {count}" for reason, count in broken.most_common())
        raise ValueError(
            f"{broken.total()} of {seen} samples were broken ({listed}), more than data.max_skipped_share={limit}"
            f"{first}. skipped.jsonl in the run folder names all; mend the data or raise the limit"
        )
    return dict(sorted(counts.items()))
