"""`tgm-scale check RUN`: whether a run folder is whole, and which checkpoint it can resume from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.checkpoints import beside, checkpoint, ema, folders, manifest
from tgm_scale.runs import events, origins, run_data, run_folder
from tgm_scale.runs.faults import FaultState
from tgm_scale.runs.metrics import rows_and_damaged
from tgm_scale.runtime.outside.json_text import json_file


class Findings:
    """Lines of the report and their severity: `code` is the exit code so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.code = 0
        self._good: dict[str, str] = {}  # by file

    def good(self, name: str, text: str) -> None:
        self._good[name] = f"ok       {name}: {text}"
        self.lines.append(self._good[name])

    def bad(self, name: str, text: str, stops: bool = False) -> None:
        """Add damage, and remove the file's ok line if it has one. stops: a start would refuse to resume."""
        if (line := self._good.pop(name, None)) is not None:
            self.lines.remove(line)
        self.lines.append(f"DAMAGED  {name}: {text}")
        self.code = max(self.code, 2 if stops else 1)


def check(folder: str) -> tuple[str, int]:
    """Return a report and the exit code: 0 whole, 1 damaged but resumable, 2 not resumable as it is. It covers every
    file that a start or `tgm-scale status` reads, and compares each checkpoint with its hashes.

    Raises ValueError for a folder that is not a run."""
    root = Path(folder)
    if not (root / "config.yaml").is_file() and not (root / "checkpoints").is_dir():
        raise ValueError(f"{folder}: no config.yaml and no checkpoints: {run_folder.no_run(root)}")
    found = Findings()
    if not (root / "config.yaml").is_file():
        found.bad("config.yaml", "missing", stops=True)
    _read(found, root / "config.yaml", configuration.read_tree, stops=True)
    _read(found, root / "data.json", lambda _: run_data.read(root), stops=True)
    _faults(found, root)
    _read(found, root / origins.FILE, lambda _: origins.read(root), stops=True)
    _read(found, root / "plan.json", json_file)
    _read(found, root / "environment.jsonl", lambda _: run_folder.starts(root))
    for file in sorted(root.glob("results*.json")):
        _read(found, file, json_file)
    for name in run_folder.misplaced(root):
        found.bad(name, "something else has the name of a run's file or folder: move it away", stops=True)
    for name in run_folder.changed(root):
        found.bad(name, "not as the last start wrote it")
    for name, why in _unwritable(root).items():
        found.bad(name, f"cannot be written by this user ({why}), and a start writes there", stops=True)
    _metrics(found, root)
    _ranks(found, root)
    used = _checkpoints(found, root / "checkpoints")
    why = run_folder.failure(root)
    for event in events.read(root):
        if event["event"] == run_folder.FAILED and event.get("why") != why:
            continue  # a later start did not fail in this way
        found.lines.append(
            f"earlier  {event['event']}: {event.get('checkpoint') or event.get('file') or event.get('why')}"
        )
    end = "cannot be resumed as it is: see what is named above" if found.code == 2 else _next(root, used)
    return "\n".join([*found.lines, f"{folder}: {end}"]), found.code


def _unwritable(folder: Path) -> dict[str, str]:
    """Return the folders and files of a run that a start writes and this user cannot, with the reasons. Their contents
    do not change."""
    found = {}
    for path in (folder, *(folder / name for name in run_folder.FOLDERS)):
        if path.is_dir():
            probe = path / run_folder.probe()
            try:
                probe.touch()
                probe.unlink()
            except OSError as error:
                found["." if path == folder else path.name] = str(error.strerror)
    for name in run_folder.FILES:
        file = folder / name
        if name.endswith(".jsonl") and file.is_file():  # others are replaced
            try:
                file.open("ab").close()
            except OSError as error:
                found[name] = str(error.strerror)
    return found


def _next(root: Path, used: str | None) -> str:
    tree = configuration.read_tree(root / "config.yaml") if (root / "config.yaml").is_file() else {}
    if "encoder" in tree:  # an evaluation, which has no checkpoints of its own
        done = sorted(file.name for file in root.glob("results*.json"))
        kept = "features that are kept in it are used again" if (root / "features").is_dir() else "features are made"
        return f"an evaluation: started again it evaluates again ({kept}); {', '.join(done) or 'no results yet'}"
    if used:
        return f"resumes from {used}"
    if aside := sorted(folder.name for folder in (root / "checkpoints").glob("damaged-step-*")):
        return f"starts over: no whole checkpoint, {', '.join(aside)} set aside"
    return "resumes from the start: no checkpoint yet"


