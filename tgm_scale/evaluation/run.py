"""`tgm-scale knn` and `tgm-scale probe`: a checkpoint's frozen features judged beside random initialisation.

Shapes: S seeds, M test clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tgm_scale.contracts import Problem
from tgm_scale.data.index import Corpus
from tgm_scale.evaluation import knn, probe
from tgm_scale.evaluation.features import Clips, FrozenEncoder, extract
from tgm_scale.evaluation.intervals import Interval, paired_interval

Judge = Callable[[Tensor, Tensor, Tensor], Tensor]  # (training features, their labels, test features) -> predictions


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a checkpoint's features on test clips, beside that of random initialisation."""

    method: str
    accuracy: float
    random_accuracy: float
    gain: Interval  # over random initialisation, paired clip by clip, 95 %
    majority: float  # share of the commonest class: what guessing gives
    train_clips: int
    test_clips: int
    classes: int
    left_out: dict[str, int]  # clips that could not be used, by reason

    def __str__(self) -> str:
        lines = [
            f"{self.method}: {self.classes} classes, {self.train_clips} training and {self.test_clips} test clips",
            f"  this checkpoint        {self.accuracy:.4f}",
            f"  random initialisation  {self.random_accuracy:.4f}",
            f"  commonest class        {self.majority:.4f}",
            f"  gain over random       {self.gain} (95 %, paired)",
        ]
        if self.left_out:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
            lines.append(f"  left out: {counts}")
        return "\n".join(lines)


def run_knn(
    checkpoint: str | Path,
    train: str | list[str],
    test: str | list[str],
    label: str = "label",
    *,
    k: int = knn.NEIGHBOURS,
    temperature: float = knn.TEMPERATURE,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[int], None] = lambda clips: None,
) -> Comparison:
    """Nearest neighbours on a checkpoint's features.

    checkpoint: whatever `conversion.read` reads. train, test: shards. label: where a sample's json holds its label.
    seed: of the random initialisation beside it. Raises ValueError for what cannot be read or judged."""
    name = f"kNN (k={k}, temperature {temperature:g})"

    def judge(train_ND: Tensor, labels_N: Tensor, test_MD: Tensor) -> Tensor:
        return knn.predict(train_ND, labels_N, test_MD, k, temperature)

    return _compare(name, judge, checkpoint, train, test, label, workers, seed, progress)


def run_probe(
    checkpoint: str | Path,
    train: str | list[str],
    test: str | list[str],
    label: str = "label",
    *,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[int], None] = lambda clips: None,
) -> Comparison:
    """Linear probe on a checkpoint's features; the arguments are those of `run_knn`, `seed` draws the validation
    part too."""

    def judge(train_ND: Tensor, labels_N: Tensor, test_MD: Tensor) -> Tensor:
        return probe.probe(train_ND, labels_N, test_MD, seed).predictions_M

    return _compare("linear probe", judge, checkpoint, train, test, label, workers, seed, progress)


def _compare(
    name: str,
    judge: Judge,
    checkpoint: str | Path,
    train: str | list[str],
    test: str | list[str],
    label: str,
    workers: int,
    seed: int,
    progress: Callable[[int], None],
) -> Comparison:
    trained = FrozenEncoder.load(checkpoint)
    encoders = [trained, trained.fresh(seed)]
    fitted, judged = (
        extract(encoders, Corpus.open(spec), label, workers=workers, progress=progress) for spec in (train, test)
    )
    right_SM = [is_right(judge, fitted, judged, i) for i in range(2)]
    classes = sorted(set(fitted.labels))
    commonest = Counter(fitted.labels).most_common(1)[0][0]
    return Comparison(
        method=name,
        accuracy=right_SM[0].double().mean().item(),
        random_accuracy=right_SM[1].double().mean().item(),
        gain=paired_interval((right_SM[0].double() - right_SM[1].double())[None], seed=seed),
        majority=judged.labels.count(commonest) / len(judged.labels),
        train_clips=len(fitted.labels),
        test_clips=len(judged.labels),
        classes=len(classes),
        left_out=_by_reason([*fitted.problems, *judged.problems]),
    )


def is_right(judge: Judge, train: Clips, test: Clips, encoder: int = 0) -> Tensor:
    """Which test clips get their own label, bool [M], from the features of one of the encoders.

    A label that no training clip has cannot be got right."""
    number = {label: i for i, label in enumerate(sorted(set(train.labels)))}
    labels_N = torch.tensor([number[label] for label in train.labels])
    truth_M = torch.tensor([number.get(label, -1) for label in test.labels])
    return judge(train.features[encoder], labels_N, test.features[encoder]) == truth_M


def _by_reason(problems: list[Problem]) -> dict[str, int]:
    return dict(Counter(problem.reason for problem in problems))
