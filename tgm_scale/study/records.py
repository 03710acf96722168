"""What is known of each command of a study, in its own folder: FOLDER/study.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from tgm_scale.config import digest_tree
from tgm_scale.runtime.files import replace_file
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.study.arms import Job, Unit

FILE = "study.json"
DONE, FAILED, STOPPED = "done", "failed", "stopped"


@dataclass(frozen=True)
class Record:
    """How a command ended. seconds: of all its starts; why: it failed; config: what decides its figures."""

    state: str
    seconds: float
    why: str
    config: dict[str, Any]


def read(job: Job) -> Record | None:
    """None where it never ended, and where it was another's of this name."""
    try:
        found = Record(**json_object(job.folder / FILE))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.config == digest_tree(job.config) else None


def write(job: Job, state: str, seconds: float, why: str = "") -> None:
    """Adds the seconds of this start to those before."""
    before = read(job)
    total = seconds + (before.seconds if before and before.state == STOPPED else 0.0)
    record = Record(state, total, why, digest_tree(job.config))
    replace_file(job.folder / FILE, json.dumps(asdict(record), indent=1) + "\n")


def is_done(job: Job) -> bool:
    found = read(job)
    return found is not None and found.state == DONE


class Times:
    """How long commands take, by those that have ended: of the same arm, else of the same kind."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._of: dict[tuple[str, str], list[float]] = {}
        for unit in units:
            for job in unit.jobs:
                if (found := read(job)) is not None and found.state == DONE:
                    self.add(job, found.seconds)

    def add(self, job: Job, seconds: float) -> None:
        for arm in (job.arm.name, ""):
            self._of.setdefault((arm, job.what), []).append(seconds)

    def left(self, unit: Unit) -> float | None:
        """Seconds of what is not done of a unit; None where no command of a kind has ended yet."""
        total = 0.0
        for job in unit.jobs:
            found = read(job)
            if found is not None and found.state == DONE:
                continue
            known = self._of.get((job.arm.name, job.what)) or self._of.get(("", job.what))
            if known is None:
                return None
            spent = found.seconds if found is not None and found.state == STOPPED else 0.0
            total += max(0.0, fmean(known) - spent)
        return total
