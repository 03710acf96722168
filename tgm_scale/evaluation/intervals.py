"""Paired bootstrap intervals: is one model right more often than another on the same clips?

Shapes: S seeds, M test clips, G groups of them, R draws of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tgm_scale.runtime import seeding

DRAWS = 2000


class Interval(NamedTuple):
    """A mean with its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_interval(
    gain_SM: Tensor, level: float = 0.95, draws: int = DRAWS, seed: int = 0, groups: Sequence[str] | None = None
) -> Interval:
    """Percentile interval of the mean of paired differences (Efron and Tibshirani 1993, chapters 8 and 13).

    gain_SM: for each seed and test clip, the one model's score less the other's (for right and wrong: -1, 0 or 1).
    Seeds and clips are drawn with replacement, each clip with all its seeds: both what another training run and what
    other test clips would change is in the interval. groups: of each clip; then whole groups are drawn in place of
    clips, as in `group_interval`. Keyed by `seed`."""
    gain = gain_SM.double().numpy()
    keys = _keys(seed, draws)
    drawn_RS = (seeding.uniform(keys, len(gain), "seeds") * len(gain)).long().numpy()
    means = np.empty(draws)
    if groups is None:
        for r, key in enumerate(keys):
            means[r] = gain[drawn_RS[r]][:, _drawn_clips(key, gain.shape[1])].mean()
    else:
        group_M = _numbers(groups)
        count_G = np.bincount(group_M)
        gain_SG = np.stack([np.bincount(group_M, weights=of_seed) for of_seed in gain])
        for r, key in enumerate(keys):
            drawn_G = _drawn_clips(key, len(count_G))
            means[r] = gain_SG[drawn_RS[r]][:, drawn_G].sum(1).mean() / count_G[drawn_G].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(gain.mean()), float(low), float(high))


def class_interval(
    right_M: Tensor, class_M: Tensor, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The mean over classes of the share that is right in each, with its percentile interval over the clips; a class
    that a draw lacks does not count in it. class_M: int64 from 0."""
    right, classes = right_M.double().numpy(), class_M.numpy()

    def mean(drawn_M: np.ndarray) -> float:
        count_C = np.bincount(classes[drawn_M])
        right_C = np.bincount(classes[drawn_M], weights=right[drawn_M])
        return float((right_C[count_C > 0] / count_C[count_C > 0]).mean())

    means = [mean(_drawn_clips(key, len(right))) for key in _keys(seed, draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean(np.arange(len(right))), float(low), float(high))


def group_interval(
    right_M: Tensor, groups: Sequence[str], level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The share of right clips with its percentile interval over groups (cluster bootstrap): a draw has whole groups,
    each with all its clips, as other subjects or scenes would come. groups: of each clip."""
    group_M = _numbers(groups)
    count_G = np.bincount(group_M)
    right_G = np.bincount(group_M, weights=right_M.double().numpy())
    drawn = (_drawn_clips(key, len(count_G)) for key in _keys(seed, draws))
    means = [right_G[drawn_G].sum() / count_G[drawn_G].sum() for drawn_G in drawn]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(right_G.sum() / count_G.sum()), float(low), float(high))


def _numbers(groups: Sequence[str]) -> np.ndarray:
    """Of each clip's group, int64 [M], from 0."""
    return np.unique(np.array(groups), return_inverse=True)[1]


def _keys(seed: int, draws: int) -> Tensor:
    return torch.tensor([seeding.key(seed, "bootstrap", draw) for draw in range(draws)])


def _drawn_clips(key: Tensor, clips: int) -> np.ndarray:
    """int64 [M]: clips drawn with replacement."""
    return (seeding.uniform(key[None], clips, "clips")[0] * clips).long().numpy()
