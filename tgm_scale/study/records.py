"""Records of a study's commands, each in its own folder: FOLDER/study.json."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tgm_scale.assembly.corpora import corpus_metadata, open_corpora
from tgm_scale.config import Config, RunSettings, comparable, digest_tree
from tgm_scale.runs import run_data, run_folder
from tgm_scale.runtime.files import replace_file
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.ownership import liveness
from tgm_scale.runtime.terminal import tree_without_secrets
from tgm_scale.study.arms import PRETRAIN, Job, Unit

FILE = "study.json"
FIGURES = ("results.json", "predictions.jsonl")  # of an evaluation
DONE, FAILED, STOPPED = "done", "failed", "stopped"


@dataclass(frozen=True)
class Record:
    """Outcome of a command.

    seconds: over all its starts; why: the reason of a failure; config: what determines its metrics, for an evaluation
    with that of its pretraining; command: of tgm-scale, "" in older records."""

    state: str
    seconds: float
    why: str
    config: dict[str, Any]
    command: str = ""


def read(job: Job) -> Record | None:
    """Return the record; None if the command never ended, the record is another command's, or the file is damaged."""
    found = _any(job)
    ours = found is not None and _alike(found.config, job) and found.command in ("", job.arguments[0])
    return found if ours else None


def _alike(config: dict[str, Any], job: Job) -> bool:
    there, here = _within(config, job), _decides(job)
    if isinstance(there, dict):
        whole = {name: of for name, of in there.items() if isinstance(of, dict) and name in here}
        there = there | {name: comparable(of, here[name]) for name, of in whole.items()}
    return there == here


def _any(job: Job) -> Record | None:
    """Return the record whatever its configuration and command; None if it is missing or damaged."""
    try:
        found = Record(**json_object(job.folder / FILE, finite=True))
    except (OSError, ValueError, TypeError):
        return None
    if type(found.seconds) not in (int, float) or type(found.why) is not str:
        return None
    return found


def _decides(job: Job) -> dict[str, Any]:
    """Return the configuration that determines a command's metrics, with the places of its data.

    A run keeps these in its data.json; here they allow a study to find what is done without opening data, and a
    command restarted on the same data elsewhere ends at once."""
    found = {name: digest_tree(of) | {"places": _places(of)} for name, of in _configs(job).items()}
    return _within(tree_without_secrets(found), job)


def _within(decides: dict[str, Any], job: Job) -> dict[str, Any]:
    """Return the configuration with the evaluated run named by its place in the study: its folder may have moved."""
    if job.origin is None or not isinstance(decides, dict) or not isinstance(decides.get("own"), dict):
        return decides
    run, found = Path(job.origin.run.dir).parts[-3:], dict(decides)
    for section, key in (("encoder", "checkpoint"), ("train", "init_from")):
        of = found["own"].get(section)
        if isinstance(of, dict) and Path(str(of.get(key))).parts[-3:] == run:
            found["own"] = found["own"] | {section: of | {key: "/".join(run)}}
    return found


def _configs(job: Job) -> dict[str, RunSettings]:
    return {"own": job.config} | ({"pretraining": job.origin} if job.origin is not None else {})


def _places(config: RunSettings) -> dict[str, Any]:
    data = config.model_dump(mode="json")["data"]
    return {key: data[key] for key in ("shards", "synthetic", "root") if data.get(key) is not None}


def write(job: Job, state: str, seconds: float, why: str = "") -> None:
    """Write the record, adding the seconds of this start to those before."""
    before = read(job)
    total = seconds + (before.seconds if before and before.state == STOPPED else 0.0)
    record = Record(state, total, why, _decides(job), job.arguments[0])
    replace_file(job.folder / FILE, json.dumps(asdict(record), indent=1) + "\n")


def is_done(job: Job) -> bool:
    """Return whether the command succeeded and, for an evaluation, its results exist."""
    found = read(job)
    there = job.what == PRETRAIN or all((job.folder / name).is_file() for name in FIGURES)
    return found is not None and found.state == DONE and there