def _faults(found: Findings, root: Path) -> None:
    try:
        _, damage = FaultState.load(root)
    except (OSError, ValueError) as error:
        found.bad("faults.json", str(error), stops=True)
        return
    if damage:
        found.bad("faults.json", damage)
    elif (root / "faults.json").is_file():
        found.good("faults.json", "readable")


def _read(found: Findings, file: Path, read: Callable[[Path], Any], stops: bool = False) -> None:
    if not file.is_file():
        return
    try:
        read(file)
        found.good(file.name, "readable")
    except (OSError, ValueError) as error:
        found.bad(file.name, str(error), stops)


def _metrics(found: Findings, root: Path) -> None:
    if not (root / "metrics.jsonl").is_file():
        if made := folders.steps_in(root / "checkpoints"):  # a start needs none of it
            found.lines.append(f"missing  metrics.jsonl: the rows up to step {made[-1]}")
        return
    rows, lines = rows_and_damaged(root)
    steps = [row["step"] for row in rows]
    # rows reach the disk before the checkpoint of their step
    last = max([*steps[-1:], *folders.steps_in(root / "checkpoints")], default=0)
    if lines:
        found.bad("metrics.jsonl", f"{lines} lines are no rows, in it or in metrics.jsonl.damaged")
    if steps != list(range(1, last + 1)):
        lacking = sorted(set(range(1, last + 1)) - set(steps))
        found.bad("metrics.jsonl", f"steps lack, come twice or out of order; lacking: {lacking[:5]}")
    elif not lines:
        found.good("metrics.jsonl", f"{len(steps)} steps")


def _ranks(found: Findings, root: Path) -> None:
    files = sorted((root / "ranks").glob("[0-9]*"))
    for file in files:
        try:
            json_file(file)
        except (OSError, ValueError) as error:
            found.bad(f"ranks/{file.name}", str(error))
    try:
        wanted = run_folder.read_plan(root)["world_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # already reported for plan.json
    if files and len(files) < wanted:
        found.bad("ranks", f"{len(files)} ranks left word, the plan has {wanted}")


def _checkpoints(found: Findings, root: Path) -> str | None:
    used, whole, ours = None, 0, 0
    belongings: list[tuple[str, Path]] = []  # a whole checkpoint, and a file next to it
    for folder in sorted(root.glob("*")) if root.is_dir() else []:
        if folders.step_of(folder) is None:
            found.lines.append(f"ignored  {folder.name}: not a checkpoint's name")
            continue
        ours += 1
        try:
            reader = checkpoint.Reader(folder)
            reader.verify()
        except manifest.NewerFormat as error:  # a start refuses it, and takes none before it
            found.lines.append(f"newer    {folder.name}: {error}")
            found.code, whole = 2, whole + 1
            continue
        except (OSError, ValueError) as error:
            found.bad(folder.name, str(error))
            continue
        size = sum(entry["bytes"] for entry in reader.manifest["files"])
        found.good(folder.name, f"{len(reader.manifest['files'])} files, {size:,} bytes compared with their hashes")
        used, whole = folder.name, whole + 1
        belongings += [(folder.name, file) for file in _beside(reader)]
    for name, file in belongings:
        try:
            if not file.is_file():
                raise ValueError(f"missing: it belongs to {name}")
            beside.read(file)
            found.good(file.name, f"whole, belongs to {name}")
        except (OSError, ValueError) as error:
            found.bad(file.name, str(error), stops=name == used)
    if ours and not whole:
        found.bad("checkpoints", "every one is damaged", stops=True)
    return used


def _beside(reader: checkpoint.Reader) -> list[Path]:
    """Return the files next to a checkpoint that a start from it reads."""
    objective = (reader.manifest.get("config") or {}).get("objective") or {}
    average = ema.averaged_file(reader)
    found = [] if average is None else [average]
    if any(weight and name in beside.KEEPING for name, weight in (objective.get("terms") or {}).items()):
        found.append(beside.file_of(reader.folder.absolute().parents[1], beside.TERMS, reader.progress.step))
    return found
