"""What an evaluation leaves behind: RUN/results.json, RUN/predictions.jsonl, a line to read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgm_scale.contracts import Problem
from tgm_scale.evaluation.intervals import paired_interval
from tgm_scale.training.run_folder import replace_file, versions


def class_numbers(train: Iterable[str], test: Sequence[str]) -> tuple[list[str], Tensor]:
    """The classes of the training labels in order, and each test label's number, int64 [M]; -1 for one that no
    training clip has, which cannot be got right."""
    classes = sorted(set(train))
    number = {label: i for i, label in enumerate(classes)}
    return classes, torch.tensor([number.get(label, -1) for label in test])


def accuracy(right_M: Tensor, seed: int = 0) -> dict[str, Any]:
    """Share of right answers with its bootstrap interval over the test clips."""
    found = paired_interval(right_M.double()[None], seed=seed)
    return {"value": found.mean, "low": found.low, "high": found.high, "clips": len(right_M)}


def judged(scores_MC: Tensor, truth_M: Tensor) -> dict[str, Any]:
    """top-1 and top-5 with intervals."""
    ranked = scores_MC.argsort(dim=1, descending=True, stable=True)
    found = {"top1": accuracy(ranked[:, 0] == truth_M)}
    if scores_MC.shape[1] > 5:
        found["top5"] = accuracy((ranked[:, :5] == truth_M[:, None]).any(1))
    return found


def by_reason(problems: Iterable[Problem]) -> dict[str, int]:
    return dict(sorted(Counter(problem.reason for problem in problems).items()))


def write(
    folder: Path, results: dict[str, Any], predictions: Iterable[dict[str, Any]], problems: Sequence[Problem]
) -> dict[str, Any]:
    """Write results.json, predictions.jsonl and left_out.jsonl, each whole or not at all; returns the results."""
    results = {**results, "left_out": by_reason(problems), "versions": versions()}
    lines = {"predictions.jsonl": predictions, "left_out.jsonl": (problem.__dict__ for problem in problems)}
    for name, rows in lines.items():
        replace_file(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    replace_file(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def summary(results: dict[str, Any]) -> str:
    """The results in a few lines."""
    lines = [results["method"]]
    for name, value in results["figures"].items():
        interval = f" [{value['low']:.4f}, {value['high']:.4f}] (95 %, bootstrap over {value['clips']} clips)"
        lines.append(f"  {name:12} {value['value']:.4f}{interval}")
    lines += [f"  {name:12} {value}" for name, value in results.get("facts", {}).items()]
    if results["left_out"]:
        lines.append("  left out: " + ", ".join(f"{count} {reason}" for reason, count in results["left_out"].items()))
    return "\n".join(lines)
