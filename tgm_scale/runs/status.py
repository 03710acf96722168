"""`tgm-scale status RUN`: the state of a run; if it is not active, how it ended and the command that resumes it."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, Field

from tgm_scale import config as configuration
from tgm_scale.checkpoints import folders, manifest
from tgm_scale.runs import events, run_data, run_folder
from tgm_scale.runs.bottleneck import (
    RECENT,
    counted,
    duration,
    explain,
    is_whole,
    read_heartbeat,
    recent_shares,
    waiting,
)
from tgm_scale.runs.figures import left_out_in_words, shares
from tgm_scale.runs.metrics import loss_in_words, rows_and_damaged
from tgm_scale.runtime import ownership
from tgm_scale.runtime.files import like
from tgm_scale.runtime.mistakes import refuse_damaged
from tgm_scale.runtime.outside.json_text import json_object

_STARTS_SHOWN = 5


def status(folder: str) -> str:
    """Return one screen about a run: whether it is running, or the command that resumes it; step, speed, time left,
    last checkpoint, restarts, skipped samples, bottleneck, and processes that wait for a shard.

    Raises ValueError for a folder that is not a run."""
    texts = lines(folder, *rows_and_damaged(Path(folder)))
    width = max(map(len, texts))
    return "\n".join(f"{name:>{width}}  {text}" for name, text in texts.items())


def lines(
    folder: str, rows: list[dict[str, Any]], damaged: int, judged: dict[str, str] | None = None
) -> dict[str, str]:
    """Return the lines of `status` by their labels. rows, damaged: results of `rows_and_damaged`; judged: of
    `results`.

    Raises ValueError for a folder that is not a run."""
    root = Path(folder)
    waits = {"waiting": found} if (found := waiting(root)) else {}
    if waits and not rows:  # the start has not written more yet
        return {"run": folder, "step": "none yet", **waits}
    tree = read_tree(folder)
    refuse_damaged(_Frozen if "encoder" in tree else _Training, tree, root / "config.yaml", "restore it")
    if "encoder" in tree:
        judged, why = results(root) if judged is None else judged, run_folder.failure(root)
        state = {"state": f"failed: {why}"} if why and judged.keys() <= {"results"} else {}
        return {"run": f"{folder}, frozen features of {tree['encoder']['checkpoint']}", **state, **judged}
    if not (root / "plan.json").is_file():
        why = run_folder.failure(root) or "its output says why"
        raise ValueError(f"{folder}: the run did not come to its first step: {why}")
    plan = run_folder.read_plan(root)
    starts = run_folder.starts(root)
    newest, damaged_ones = _newest(root / "checkpoints")
    kind = "finetuning" if "finetune" in tree else (tree.get("masking") or {}).get("recipe", "pretraining")
    made = rows[-1]["step"] if rows else 0
    judged = results(root) if judged is None else judged
    saved = newest is not None and folders.step_of(newest) == made
    finished = made == plan["steps"] and saved and (kind != "finetuning" or bool(judged))
    return {
        "run": f"{folder}, {tree['model']['size']}, {kind}",
        **_state(root, tree, plan["world_size"], starts, finished),
        "step": f"{made} of {plan['steps']} ({made / plan['steps']:.0%})",
        **(_progress(root, tree, plan, rows, starts) if rows else {}),
        "checkpoint": "; ".join([newest.name if newest else "none that is whole", *damaged_ones])
        if newest or damaged_ones
        else "none yet",
        "starts": _starts(starts),
        **waits,
        **_damage(root, damaged),
        **_left_out(root),
        **judged,
    }


def _newest(root: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint with a valid manifest, from which a start resumes if its files match their hashes;
    and texts on newer ones without."""
    damaged: list[str] = []
    for step in reversed(folders.steps_in(root)):
        folder = folders.folder_of(root, step)
        try:
            manifest.read(folder)
        except (manifest.NewerFormat, OSError):  # a start would refuse, and take no older one
            return folder, damaged
        except ValueError:
            damaged.append(f"{folder.name} is damaged, see tgm-scale check")
        else:
            return folder, damaged
    return None, damaged


