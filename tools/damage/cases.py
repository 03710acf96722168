"""One case of the drill: what is damaged and how, which is drawn by (seed, number), the start, and its outcome."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from damage import ground
from damage.contents import CONTENTS, TARS
from damage.ground import COMMAND, Truth
from damage.judge import judged
from damage.kinds import GENERAL, Kind
from damage.start import start

PARTS = {"run": 0.5, "shards": 0.3, "tower": 0.2}
KINDS: dict[str, dict[str, Kind]] = {
    "run": GENERAL | CONTENTS,
    "shards": GENERAL | CONTENTS | TARS,
    "tower": GENERAL | CONTENTS,
}
_ANEW = 0.4  # of the cases of a corpus: the run begins, for a corpus that is not what it was ends the one before


@dataclass
class Case:
    """What was damaged (`part`, and the files in it) and how; what came of it, and why that is wrong, if it is."""

    number: int
    part: str
    kind: str
    files: list[str] = field(default_factory=list)
    anew: bool = False
    outcome: str = ""
    wrong: str = ""

    def line(self) -> str:
        return f"case {self.number}: {self.part}: {self.kind}: {', '.join(self.files)}{' (anew)' * self.anew}"


def run_case(seed: int, number: int, folder: Path, truth: Truth) -> Case:
    """Copy FOLDER/ground, damage it, start the command again and judge; a failed case's files are kept."""
    case, work = _made(seed, number, folder)
    commands = [COMMAND, ["status", "run"]] if case.anew else [["check", "run"], COMMAND]
    code = start(work, commands, then=ground.write_clips if case.part == "shards" else None)
    case.outcome, case.wrong = judged(case.part, case.kind, case.files, case.anew, code, work, truth)
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
        shutil.copytree(folder / "ground", work)
        case = Case(number, part, str(random.choice(list(kinds))), anew=part == "shards" and random.random() < _ANEW)
        before = _state(work / part)
        named = kinds[case.kind](random, work / part)
        if named is None or _state(work / part) == before:
            continue
        if not (case.anew and case.kind == "files swapped" and all(name.endswith(".tar") for name in named)):
            break  # shards that have exchanged their names are a whole corpus, another one
    case.files = named
    if case.anew:  # the list of what to leave out is the run's, too
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
