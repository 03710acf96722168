"""Whether a start on damaged files ended as it must, by the undisturbed run.

`same`: the weights of the undisturbed run to the bit. `left out`: they are others, and every sample that is not what
it was is named by the run; all the others, and the steps without the former, are what they were. `another`: a run that
begins, on a shard whose size or ends are others: to a run it is another shard, which is said by name, and so the order
of the samples is another; each is what it was, or named. `unseen`: one of such a shard is not, and is not named: its
index was made anew, without sums. `refused`: exit code 2, with the damaged file or its folder named. Whatever else
comes is a failure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from damage import ground
from damage.contents import TARS
from damage.ground import STEPS, Truth
from damage.start import HANGS, SAID
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.outside.json_text import json_lines

SAME, LEFT_OUT, ANOTHER, REFUSED, UNSEEN, FAILED = "same", "left out", "another", "refused", "unseen", "FAILED"
_OTHER_SHARD = re.compile(r"(\w+)\.tar: its size or its ends are not those")
_TRACEBACK = "Traceback (most recent call last)"
_CODE = re.compile(r"^exit code of (\w+): (-?\d+)$", re.M)


@dataclass(frozen=True)
class Case:
    """Of a corpus: how which files were damaged, whether the run begins, and the shards that are others to it."""

    kind: str
    files: list[str]
    anew: bool
    others: set[str]


def judged(part: str, kind: str, files: list[str], anew: bool, code: int, work: Path, truth: Truth) -> tuple[str, str]:
    """The outcome, and why it is wrong ("" where it is not)."""
    said = (work / SAID).read_text(errors="replace")
    codes = {name: int(number) for name, number in _CODE.findall(said)}
    code = codes.get("pretrain", code)
    last = "".join(said.strip().splitlines()[-1:])[:300]
    if code == HANGS:
        return FAILED, "hangs"
    if _TRACEBACK in said:
        return FAILED, "traceback: " + last
    if code not in (0, 2):
        return FAILED, f"exit code {code}: " + last
    if code == 2:
        wrong = _unnamed(part, files, said, codes)
        return (FAILED, wrong) if wrong else (REFUSED, "")
    try:
        found = ground.weights_of(work)
        rows = {str(row["step"]): [row["loss"], row["data_digest"]] for row in read_metrics(work / "run")}
    except (OSError, ValueError) as error:
        return FAILED, f"exit code 0 without a whole run: {error}"
    others = set(_OTHER_SHARD.findall(said)) if anew else set()
    if part == "shards":
        wrong, unseen = _other_samples(work, Case(kind, files, anew, others), truth, said)
        if wrong or unseen:
            return (FAILED, wrong) if wrong else (UNSEEN, "")
    if found == truth.weights:
        steps = [step for step in truth.steps if int(step) > ground.STEPS - ground.EVERY]
        without = _skipped(work).get(
            ground.LEFT_OUT, set()
        )  # of weight 0, and of other pixels where it is damaged, too
        parts = {step: 1 if int(step) in without else 2 for step in steps}  # the loss, the digest of the data
        apart = [step for step in steps if rows.get(step, [])[: parts[step]] != truth.steps[step][: parts[step]]]
        return (FAILED, f"rows of steps {apart} are others") if apart else (SAME, "")
    if others:
        return ANOTHER, ""
    if part != "shards" or not _newly_named(work, truth):
        return FAILED, "another result, and nothing was said to be left out"
    if not anew and (wrong := _other_steps(rows, work, truth)):
        return FAILED, wrong
    return LEFT_OUT, ""


def _unnamed(part: str, files: list[str], said: str, codes: dict[str, int]) -> str:
    """Why a refusal is wrong."""
    last = said[said.rfind("tgm-scale pretrain:") :]
    names = {name for file in files for name in (file, Path(file).name, *_folders(part, file))}
    names |= {Path(file).name.removesuffix(".index.jsonl") + ".tar" for file in files if file.endswith(".index.jsonl")}
    if not any(name in last for name in names):
        return "refused, and the damaged file is not named: " + " ".join(last.split())[:300]
    return "refused, and `check` found nothing" if part == "run" and codes.get("check") == 0 else ""


def _folders(part: str, file: str) -> list[str]:
    """The folder of a file, where it says enough."""
    parent = Path(file).parent
    if part == "run":
        return [] if parent == Path(".") else [f"run/{parent}"]
    return [part] if part == "tower" else []


def _skipped(work: Path) -> dict[str, set[int]]:
    """The samples that the run names as left out, with the steps."""
    found: dict[str, set[int]] = {}
    for name in ("skipped.jsonl", "left_out.jsonl"):
        file = work / "run" / name
        for row in json_lines(file) if file.is_file() else []:
            if isinstance(row, dict) and isinstance(row.get("key"), str):
                found.setdefault(row["key"], set()).add(row.get("step", 0))
    return found


def _newly_named(work: Path, truth: Truth) -> set[str]:
    return {key for key in _skipped(work) if truth.clips.get(key, "") is not None and key != ground.LEFT_OUT}


def _other_samples(work: Path, case: Case, truth: Truth, said: str) -> tuple[str, bool]:
    """What is wrong with the samples that the corpus has now: each is what it was, or is named; and whether one of
    another shard is not."""
    clips, skipped, unseen = ground.clips_of(work), _skipped(work), False
    said = "".join(line for line in said.splitlines(keepends=True) if not _OTHER_SHARD.search(line))
    gone = {Path(file).name for file in case.files if Path(file).name in said}
    for name, digest in truth.clips.items():
        shard, _, _ = name.partition("/")
        if digest is None or clips.get(name) == digest:
            continue
        if name in skipped or shard in skipped or f"{shard}.tar" in gone:
            continue
        if clips.get(name) and shard in case.others:
            unseen = True
        elif clips.get(name):
            return f"{name} is another, and is not named", False
        elif name not in clips or case.anew:  # a run that goes on makes two steps, and need not come to it
            return f"{name} is not used, and is not named", False
    shards = {Path(file).name.removesuffix(".tar") for file in case.files}
    known = set(truth.clips.values())
    for name in clips.keys() - truth.clips.keys():
        added = name.partition("/")[0] in shards and clips[name] in known
        if clips[name] is not None and not added and case.kind not in TARS:
            return f"{name} is a sample that nobody made", False
    return "", unseen


def _other_steps(rows: dict[str, list[float]], work: Path, truth: Truth) -> str:
    """Which steps had other clips, though none of theirs was left out."""
    new = _newly_named(work, truth)
    touched = {step for key, steps in _skipped(work).items() if key in new for step in steps}
    first = STEPS - ground.EVERY + 1
    wrong = [
        step
        for step in range(first, STEPS + 1)
        if step not in touched and rows.get(str(step), [0, 0])[1] != truth.steps[str(step)][1]
    ]
    return f"the clips of steps {wrong} are others" if wrong else ""
