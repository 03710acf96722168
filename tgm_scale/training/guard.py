"""Refused updates: which loss is a spike, which samples it had, when to roll back, which samples to leave out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tgm_scale.checkpoints.checkpoint import Progress
from tgm_scale.config.sections import FaultsConfig
from tgm_scale.contracts import Batch
from tgm_scale.runs.faults import (
    SKIP_LIST,
    Diverged,
    FaultState,
    SpikeDetector,
    leave_out,
    log_refused_update,
)
from tgm_scale.runs.metrics import recent_losses_for_all
from tgm_scale.runtime.distributed import HostCollectives
from tgm_scale.training.task import StepResult, Steps


class Guard:
    """Spike detection and rollback decisions of a run. The state is the run's Progress and faults.json, so a run that
    resumes or was rolled back decides as if it had never stopped. Raises ValueError where faults.json is damaged and
    has no copy."""

    def __init__(self, settings: FaultsConfig, folder: Path, collectives: HostCollectives):
        self._settings, self._folder, self._collectives = settings, folder, collectives
        self._state, damage = FaultState.load(folder)
        self._spikes = SpikeDetector(settings.spike_factor, [])
        if damage and collectives.process.is_main:
            print(f"warning: {damage}", file=sys.stderr, flush=True)

    def begin(self, progress: Progress) -> None:
        """Start from a checkpoint, or from the beginning. Collective."""
        # older checkpoints hold no losses: read those of metrics.jsonl
        losses = progress.losses or recent_losses_for_all(self._folder, progress.step, self._collectives)
        self._spikes = SpikeDetector(self._settings.spike_factor, losses)
        # keep the refusals before this checkpoint that no rollback has dealt with
        progress.refused = [keys for keys in progress.refused if not set(self._state.skip_list).issuperset(keys)]

    def without_skipped(self, steps: Steps) -> Iterator[tuple[int, list[Batch]]]:
        """Yield the steps, with weight 0 for the samples on the skip list."""
        skipped = frozenset(self._state.skip_list)  # a list of thousands of names would cost 0.6 ms a clip
        for step, batches in steps:
            for batch in batches:
                leave_out(batch, skipped.__contains__, SKIP_LIST, "in the steps before a rollback")
            yield step, batches

    def limit(self) -> float:
        """Return the largest loss for which an update is made."""
        return self._spikes.limit()

    def note(self, progress: Progress, result: StepResult, batches: list[Batch]) -> bool:
        """Record the step just made, with its samples if its update was refused. Returns whether too many updates in a
        row were refused. Collective."""
        if result.loss is None:
            return False
        if result.refusal is None:
            self._spikes.note(result.loss)
            progress.losses, progress.refused = list(self._spikes.recent), []
            return False
        keys = self._collectives.gather([key for batch in batches for key in batch.keys])
        if self._collectives.process.is_main:
            log_refused_update(self._folder, progress.step, result.loss, result.refusal, keys)
        progress.refused = [*progress.refused, [key for rank in keys for key in rank]]
        return len(progress.refused) >= self._settings.refused_before_rollback

    def roll_back(self, progress: Progress, newest: Path | None) -> None:
        """Record a rollback to a checkpoint, and put the samples of the refused steps on the skip list.

        Raises Diverged where there is no checkpoint, or after too many rollbacks."""
        step, limit = progress.step, self._settings.rollbacks
        if newest is None or self._state.rollbacks >= limit:
            why = "before the first checkpoint" if newest is None else f"after faults.rollbacks={limit} rollbacks"
            raise Diverged(
                f"updates were refused up to step {step}, {why}; refused.jsonl in {self._folder} names steps, "
                f"reasons and samples. Lower optim.base_lr, or look at those samples"
            )
        self._state.rollbacks += 1
        suspects = {key for keys in progress.refused for key in keys}
        self._state.skip_list = sorted({*self._state.skip_list, *suspects})
        if self._collectives.process.is_main:
            self._state.write(self._folder)
            left_out = f"{len(self._state.skip_list)} samples left out"
            print(f"rolling back from step {step} to {newest.name}; {left_out}", flush=True)
