"""What a run does when something goes wrong: refuse an update, roll back, name the samples and ranks, stop."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from tgm_scale.contracts import Batch, Problem
from tgm_scale.runtime.distributed import Control
from tgm_scale.training.run_folder import replace_file

_MEMORY = 100  # losses that a spike is measured against
_ENOUGH = 20


class RunStopped(RuntimeError):
    """The run cannot go on; the message says why and what to do. Not the user's mistake, and no traceback needed."""

    exit_code = 1  # of the command: a new start may help


class Diverged(RunStopped):
    """The run would diverge again after a new start: its steps are a function of the checkpoint."""

    exit_code = 4  # slurm/launch.sh does not start it again


class Judge:
    """Decides, with all ranks, whether a step's loss is fit for an update: finite, and no spike.

    recent: the losses of the steps before, so that a run that goes on judges as if it had never stopped."""

    def __init__(self, control: Control, spike_factor: float | None, recent: Iterable[float]):
        self.control, self.spike_factor = control, spike_factor
        self.recent = deque(recent, maxlen=_MEMORY)
        self.refused_in_a_row = 0

    def __call__(self, loss: float) -> bool:
        """Collective. True where the update should be made."""
        refused = self.control.any(not math.isfinite(loss) or self._is_spike(loss))
        self.refused_in_a_row = self.refused_in_a_row + 1 if refused else 0
        if not refused:
            self.recent.append(loss)
        return not refused

    def _is_spike(self, loss: float) -> bool:
        enough = self.spike_factor is not None and len(self.recent) >= _ENOUGH
        return enough and loss > (self.spike_factor or 0) * median(self.recent)


@dataclass
class FaultState:
    """What outlives a rollback, in RUN/faults.json: how often it happened, and the samples left out since."""

    rollbacks: int = 0
    skip_list: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> FaultState:
        file = folder / "faults.json"
        return cls(**json.loads(file.read_text())) if file.is_file() else cls()

    def write(self, folder: Path) -> None:
        replace_file(folder / "faults.json", json.dumps(asdict(self), indent=1))

    def leave_out(self, batch: Batch) -> None:
        """Give the clips on the skip list weight 0."""
        for index, key in enumerate(batch.keys):
            if key in self.skip_list and batch.weight[index] > 0:
                batch.weight[index] = 0
                batch.problems.append(Problem(key, "skip_list", "in the steps before a rollback"))


def note_refusal(folder: Path, step: int, loss: float, keys_of_ranks: list[list[str]]) -> None:
    """Name a refused step's samples by rank in RUN/refused.jsonl."""
    with (folder / "refused.jsonl").open("a") as stream:
        for rank, keys in enumerate(keys_of_ranks):
            stream.write(json.dumps({"step": step, "loss": str(loss), "rank": rank, "keys": keys}) + "\n")
