"""Looking at run folders: how one stands, and where two part."""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from tgm_scale import config as configuration
from tgm_scale.checkpoints import checkpoint, manifest
from tgm_scale.runs import events, run_data, run_folder, vital
from tgm_scale.runs.bottleneck import explain, from_metrics, read_ranks
from tgm_scale.runs.metrics import count_damaged, figure, read_metrics
from tgm_scale.runs.waiting import duration, waiting
from tgm_scale.runtime.outside.json_text import json_object

_RECENT = 50  # steps that the speed is the median of
_STARTS_SHOWN = 5


def status(folder: str) -> str:
    """One screen about a run: whether it is at work, or else the command that goes on; step, speed, time left, last
    checkpoint, restarts, skipped samples, bottleneck, and who waits for a shard.

    Raises ValueError for a folder that is no run."""
    root = Path(folder)
    waits = {"waiting": found} if (found := waiting(root)) else {}
    if waits and not ((root / "metrics.jsonl").is_file() and read_metrics(root)):  # a start has not written more yet
        return _aligned({"run": folder, "step": "none yet", **waits})
    tree = _tree(folder)
    _refuse_damaged(root, tree)
    if "encoder" in tree:
        return _aligned({"run": f"{folder}, frozen features of {tree['encoder']['checkpoint']}", **_results(root)})
    if not (root / "plan.json").is_file():
        why = run_folder.failure(root) or "its output says why"
        raise ValueError(f"{folder}: the run did not come to its first step: {why}")
    plan = run_folder.read_plan(root)
    starts = run_folder.starts(root)
    rows = read_metrics(root) if (root / "metrics.jsonl").is_file() else []
    newest = checkpoint.latest(root / "checkpoints")
    kind = "finetuning" if "finetune" in tree else (tree.get("masking") or {}).get("recipe", "pretraining")
    made = rows[-1]["step"] if rows else 0
    results = _results(root)
    saved = newest is not None and manifest.step_of(newest) == made
    finished = made == plan["steps"] and saved and (kind != "finetuning" or bool(results))
    lines = {
        "run": f"{folder}, {tree['model']['size']}, {kind}",
        **vital.lines(root, tree, plan["world_size"], starts, finished),
        "step": f"{made} of {plan['steps']} ({made / plan['steps']:.0%})",
        **(_progress(root, tree, plan, rows) if rows else {}),
        "checkpoint": newest.name if newest else "none yet",
        "starts": _starts(starts),
        **waits,
        **_damage(root),
        **_left_out(root),
        **results,
    }
    return _aligned(lines)


def _progress(root: Path, tree: dict[str, Any], plan: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, str]:
    """What the steps so far tell; of rows that are not as they were written, nothing."""
    last, recent = rows[-1], [row for row in rows[-_RECENT:] if _is_whole(row)]
    if not recent:
        return {}
    seconds = median(row["step_seconds"] for row in recent)
    ranks = read_ranks(root, plan["world_size"])
    left = (plan["steps"] - last["step"]) * seconds
    age = time.time() - (root / "metrics.jsonl").stat().st_mtime
    return {
        "samples": f"{recent[-1]['samples']}, skipped {recent[-1]['skipped_samples']}"
        + (", see skipped.jsonl" if recent[-1]["skipped_samples"] else ""),
        "speed": f"{tree['train']['global_batch_size'] / seconds:.1f} clips/s, {seconds:.2f} s a step",
        "left": "done" if last["step"] == plan["steps"] else duration(left),
        "last step": f"{duration(age)} ago",
        "loss": f"{figure(last['loss'])} (first {figure(rows[0]['loss'])})",
        "bottleneck": explain(ranks or from_metrics(recent), tree["data"]["workers"]),
    }


def _is_whole(row: dict[str, Any]) -> bool:
    figures = [row.get(name) for name in ("step_seconds", "data_seconds", "guidance_seconds")]
    counts = [row.get(name) for name in ("samples", "skipped_samples")]
    return (
        all(isinstance(value, (int, float)) and math.isfinite(value) for value in figures)
        and all(isinstance(value, int) for value in counts)
        and row["step_seconds"] > 0
    )


def _aligned(lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:>{width}}  {text}" for name, text in lines.items())


def _tree(folder: str) -> dict[str, Any]:
    """The sections of a run's configuration, of whatever kind. Raises ValueError for a folder that is no run."""
    if not (Path(folder) / "config.yaml").is_file():
        raise ValueError(f"{folder}: no config.yaml: not a run folder")
    return configuration.read_tree(Path(folder) / "config.yaml")


class _Run(BaseModel):
    dir: str


class _Model(BaseModel):
    size: str


class _Data(BaseModel):
    workers: int


class _Train(BaseModel):
    global_batch_size: int = Field(ge=1)


class _Masking(BaseModel):
    recipe: str


class _Training(BaseModel):
    """What is read of the configuration of a training."""

    run: _Run
    model: _Model
    data: _Data
    train: _Train
    masking: _Masking | None = None


class _Encoder(BaseModel):
    checkpoint: str


class _Frozen(BaseModel):
    """And of one that judges features."""

    encoder: _Encoder


