"""One case of the drill and its outcome: the damage, drawn by (seed, number), and whether a start on the damaged files
ended as it must, compared with the undisturbed run.

`same`: the weights of the undisturbed run, bit for bit. `left out`: other weights, and the run names every changed
sample; all other samples, and the steps without a changed one, are as before. `another`: a new run found a shard whose
size or ends differ; to it this is another shard, which it names, so the order of the samples differs; each sample is
as before, or named. `unseen`: a sample of such a shard changed and is not named, since the index was rebuilt without
sums. `refused`: exit code 2, with the damaged file or its folder named. Anything else is a failure."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from damage import reference
from damage.kinds import ANY, TARS, Kind, removed
from damage.reference import Reference
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.outside.json_text import json_lines

SAME, LEFT_OUT, ANOTHER, REFUSED, UNSEEN, FAILED = "same", "left out", "another", "refused", "unseen", "FAILED"
_OTHER_SHARD = re.compile(r"(\w+)\.tar: its size or its ends are not those")
_TRACEBACK = "Traceback (most recent call last)"
_CODE = re.compile(r"^exit code of (\w+): (-?\d+)$", re.M)
PARTS = {"run": 0.5, "shards": 0.3, "tower": 0.2}
KINDS: dict[str, dict[str, Kind]] = {"run": ANY, "shards": ANY | TARS, "tower": ANY}
_ANEW = 0.4  # of the cases with a corpus: start a new run, since a changed corpus ends the existing one


@dataclass
class Case:
    """Damage (`part`, its files, and its kind); whether the run starts from the beginning (`anew`); the outcome, and
    why it is wrong, if it is."""

    number: int
    part: str
    kind: str
    files: list[str] = field(default_factory=list)
    anew: bool = False
    outcome: str = ""
    wrong: str = ""

    def line(self) -> str:
        return f"case {self.number}: {self.part}: {self.kind}: {', '.join(self.files)}{' (anew)' * self.anew}"


def run_case(seed: int, number: int, folder: Path, expected: Reference) -> Case:
    """Copy FOLDER/reference, damage it, start the command again and evaluate; keep a failed case's files."""
    case, work = _made(seed, number, folder)
    commands = [reference.COMMAND, ["status", "run"]] if case.anew else [["check", "run"], reference.COMMAND]
    code = reference.start(work, commands, then=reference.write_clips if case.part == "shards" else None)
    case.outcome, case.wrong = evaluate(case, code, work, expected)
    if case.wrong:
        (work / "case.json").write_text(json.dumps(vars(case), indent=1), encoding="utf-8")
    else:
        removed(work)
    return case


def _made(seed: int, number: int, folder: Path) -> tuple[Case, Path]:
    random = np.random.default_rng((seed, number))
    work = folder / f"case-{number:05d}"
    part = str(random.choice(list(PARTS), p=list(PARTS.values())))
    kinds = KINDS[part]
    while True:  # a draw without effect is repeated
        removed(work)
        shutil.copytree(folder / "reference", work)
        case = Case(number, part, str(random.choice(list(kinds))), anew=part == "shards" and random.random() < _ANEW)
        before = _state(work / part)
        named = kinds[case.kind](random, work / part)
        if named is None or _state(work / part) == before:
            continue
        if not (case.anew and case.kind == "files swapped" and all(name.endswith(".tar") for name in named)):
            break  # shards that exchanged their names form a whole corpus, but another one
    case.files = named
    if case.anew:  # the skip list belongs to the run
        for path in (work / "run").iterdir():
            if path.name != "faults.json":
                removed(path)
    return case, work


