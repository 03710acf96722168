"""One case of the drill: what is damaged and how, drawn by (seed, number), then a start and its outcome."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from damage import reference
from damage.contents import CONTENTS, TARS
from damage.kinds import GENERAL, Kind
from damage.outcome import Case, evaluate
from damage.reference import COMMAND, Reference
from damage.start import start

PARTS = {"run": 0.5, "shards": 0.3, "tower": 0.2}
KINDS: dict[str, dict[str, Kind]] = {
    "run": GENERAL | CONTENTS,
    "shards": GENERAL | CONTENTS | TARS,
    "tower": GENERAL | CONTENTS,
}
_ANEW = 0.4  # of the cases of a corpus: a new run, since a changed corpus ends the run before


def run_case(seed: int, number: int, folder: Path, expected: Reference) -> Case:
    """Copy FOLDER/reference, damage it, start the command again and evaluate; a failed case's files are kept."""
    case, work = _made(seed, number, folder)
    commands = [COMMAND, ["status", "run"]] if case.anew else [["check", "run"], COMMAND]
    code = start(work, commands, then=reference.write_clips if case.part == "shards" else None)
    case.outcome, case.wrong = evaluate(case, code, work, expected)
    if case.wrong:
        (work / "case.json").write_text(json.dumps(vars(case), indent=1))
    else:
        _removed(work)
    return case


def _made(seed: int, number: int, folder: Path) -> tuple[Case, Path]:
    random = np.random.default_rng((seed, number))
    work = folder / f"case-{number:05d}"
    part = str(random.choice(list(PARTS), p=list(PARTS.values())))
    kinds = KINDS[part]
    while True:  # a draw that can do nothing is drawn again
        _removed(work)
        shutil.copytree(folder / "reference", work)
        case = Case(number, part, str(random.choice(list(kinds))), anew=part == "shards" and random.random() < _ANEW)
        before = _state(work / part)
        named = kinds[case.kind](random, work / part)
        if named is None or _state(work / part) == before:
            continue
        if not (case.anew and case.kind == "files swapped" and all(name.endswith(".tar") for name in named)):
            break  # shards that have exchanged their names are a whole corpus, another one
    case.files = named
    if case.anew:  # the skip list is the run's
        for path in (work / "run").iterdir():
            if path.name != "faults.json":
                _removed(path)
    return case, work


def _state(folder: Path) -> dict[str, tuple]:
    """What may be damaged of a folder: modes, kinds and contents."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        found[str(path)] = (mode, path.read_bytes() if path.is_file() and mode & 0o400 else b"")
    return found


def _removed(work: Path) -> None:
    """Also where modes are in the way."""
    if not work.is_dir():
        work.unlink(missing_ok=True)
        return
    work.chmod(0o700)
    for path in sorted(work.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(work)