def _progress(
    root: Path, tree: dict[str, Any], plan: dict[str, Any], rows: list[dict[str, Any]], starts: list[dict[str, Any]]
) -> dict[str, str]:
    """Return lines on the steps so far, from valid rows only."""
    last, recent = rows[-1], [row for row in rows[-RECENT:] if is_whole(row)]
    if not recent:
        return {}
    seconds = median(row["step_seconds"] for row in recent)
    ranks, steps = recent_shares(root, plan["world_size"], rows, starts)
    held_up = explain(ranks, tree)
    left = (plan["steps"] - last["step"]) * seconds
    age = time.time() - (root / "metrics.jsonl").stat().st_mtime
    return {
        "samples": f"{recent[-1]['samples']} videos read, {recent[-1]['skipped_samples']} of them skipped"
        + (", see skipped.jsonl" if recent[-1]["skipped_samples"] else ""),
        "speed": f"{tree['train']['global_batch_size'] / seconds:.1f} clips/s, {seconds:.2f} s a step",
        **_skipped(rows),
        "left": "done" if last["step"] == plan["steps"] else duration(left),
        "last step": f"{duration(age)} ago",
        "loss": f"{loss_in_words(last)} (first {loss_in_words(rows[0])})",
        "bottleneck": f"{held_up}; over {counted(steps)}",
    }