def _state(folder: Path) -> dict[str, tuple]:
    """Return the state of a folder that damage can change: modes, kinds and contents."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        found[str(path)] = (mode, path.read_bytes() if path.is_file() and mode & 0o400 else b"")
    return found


def evaluate(case: Case, code: int, work: Path, expected: Reference) -> tuple[str, str]:
    """Return the outcome of a case whose start in the folder `work` ended with `code`, and why it is wrong ("" if it
    is not)."""
    output = (work / reference.OUTPUT).read_text(errors="replace", encoding="utf-8")
    codes = {name: int(number) for name, number in _CODE.findall(output)}
    code = codes.get("pretrain", code)
    last = "".join(output.strip().splitlines()[-1:])[:300]
    if code == reference.HANGS:
        return FAILED, "hangs"
    if _TRACEBACK in output:
        return FAILED, "traceback: " + last
    if code not in (0, 2):
        return FAILED, f"exit code {code}: " + last
    if code == 2:
        wrong = _unnamed(case, output, codes)
        return (FAILED, wrong) if wrong else (REFUSED, "")
    try:
        found = reference.weights_of(work)
        rows = {str(row["step"]): [row["loss"], row["data_digest"]] for row in read_metrics(work / "run")}
    except (OSError, ValueError) as error:
        return FAILED, f"exit code 0 without a whole run: {error}"
    others = set(_OTHER_SHARD.findall(output)) if case.anew else set()
    if case.part == "shards":
        wrong, unseen = _other_samples(work, case, others, expected, output)
        if wrong or unseen:
            return (FAILED, wrong) if wrong else (UNSEEN, "")
    if found == expected.weights:
        steps = [step for step in expected.steps if int(step) > reference.STEPS - reference.EVERY]
        without = _skipped(work).get(
            reference.LEFT_OUT, set()
        )  # of weight 0, and of other pixels where it is damaged, too
        parts = {step: 1 if int(step) in without else 2 for step in steps}  # the loss, the digest of the data
        apart = [step for step in steps if rows.get(step, [])[: parts[step]] != expected.steps[step][: parts[step]]]
        return (FAILED, f"rows of steps {apart} are others") if apart else (SAME, "")
    if others:
        return ANOTHER, ""
    if case.part != "shards" or not _newly_named(work, expected):
        return FAILED, "another result, and no sample is named as left out"
    if not case.anew and (wrong := _other_steps(rows, work, expected)):
        return FAILED, wrong
    return LEFT_OUT, ""


def _unnamed(case: Case, output: str, codes: dict[str, int]) -> str:
    last = output[output.rfind("tgm-scale pretrain:") :]
    names = {name for file in case.files for name in (file, Path(file).name, *_folders(case.part, file))}
    names |= {
        Path(file).name.removesuffix(".index.jsonl") + ".tar" for file in case.files if file.endswith(".index.jsonl")
    }
    if not any(name in last for name in names):
        return "refused, and the damaged file is not named: " + " ".join(last.split())[:300]
    return "refused, and `check` found nothing" if case.part == "run" and codes.get("check") == 0 else ""


def _folders(part: str, file: str) -> list[str]:
    """Return the folder of a file, where it identifies the file well enough."""
    parent = Path(file).parent
    if part == "run":
        return [] if parent == Path(".") else [f"run/{parent}"]
    return [part] if part == "tower" else []


def _skipped(work: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name in ("skipped.jsonl", "left_out.jsonl"):
        file = work / "run" / name
        for row in json_lines(file) if file.is_file() else []:
            if isinstance(row, dict) and isinstance(row.get("key"), str):
                found.setdefault(row["key"], set()).add(row.get("step", 0))
    return found


def _newly_named(work: Path, expected: Reference) -> set[str]:
    return {key for key in _skipped(work) if expected.clips.get(key, "") is not None and key != reference.LEFT_OUT}


def _other_samples(work: Path, case: Case, others: set[str], expected: Reference, output: str) -> tuple[str, bool]:
    """Return what is wrong with the corpus's samples, each of which must be as before, or named; and whether a sample
    of the shards `others` is neither."""
    clips, skipped, unseen = reference.clips_of(work), _skipped(work), False
    output = "".join(line for line in output.splitlines(keepends=True) if not _OTHER_SHARD.search(line))
    gone = {Path(file).name for file in case.files if Path(file).name in output}
    for name, digest in expected.clips.items():
        shard, _, _ = name.partition("/")
        if digest is None or clips.get(name) == digest:
            continue
        if name in skipped or shard in skipped or f"{shard}.tar" in gone:
            continue
        if clips.get(name) and shard in others:
            unseen = True
        elif clips.get(name):
            return f"{name} is another, and is not named", False
        elif name not in clips or case.anew:  # a resumed run makes two steps, and need not reach it
            return f"{name} is not used, and is not named", False
    shards = {Path(file).name.removesuffix(".tar") for file in case.files}
    known = set(expected.clips.values())
    for name in clips.keys() - expected.clips.keys():
        added = name.partition("/")[0] in shards and clips[name] in known
        if clips[name] is not None and not added and case.kind not in TARS:
            return f"{name} is a sample that nobody made", False
    return "", unseen


def _other_steps(rows: dict[str, list[float]], work: Path, expected: Reference) -> str:
    """Return which steps had other clips, though none of theirs was left out."""
    new = _newly_named(work, expected)
    touched = {step for key, steps in _skipped(work).items() if key in new for step in steps}
    first = reference.STEPS - reference.EVERY + 1
    wrong = [
        step
        for step in range(first, reference.STEPS + 1)
        if step not in touched and rows.get(str(step), [0, 0])[1] != expected.steps[str(step)][1]
    ]
    return f"the clips of steps {wrong} are others" if wrong else ""
