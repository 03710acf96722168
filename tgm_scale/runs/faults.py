"""Faults of a run: refused updates, rollbacks, the skip list, and exceptions that end a run."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tgm_scale.checkpoints import manifest
from tgm_scale.contracts import Batch, Problem
from tgm_scale.runs import events
from tgm_scale.runtime.files import replace_file
from tgm_scale.runtime.outside.json_text import json_object

_MEMORY = 100  # losses for the median that a spike is compared with
_ENOUGH = 20
_FILE, _EVENT = "faults.json", "rolled_back"
SKIP_LIST = "skip_list"  # reason for leaving out samples that are not broken
# not counted as broken: faults.rollbacks limits the first, data.max_left_out_share the second, when finetuning starts
JUDGED_BEFORE = (SKIP_LIST, "no_label")


class RunStopped(RuntimeError):
    """The run cannot continue; the message gives the reason and the remedy. No user mistake, and no traceback
    needed."""

    exit_code = 1  # of the command: a new start may help


class Diverged(RunStopped):
    """The run would diverge again after a new start: its steps are a function of the checkpoint."""

    exit_code = 4  # slurm/launch.sh does not start it again


class SpikeDetector:
    """Detector of loss spikes, which compares with the losses so far. All ranks see the same losses, so they agree.

    recent: losses of the previous steps, so that a resumed run decides as if it had never stopped."""

    def __init__(self, spike_factor: float | None, recent: Iterable[float]):
        self.spike_factor = spike_factor
        self.recent = deque(recent, maxlen=_MEMORY)

    def limit(self) -> float:
        """Return the largest loss for which an update is made; infinity where there is no limit (yet), or no
        meaningful one: with the terms `policy` and `adversary` a loss may be below 0."""
        if self.spike_factor is None or len(self.recent) < _ENOUGH or (usual := median(self.recent)) <= 0:
            return math.inf
        return self.spike_factor * usual

    def note(self, loss: float) -> None:
        """Add the loss of a step whose update was not refused."""
        self.recent.append(loss)


class FaultState(BaseModel):
    """State that outlives a rollback, in RUN/faults.json: the number of rollbacks, and the samples left out since. The
    file has its digest, and RUN/events.jsonl a copy, since no other file of the run folder has these."""

    model_config = ConfigDict(strict=True, extra="forbid")
    rollbacks: int = 0
    skip_list: list[str] = []

    @classmethod
    def load(cls, folder: Path) -> tuple[FaultState, str]:
        """Return the state in a run folder, and why it is from the copy: "" where it is not. Raises ValueError where
        the file is damaged and there is no copy."""
        file = folder / _FILE
        copies = [event for event in events.read(folder) if event["event"] == _EVENT]
        damage = "missing"
        if file.is_file():
            try:
                return cls._of(json_object(file)), ""
            except ValueError as error:
                damage = str(error).removeprefix(f"{file}: ").removeprefix("damaged: ")
        for copy in reversed(copies):
            with suppress(ValueError):
                return cls._of(copy.get("state")), f"{file}: damaged ({damage}): taken from its copy in {events.FILE}"
        if not file.exists() and not file.is_symlink() and not copies:
            return cls(), ""
        raise ValueError(
            f"{file}: damaged ({damage}): restore it; without it the samples left out since a rollback are trained on "
            'again. To resume all the same, write {"rollbacks": 0, "skip_list": []} there'
        )

    @classmethod
    def _of(cls, tree: Any) -> FaultState:
        """Return the state in `tree`. Raises ValueError where it is invalid or differs from its hash."""
        fields = dict(tree) if isinstance(tree, dict) else tree
        if isinstance(fields, dict) and fields.pop("blake2b", None) not in (None, manifest.digest(fields)):
            raise ValueError("its contents differ from its own hash")
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"]) from None

    def write(self, folder: Path) -> None:
        """Write the file and its copy. Raises OSError."""
        tree = {**self.model_dump(), "blake2b": manifest.digest(self.model_dump())}
        events.append(folder, _EVENT, file=_FILE, state=tree)
        replace_file(folder / _FILE, json.dumps(tree, indent=1))


def leave_out(batch: Batch, unwanted: Callable[[str], bool], reason: str, detail: str = "") -> None:
    """Give the clips of unwanted samples weight 0, and name each sample once, whatever its number of clips."""
    found = {key for key, weight in zip(batch.keys, batch.weight.tolist()) if weight > 0 and unwanted(key)}
    for index, key in enumerate(batch.keys):
        if key in found:
            batch.weight[index] = 0
    batch.problems += [Problem(key, reason, detail) for key in dict.fromkeys(batch.keys) if key in found]


def log_refused_update(folder: Path, step: int, loss: float, reason: str, keys_of_ranks: list[list[str]]) -> None:
    """Write a refused step's samples by rank to RUN/refused.jsonl."""
    with (folder / "refused.jsonl").open("a", encoding="utf-8") as stream:
        for rank, keys in enumerate(keys_of_ranks):
            entry = {"step": step, "loss": str(loss), "reason": reason, "rank": rank, "keys": keys}
            stream.write(json.dumps(entry) + "\n")