def refuse_strays(unit: Unit) -> None:
    """Raise ValueError for evaluations whose pretraining's folder is gone.

    A new pretraining would have other weights than those that were evaluated."""
    run = unit.jobs[0]
    if run.what != PRETRAIN or (run.folder / "config.yaml").is_file():
        return
    if there := [job.what for job in unit.jobs[1:] if (job.folder / FILE).is_file()]:
        raise ValueError(
            f"{run.folder.parent}: holds {', '.join(there)}, and no run in {PRETRAIN}: restore it, or move "
            f"{run.folder.parent} away to begin all of it again"
        )


def refuse_running(units: Iterable[Unit]) -> None:
    """Raise ValueError for a command on this host that outlived the call that started it, for example a killed one.

    Started again it would find its folder in use. A command on another host is waited for, as at a run's start."""
    for job in (job for unit in units for job in unit.jobs if not is_done(job)):
        alive = liveness(job.folder)
        if alive is not None and alive.living and alive.owner and alive.owner.host == platform.node():
            raise ValueError(
                f"{job.folder}: a command that an earlier call of this study began still runs ({alive.owner}): end "
                "it, which saves a checkpoint, or wait for its end; the same call then goes on"
            )


def refuse_other_runs(units: Iterable[Unit]) -> None:
    """Raise ValueError for runs and evaluations that were started with other values.

    They would be refused one by one as they resume, and their metrics would be lost from the tables. The error names
    the keys with both values, or the data that differ."""
    of: dict[str, list[Job]] = {}
    left = [job for unit in units for job in unit.jobs if not is_done(job)]
    for job in left:
        for found in [*_other_command(job), *run_folder.differences(job.config)]:
            of.setdefault(found, []).append(job)
    if of:
        said = "; ".join(f"{found} ({_named(jobs)})" for found, jobs in of.items())
        raise ValueError(
            f"this study's folder holds runs of other values: {said}: give the study another run.dir, or the values "
            "and the run.dir of before, or the masker, objective or evaluation that was changed another name"
        )
    for job in left:
        _refuse_other_data(job)


def _other_command(job: Job) -> list[str]:
    """Return the difference in the command, as `run_folder.differences`: kNN and probes have the same keys."""
    there = found.command if (found := _any(job)) is not None else ""
    here = job.arguments[0]
    return [f"study.evaluations.{job.what}.command: {there!r} there, {here!r} here"] if there not in ("", here) else []


def _refuse_other_data(job: Job) -> None:
    """Raise ValueError if a pretraining's data changed; only if its record does not match, since data may have
    moved."""
    config = job.config
    if not isinstance(config, Config) or read(job) is not None or _any(job) is None:
        return
    if config.data.synthetic is None or Path(config.data.corpora()[0].path).exists():
        run_data.refuse_other(job.folder, corpus_metadata(open_corpora(config.data, captions=False)))


def _named(jobs: list[Job]) -> str:
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return f"{jobs[0].folder}{more}"


class Times:
    """Durations of commands, estimated from finished ones: of the same arm, else of the same kind."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._of: dict[tuple[str, str], list[float]] = {}
        for unit in units:
            for job in unit.jobs:
                if (found := read(job)) is not None and is_done(job):
                    self.add(job, found.seconds)

    def add(self, job: Job, seconds: float) -> None:
        for arm in (job.arm.name, ""):
            self._of.setdefault((arm, job.what), []).append(seconds)

    def left(self, unit: Unit) -> float | None:
        """Return the seconds that remain of a unit; None if a kind of command has not ended yet."""
        return self.left_of(unit.jobs)

    def left_of(self, jobs: Iterable[Job]) -> float | None:
        """Return the seconds that remain of these commands, as `left`."""
        total = 0.0
        for job in jobs:
            found = read(job)
            if is_done(job):
                continue
            known = self._of.get((job.arm.name, job.what)) or self._of.get(("", job.what))
            if known is None:
                return None
            spent = found.seconds if found is not None and found.state == STOPPED else 0.0
            total += max(0.0, fmean(known) - spent)
        return total
