"""Comparison of pretraining variants, each with several seeds, against random initialisation, with intervals.

Shapes: S seeds, M test clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tgm_scale.data.shards.index import Corpus
from tgm_scale.evaluation import knn, probe
from tgm_scale.evaluation.cache import Clips
from tgm_scale.evaluation.features import FrozenEncoder, extract
from tgm_scale.evaluation.intervals import Interval, paired_interval
from tgm_scale.evaluation.labelled import read_labels
from tgm_scale.evaluation.run import is_right

RANDOM = "random"


@dataclass(frozen=True)
class Accuracies:
    """Accuracies of each variant (and of `random`) for each seed."""

    probe: dict[str, list[float]]
    knn: dict[str, list[float]]
    probe_gain: dict[str, Interval]  # over random initialisation, for each variant
    knn_gain: dict[str, Interval]
    train_clips: int
    test_clips: int
    chance: float  # share of the most frequent class


def compare_variants(
    variants: Mapping[str, Sequence[str | Path]],
    seeds: Sequence[int],
    train: Corpus,
    test: Corpus,
    labels: Mapping[str, str],
    progress: Callable[[int], None] = lambda clips: None,
) -> dict[str, Accuracies]:
    """Evaluate every variant and seed by kNN and linear probe, for every label.

    variants: the checkpoints of each, one per seed. labels: the place of each label in a sample's json. The random
    initialisation of a seed is what its runs started from, so differences are paired by seed and by clip."""
    encoders: dict[str, list[FrozenEncoder]] = {
        name: [FrozenEncoder.load(path) for path in paths] for name, paths in variants.items()
    }
    first = next(iter(encoders.values()))[0]
    encoders[RANDOM] = [first.fresh(seed) for seed in seeds]
    flat = [encoder for group in encoders.values() for encoder in group]
    corpora, paths = (train, test), list(labels.values())
    clips = [extract(flat, corpus, paths[0], progress=progress) for corpus in corpora]
    found = {}
    for name, path in labels.items():
        fitted, tested = (_relabelled(of, corpus, path) for of, corpus in zip(clips, corpora))
        found[name] = _evaluate(fitted, tested, list(encoders), seeds)
    return found


def _relabelled(clips: Clips, corpus: Corpus, path: str) -> Clips:
    """Return the same clips with another label; clips without it are left out."""
    labels, problems = read_labels(corpus, path)
    kept = [i for i, key in enumerate(clips.keys) if key in labels]
    keys = [clips.keys[i] for i in kept]
    return Clips([x_ND[kept] for x_ND in clips.features], [labels[key] for key in keys], keys, problems)


def _evaluate(fitted: Clips, tested: Clips, names: list[str], seeds: Sequence[int]) -> Accuracies:
    """Return the accuracies of all encoders. names: variants, one encoder of each per seed, `random` among them."""
    right: dict[str, dict[str, Tensor]] = {"probe": {}, "knn": {}}
    for v, name in enumerate(names):
        places = range(v * len(seeds), (v + 1) * len(seeds))
        right["probe"][name] = torch.stack([_probed(fitted, tested, i, seed) for i, seed in zip(places, seeds)])
        right["knn"][name] = torch.stack([is_right(knn.votes, fitted, tested, i) for i in places])
    trained = [name for name in names if name != RANDOM]
    return Accuracies(
        **{method: {name: _shares(right_SM) for name, right_SM in of.items()} for method, of in right.items()},
        probe_gain={name: _gain(right["probe"], name) for name in trained},
        knn_gain={name: _gain(right["knn"], name) for name in trained},
        train_clips=len(fitted.labels),
        test_clips=len(tested.labels),
        chance=max(tested.labels.count(label) for label in set(tested.labels)) / len(tested.labels),
    )


def _probed(train: Clips, test: Clips, encoder: int, seed: int) -> Tensor:
    return is_right(lambda x, y, z: probe.probe(x, y, z, probe.Validation(seed)).scores_MC, train, test, encoder)


def _shares(right_SM: Tensor) -> list[float]:
    return right_SM.double().mean(dim=1).tolist()


def _gain(right: Mapping[str, Tensor], name: str) -> Interval:
    return paired_interval(right[name].double() - right[RANDOM].double())
