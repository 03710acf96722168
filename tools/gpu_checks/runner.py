"""Runner of the rows, one after another, which keeps their results and resumes after a stop."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpu_checks.bench import ROOT, Bench, Failed, Skipped
from gpu_checks.rows import Row
from gpu_checks.scale import Scale
from tgm_scale.runs import environment
from tgm_scale.runtime.files import replace_file
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.progress import ProgressBars

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
LAST_LINES = 20  # last lines of a row's log, for the summary


@dataclass
class Result:
    """Result of a row. log: the last lines; logs/NAME.log has all."""

    name: str
    proves: str
    verdict: str
    figure: str = ""
    remedy: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Rows to run, and settings. facts: the device's, from gpu_checks.card.look; empty on a CPU."""

    rows: Sequence[Row]
    scale: Scale
    output: Path
    facts: dict[str, Any] = field(default_factory=dict)
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    minutes: float | None = None
    again: bool = False

    def __post_init__(self) -> None:
        for option, patterns in (("--only", self.only), ("--skip", self.skip)):
            for pattern in patterns:
                if not any(fnmatchcase(row.name, pattern) for row in self.rows):
                    raise ValueError(f"{option} {pattern}: no such row; known: {', '.join(r.name for r in self.rows)}")

    def left_out(self, row: Row) -> str | None:
        if row.always:
            return None
        if self.only and not any(fnmatchcase(row.name, pattern) for pattern in self.only):
            return "not in --only"
        return "in --skip" if any(fnmatchcase(row.name, pattern) for pattern in self.skip) else None


class Runner:
    def __init__(self, plan: Plan):
        self.plan = plan
        self.made_by = made_by(plan)
        self.results: list[Result] = []
        self._kept = plan.output / "results"
        self._began = time.monotonic()
        self._pace: list[tuple[float, float]] = []  # estimated and actual seconds of rows that ran

    def run(self) -> list[Result]:
        """Return all results in table order. Earlier results of the same code on the same machine are kept."""
        self._claim()
        with ProgressBars() as bars:
            task = bars.task("gpu, seconds as estimated", round(sum(map(self._estimate, self.plan.rows))))
            for row in self.plan.rows:
                if estimate := round(self._estimate(row)):
                    task.to(task.done, row.name)
                self.results.append(self._one(row))
                if estimate:
                    task.to(task.done + estimate, f"{row.name} {self.results[-1].verdict}")
        return self.results

    def _claim(self) -> None:
        """Create the folder, or recognise it. Raises ValueError where it is something else."""
        folder = self.plan.output
        try:
            if folder.is_dir() and any(folder.iterdir()) and not self._kept.is_dir():
                raise ValueError(f"--output {folder}: holds something else: name another folder")
            for part in ("results", "logs", "rows"):
                (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--output {folder}: cannot be written ({error.strerror})") from None

    def _one(self, row: Row) -> Result:
        before, left_out = self._before(row), self.plan.left_out(row)
        if before is not None and (left_out or not self.plan.again):
            return before
        if left_out is not None:
            return Result(row.name, row.proves, SKIPPED, left_out)
        if late := self._too_late(row):
            return Result(row.name, row.proves, SKIPPED, late)
        result = self._try(row)
        self._pace.append((row.seconds(self.plan.scale.device), result.seconds))
        kept = {"made_by": self.made_by, "result": asdict(result)}
        replace_file(self._kept / f"{row.name}.json", json.dumps(kept, indent=1))
        return result

    def _before(self, row: Row) -> Result | None:
        """Return an earlier start's result, if still valid: rows that failed or were skipped are tried again."""
        file = self._kept / f"{row.name}.json"
        if not file.is_file() or (row.always and not self._inputs.is_dir()):
            return None
        kept = json_object(file)
        same = kept["made_by"] == self.made_by and kept["result"]["verdict"] == OK
        return Result(**kept["result"]) if same else None

    @property
    def _inputs(self) -> Path:
        return self.plan.output / "inputs"

    def _estimate(self, row: Row) -> float:
        return 0.0 if self.plan.left_out(row) else row.seconds(self.plan.scale.device)

    def _too_late(self, row: Row) -> str | None:
        if self.plan.minutes is None or row.always:
            return None
        estimated, taken = (sum(column) for column in zip(*self._pace)) if self._pace else (1.0, 1.0)
        needed = self._estimate(row) * max(taken / max(estimated, 1e-9), 0.2)
        if time.monotonic() - self._began + needed <= 60 * self.plan.minutes:
            return None
        return f"does not fit in --minutes {self.plan.minutes:g}; the same command again resumes it"

    def _try(self, row: Row) -> Result:
        """Run one row; any error affects this row only."""
        began = time.monotonic()
        log = self.plan.output / "logs" / f"{row.name}.log"
        log.unlink(missing_ok=True)
        log.touch()
        folder = self.plan.output / "rows" / row.name
        earlier = {result.name: result.figures for result in self.results if result.verdict == OK}
        limit = row.limit(self.plan.scale.device)
        bench = Bench(
            self.plan.scale, self._inputs, folder, log, began + limit, self.plan.facts.get("gpus", []), earlier
        )
        result = Result(row.name, row.proves, OK)
        try:
            _empty(folder)
            found = row.check(bench)
            result.figure, result.figures, result.remedy = found.figure, found.figures, found.remedy
        except Skipped as reason:
            result.verdict, result.figure = SKIPPED, str(reason)
        except Failed as failed:
            result.verdict, result.figure, result.remedy = FAILED, str(failed), failed.remedy
            result.figures = failed.figures
        except Exception as error:  # a mistake in the check itself: the other rows run nevertheless
            bench.note(traceback.format_exc())
            result.verdict, result.figure = FAILED, f"{type(error).__name__}: {error}"
            result.remedy = "a mistake of the check itself, see its log"
        for checkpoints in folder.rglob("checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)  # gigabytes
        result.seconds = round(time.monotonic() - began, 1)
        result.log = log.read_text(errors="replace", encoding="utf-8").splitlines()[-LAST_LINES:]
        return result


def _empty(folder: Path) -> None:
    """Empty a row's folder. Raises Failed where that is impossible: of another user, or somebody still writes
    there."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
    except OSError as error:
        raise Failed(
            f"{folder}: cannot be emptied ({error.strerror})", "remove it, or name another --output"
        ) from None


def made_by(plan: Plan) -> dict[str, Any]:
    """Return the facts without which figures are worthless, and whose changes make them outdated."""
    gpus = [f"{gpu['name']}, {gpu['memory_gb']} GB" for gpu in plan.facts.get("gpus", [])]
    return {
        "device": plan.scale.device,
        "gpus": gpus,
        "driver": plan.facts.get("driver"),
        "driver_cuda": plan.facts.get("driver_cuda"),
        "torch_built_for": plan.facts.get("built_for"),
        "versions": environment.versions(),
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit of this code, with a digest of local changes; None without git."""
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, timeout=30).stdout
            for words in (["rev-parse", "HEAD"], ["diff", "HEAD"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.decode().strip() + (f" with changes {hashlib.sha256(changes).hexdigest()[:8]}" if changes else "")