def _skipped(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the number of skipped updates, with the reasons."""
    reasons = Counter(row.get("refusal") for row in rows if row.get("update_refused") is True)
    texts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return {"skipped updates": f"{reasons.total()} of {len(rows)} ({texts}), see refused.jsonl"} if reasons else {}


def read_tree(folder: str) -> dict[str, Any]:
    """Return the sections of a run's configuration, of any kind. Raises ValueError for a folder that is not a run."""
    root = Path(folder)
    if not root.exists():
        raise ValueError(f"{folder}: no such folder{like(folder)}; wanted a run folder, such as runs/debug")
    if not (root / "config.yaml").is_file():
        why = run_folder.failure(root) if root.is_dir() else ""
        said = f"its start failed: {why}" if why else run_folder.no_run(root)
        raise ValueError(f"{folder}: no config.yaml: {said}")
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
    run: _Run
    model: _Model
    data: _Data
    train: _Train
    masking: _Masking | None = None


class _Encoder(BaseModel):
    checkpoint: str


class _Frozen(BaseModel):
    encoder: _Encoder


def _left_out(root: Path) -> dict[str, str]:
    file = root / "data.json"
    corpora = run_data.read(root) if file.is_file() else []
    found: dict[str, list[str]] = {}
    for corpus in corpora:
        for name, counts in left_out_in_words(corpus["left_out"]) if isinstance(corpus.get("left_out"), dict) else []:
            found.setdefault(name, []).append(f"{_named(corpus)}: {counts}")
    return {name: "; ".join(texts) + ", see left_out.jsonl" for name, texts in found.items()}


def _named(corpus: dict[str, Any]) -> str:
    """Return the name of a corpus, with its part where it is for training or test."""
    return f"{corpus['name']} ({corpus['part']})" if corpus.get("part") in ("train", "test") else corpus["name"]


def result_files(root: Path) -> list[Path]:
    return sorted(root.glob("results*.json"))


def result(file: Path) -> dict[str, str]:
    """Return the figures in a result file by its method. Raises ValueError where it is damaged."""
    found = json_object(file)
    try:
        values = shares(found)
        more = [f"; {name}: {counts}" for name, counts in left_out_in_words(found["left_out"])]
        method = str(found["method"])
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{file}: damaged: wanted method, figures, left_out; restore it, or remove it") from None
    except ValueError as error:
        raise ValueError(f"{file}: damaged: {error}; restore it, or remove it") from None
    figures = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    return {method: figures + "".join(more)}


def results(root: Path) -> dict[str, str]:
    """Return the figures of each method evaluated in this folder."""
    lines = {name: texts for file in result_files(root) for name, texts in result(file).items()}
    return lines or {"results": "none yet"} if not (root / "metrics.jsonl").is_file() else lines


def _damage(root: Path, lines: int) -> dict[str, str]:
    """Return the checkpoints that starts have set aside, with the reasons, and the number of damaged metrics.jsonl
    lines."""
    texts = [
        f"{event.get('checkpoint')} at a start from step {event.get('step')}: {event.get('why')}"
        for event in events.read(root)
        if event["event"] == "checkpoint_damaged"
    ]
    if lines:
        texts.append(f"{lines} {'line' if lines == 1 else 'lines'} of metrics.jsonl")
    return {"damaged": "; ".join(texts)} if texts else {}


def _starts(starts: list[dict[str, Any]]) -> str:
    """Return the number of starts, the steps and jobs of the last few, and the nodes of the last."""
    recent = starts[-_STARTS_SHOWN:]
    steps = ", ".join(str(start["step"]) for start in recent)
    words = "at" if recent == starts else "the last at"
    text = f"{len(starts)}, {words} {'step' if len(recent) == 1 else 'steps'} {steps}"
    jobs = dict.fromkeys(start["slurm_job"] for start in recent if start.get("slurm_job"))
    return text + (f"; jobs {', '.join(jobs)}; now on {starts[-1].get('slurm_nodes')}" if jobs else "")


def _state(
    root: Path, tree: dict[str, Any], world_size: int, starts: list[dict[str, Any]], finished: bool
) -> dict[str, str]:
    """Return the lines on the run's state. finished: all steps are made, and evaluated where that is part of the
    run."""
    sign = ownership.liveness(root)
    if sign is not None and sign.living:
        return {"state": f"running, last heartbeat {sign.age:.0f} s ago"}
    if finished:
        return {"state": "finished"}
    return {"state": f"not running: {_end(root, sign)}", "resume": _how_to_resume(root, tree, world_size, starts)}


def _end(root: Path, sign: ownership.Liveness | None) -> str:
    if sign is None:
        return "no start has left word"
    ago = f"{duration(sign.age)} ago"
    if not sign.ended:
        if sign.gone and sign.owner is not None:
            return f"its process (pid {sign.owner.pid}) was killed, last heartbeat {ago}"
        return f"no heartbeat since {ago}"
    if why := run_folder.failure(root):
        return f"failed {ago}: {why}"
    state = read_heartbeat(root / "ranks" / "00000").get("state")
    return f"{'interrupted' if state in (None, 'running') else state} {ago}"


def _how_to_resume(root: Path, tree: dict[str, Any], world_size: int, starts: list[dict[str, Any]]) -> str:
    same = "the command that started it"
    if starts and starts[-1].get("slurm_job"):
        return f"{same} (sbatch, as for job {starts[-1]['slurm_job']})"
    typed = command(root, tree, world_size, starts)
    return f"{same}, or: {typed}" if typed else same


def command(root: Path, tree: dict[str, Any], world_size: int, starts: list[dict[str, Any]]) -> str:
    """Return the command line that resumes the run; "" if the folder lacks it: a job's script, secrets in URLs,
    torchrun on several hosts."""
    file = root / "config.yaml"
    hosts = {read_heartbeat(root / "ranks" / f"{rank:05d}").get("host") for rank in range(world_size)}
    if (
        (starts and starts[-1].get("slurm_job"))
        or "***" in file.read_text(encoding="utf-8")
        or len(hosts - {None}) > 1
    ):
        return ""
    launcher = "tgm-scale" if world_size == 1 else f"torchrun --nproc_per_node {world_size} -m tgm_scale"
    own = Path(tree["run"]["dir"])
    elsewhere = [] if own.resolve() == root.resolve() else [configuration.override("run.dir", root)]
    words = f"{'finetune' if 'finetune' in tree else 'pretrain'} --config"
    return f"{launcher} {words} {shlex.join([str(file), *elsewhere])}"