def _refuse_damaged(root: Path, tree: dict[str, Any]) -> None:
    """Raise ValueError where a section or key that status reads is lacking, or of another kind."""
    kind = _Frozen if "encoder" in tree else _Training
    try:
        kind.model_validate(tree, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{root / 'config.yaml'}: damaged: {where}: {first['msg']}; restore it") from None


def _left_out(root: Path) -> dict[str, str]:
    """What was left out of the data when the run started."""
    file = root / "data.json"
    corpora = run_data.read(root) if file.is_file() else []
    said = [
        f"{corpus['name']}: " + ", ".join(f"{count} {reason}" for reason, count in corpus["left_out"].items())
        for corpus in corpora
        if isinstance(corpus.get("left_out"), dict) and corpus["left_out"]
    ]
    return {"left out": "; ".join(said) + ", see left_out.jsonl"} if said else {}


def _results(root: Path) -> dict[str, str]:
    """The figures of each method that was judged in this folder."""
    lines = {}
    for file in sorted(root.glob("results*.json")):
        found = json_object(file)
        try:
            figures = ", ".join(f"{name} {value['value']:.4f}" for name, value in found["figures"].items())
            left_out = ", ".join(f"{count} {reason}" for reason, count in found["left_out"].items())
            lines[str(found["method"])] = figures + (f"; left out: {left_out}" if left_out else "")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{file}: damaged: wanted method, figures, left_out; restore it, or remove it") from None
    return lines or {"results": "none yet"} if not (root / "metrics.jsonl").is_file() else lines


def _damage(root: Path) -> dict[str, str]:
    """Checkpoints that starts have set aside, with the reasons, and the lines of metrics.jsonl that are no rows."""
    said = [
        f"{event.get('checkpoint')} at a start from step {event.get('step')}: {event.get('why')}"
        for event in events.read(root)
        if event["event"] == "checkpoint_damaged"
    ]
    if lines := count_damaged(root):
        said.append(f"{lines} {'line' if lines == 1 else 'lines'} of metrics.jsonl")
    return {"damaged": "; ".join(said)} if said else {}


def _starts(starts: list[dict[str, Any]]) -> str:
    """How many, where the last few began, in which jobs, and the nodes of the last."""
    recent = starts[-_STARTS_SHOWN:]
    steps = ", ".join(str(start["step"]) for start in recent)
    text = f"{len(starts)}, {'at' if recent == starts else 'the last at'} steps {steps}"
    jobs = dict.fromkeys(start["slurm_job"] for start in recent if start.get("slurm_job"))
    return text + (f"; jobs {', '.join(jobs)}; now on {starts[-1].get('slurm_nodes')}" if jobs else "")


def compare(one: str, other: str) -> tuple[str, bool]:
    """A report on where two runs part (configuration, data sequence, losses), and whether they are equal.

    Raises ValueError for a folder that is no run."""
    trees = [_tree(run) for run in (one, other)]
    report = _config_differences(*trees)
    if all("encoder" in tree for tree in trees):
        figures = [_results(Path(run)) for run in (one, other)]
        names = dict.fromkeys([*figures[0], *figures[1]])
        apart = [name for name in names if figures[0].get(name) != figures[1].get(name)]
        report += [
            f"{name}: {figures[0].get(name, 'not there')} | {figures[1].get(name, 'not there')}" for name in apart
        ]
        return "\n".join(report if apart else [*report, "results: equal"]), not apart
    rows = {run: {row["step"]: row for row in read_metrics(Path(run))} for run in (one, other)}
    steps = sorted(rows[one].keys() & rows[other].keys())
    if not steps:
        raise ValueError(f"{one} and {other} have no step in common")
    made_by = {run: {step: rows[run][step]["data_digest"].rpartition("-")[0] for step in steps} for run in rows}
    alike = [step for step in steps if made_by[one][step] == made_by[other][step]]
    data = [step for step in alike if rows[one][step]["data_digest"] != rows[other][step]["data_digest"]]
    if data:
        report.append(f"data: step {data[0]} is the first with other clips")
    elif alike:
        report.append(f"data: equal, {len(alike)} steps")
    if alike != steps:
        report.append(f"data: {len(steps) - len(alike)} steps cannot be compared: other versions made their digests")
    differences = {step: _apart(rows[one][step]["loss"], rows[other][step]["loss"]) for step in steps}
    apart = [step for step in steps if differences[step] > 0]
    if apart:
        worst = max(apart, key=differences.__getitem__)
        report.append(
            f"loss: step {apart[0]} is the first that differs, by {differences[apart[0]]:.3g}; the most is "
            f"{differences[worst]:.3g} at step {worst}; {differences[steps[-1]]:.3g} at step {steps[-1]}"
        )
    else:
        report.append(f"loss: equal to the last bit, {len(steps)} steps")
    lengths = {run: max(rows[run]) for run in rows}
    if lengths[one] != lengths[other]:
        report.append(f"length: {one} has {lengths[one]} steps, {other} {lengths[other]}")
    return "\n".join(report), not (data or apart or lengths[one] != lengths[other])


def _apart(one: float | None, other: float | None) -> float:
    """How far two losses are apart; None was not finite."""
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return abs(one - other)


def _config_differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    lines = []
    for section in dict.fromkeys([*here, *there]):
        one, other = (tree.get(section) or {} for tree in (here, there))
        for key in dict.fromkeys([*one, *other]):
            if one.get(key) != other.get(key) and (section, key) != ("run", "dir"):
                said = [repr(side[key]) if key in side else "not there" for side in (one, other)]
                lines.append(f"config: {section}.{key} is {said[0]} in the first, {said[1]} in the second")
    return lines or ["config: equal"]
