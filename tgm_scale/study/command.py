"""`tgm-scale study`: arms pretrained, evaluated and compared. Finished commands are skipped."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from tgm_scale import config as configuration
from tgm_scale.config import StudyConfig
from tgm_scale.runtime.files import check_folder, replace_file
from tgm_scale.runtime.ownership import liveness, owned
from tgm_scale.runtime.progress import clock
from tgm_scale.runtime.terminal import message
from tgm_scale.study import page, records
from tgm_scale.study.arms import Unit, units
from tgm_scale.study.launching import Budget, Launcher, budget, slots
from tgm_scale.study.outcomes import damaged_figures
from tgm_scale.study.readiness import prepare, unlike_clips
from tgm_scale.study.summary import summarise, tables

_PART_DONE = "part {} of {} is done; tgm-scale study --tables makes the tables of all"


def study(options: argparse.Namespace) -> int:
    """Run the study and return the exit code: 0, or 1 if a command failed or left damaged results. Raises
    ValueError."""
    tree = configuration.read_tree(options.config, options.overrides)
    config = configuration.checked(tree, options.config, StudyConfig, options.overrides)
    check_folder("run.dir", Path(config.run.dir))
    found = units(config)
    if not 0 <= options.task < options.tasks:
        raise ValueError(f"--task {options.task}: wanted a number from 0 to {options.tasks - 1}, below --tasks")
    records.refuse_other_runs(found)
    if options.tables:
        return _write(config, found, [])
    own = found[options.task :: options.tasks]
    hours = config.study.hours
    seconds = None if hours is None else 3600 * hours
    if options.dry_run:
        parallel = config.study.parallel or 1
        print(message(plan(own, budget(_open(own), records.Times(found), parallel, seconds), commands=True)))
        _say(unlike_clips(own))
        try:
            for unit in own:
                records.refuse_strays(unit)
            _prepare(own, config.study.processes, options.config, make=False)
        except ValueError as mistake:
            print(message(f"warning: as things are, its start would be refused: {mistake}"))
        return 0
    places = slots(config.study)
    for unit in own:
        records.refuse_strays(unit)
    _prepare(own, config.study.processes, options.config)
    launcher, calls = Launcher(own, places, hours), Path(config.run.dir) / "calls"
    with owned(calls / f"{options.task}-of-{options.tasks}"):
        _refuse_other_tasks(calls, options.tasks)
        records.refuse_running(own)
        print(message(plan(own, budget(_open(own), records.Times(found), len(places), seconds))), flush=True)
        _say(unlike_clips(own))
        launcher.run()
    if options.tasks > 1:
        damaged = damaged_figures([job for unit in own for job in unit.jobs])
        _say([*damaged, _PART_DONE.format(options.task, options.tasks)])
        return _code(own) or int(bool(damaged))
    return _write(config, found, launcher.left_out)


def _prepare(own: list[Unit], processes: int, file: str, make: bool = True) -> None:
    """Call `prepare`; if one of the project's own studies lacks data, refer to the first lines of its file."""
    try:
        prepare(own, processes, make)
    except ValueError as mistake:
        if (
            "no such" in str(mistake)
            and configuration.CONFIGS in configuration.packaged(file, ".yaml").absolute().parents
        ):
            raise ValueError(f"{mistake}; the first lines of {file} say what it needs") from None
        raise


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(message(line), flush=True)


def _refuse_other_tasks(calls: Path, tasks: int) -> None:
    """Raise ValueError while a call is alive that divides the same runs among another number of tasks."""
    for other in sorted(calls.glob("*-of-*")):
        if not other.name.endswith(f"-of-{tasks}") and (alive := liveness(other)) is not None and alive.living:
            task, _, of = other.name.partition("-of-")
            raise ValueError(
                f"--tasks {tasks}: a call with --task {task} --tasks {of} runs ({alive.owner}), and has some of "
                f"the same runs: wait for its end, or end it, or give --tasks {of}"
            )


def _open(own: Sequence[Unit]) -> list[Unit]:
    return [unit for unit in own if not all(map(records.is_done, unit.jobs))]


def plan(own: Sequence[Unit], found: Budget, commands: bool = False) -> str:
    """Return what remains to be done and the estimated time; with `commands`, every unfinished command."""
    arms = dict.fromkeys(unit.arm.name for unit in own)
    jobs = [job for unit in own for job in unit.jobs]
    done = sum(map(records.is_done, jobs))
    lines = [f"{len(arms)} arms: {', '.join(arms)}", f"{len(own)} runs of {len(jobs)} commands, {done} of them done"]
    if found.seconds is None:
        lines.append("time: known when the first run has ended")
    elif found.begun:
        lines.append(f"time: about {clock(found.seconds)}, by the commands that have ended")
    if found.left_out:
        named = ", ".join(f"{unit.arm.name} seed {unit.seed}" for unit in found.left_out)
        lines.append(f"left out, since study.hours is too little: {named}")
    if commands:
        for job in (job for unit in found.begun for job in unit.jobs if not records.is_done(job)):
            lines.append(shlex.join(["tgm-scale", *job.arguments]))
    return "\n".join(lines)


def _write(config: StudyConfig, found: Sequence[Unit], left_out: Sequence[Unit]) -> int:
    """Write summary.json and report.html into the study's folder; return the exit code."""
    folder = Path(config.run.dir)
    summary = summarise(config, found, left_out)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    replace_file(folder / "report.html", page.page(config, found, summary))
    print(message(tables(summary)))
    if left_out:
        print(message("left out: " + ", ".join(f"{unit.arm.name} seed {unit.seed}" for unit in left_out)))
    print(message(f"\n{folder / 'report.html'}  (figures: {folder / 'summary.json'})"))
    return _code(found) or int(bool(summary["damaged"]))


def _code(found: Sequence[Unit]) -> int:
    ended = [record for unit in found for job in unit.jobs if (record := records.read(job)) is not None]
    return int(any(record.state == records.FAILED for record in ended))
