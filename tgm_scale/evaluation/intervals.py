"""Paired bootstrap intervals: is one model right more often than another on the same clips?

Shapes: S seeds, M test clips, G groups of them, N values (clips or groups), R bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.runtime import seeding

DRAWS = 2000


class Interval(NamedTuple):
    """A mean with the bounds of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_interval(
    gain_SM: Tensor, level: float = 0.95, draws: int = DRAWS, seed: int = 0, groups: Sequence[str] | None = None
) -> Interval:
    """Return the percentile interval of the mean of paired differences (Efron and Tibshirani 1993, chapters 8 and 13).

    gain_SM: for each seed and test clip, one model's score minus the other's (for right and wrong: -1, 0 or 1). Seeds
    and clips are drawn with replacement, each clip with all its seeds, so the interval covers both another training
    run and other test clips. groups: the group of each clip; if given, whole groups are drawn in place of clips, as in
    `group_interval`. Keyed by `seed`."""
    gain = gain_SM.double().numpy()
    drawn_RS = (seeding.uniform(_keys(seed, draws), len(gain), "seeds") * len(gain)).long().numpy()
    count_G = np.ones(gain.shape[1])
    if groups is not None:
        group_M = _numbers(groups)
        count_G = np.bincount(group_M).astype(float)
        gain = np.stack([np.bincount(group_M, weights=of_seed) for of_seed in gain])
    sums_RS = _sums(seed, draws, gain.T)
    means = np.take_along_axis(sums_RS, drawn_RS, axis=1).mean(axis=1) / _sums(seed, draws, count_G)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(gain_SM.double().mean()), float(low), float(high))


def class_interval(
    right_M: Tensor, class_M: Tensor, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return the mean class accuracy with its percentile interval over the clips. class_M: int64 from 0.

    A class that a draw lacks does not count in that draw."""
    is_MC = F.one_hot(class_M).double().numpy()
    right_MC = is_MC * right_M.double().numpy()[:, None]

    def means(right_RC: np.ndarray, count_RC: np.ndarray) -> np.ndarray:
        there_RC = count_RC > 0
        return np.where(there_RC, right_RC / np.maximum(count_RC, 1), 0).sum(1) / there_RC.sum(1)

    drawn = means(_sums(seed, draws, right_MC), _sums(seed, draws, is_MC))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(means(right_MC.sum(0)[None], is_MC.sum(0)[None])[0]), float(low), float(high))


def group_interval(
    right_M: Tensor, groups: Sequence[str], level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return the share of right clips with its percentile interval over groups (cluster bootstrap).

    A draw contains whole groups with all their clips, as new subjects or scenes would come. groups: the group of each
    clip."""
    group_M = _numbers(groups)
    count_G = np.bincount(group_M)
    right_G = np.bincount(group_M, weights=right_M.double().numpy())
    means = _sums(seed, draws, right_G) / _sums(seed, draws, count_G.astype(float))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(right_G.sum() / count_G.sum()), float(low), float(high))


def _numbers(groups: Sequence[str]) -> np.ndarray:
    """Return the group number of each clip, int64 [M], from 0."""
    return np.unique(np.array(groups), return_inverse=True)[1]


def _keys(seed: int, draws: int) -> Tensor:
    return torch.tensor([seeding.key(seed, "bootstrap", draw) for draw in range(draws)])


def _sums(seed: int, draws: int, values: np.ndarray) -> np.ndarray:
    """Return the sum over each draw of the values, [N] or [N, K]: [R] or [R, K]."""
    times_RN = _times_drawn(seed, draws, len(values))
    return np.concatenate([some @ values for some in np.array_split(times_RN, max(1, times_RN.size >> 22))])


@lru_cache(maxsize=2)  # one entry for clips, one for groups: a study has dozens of intervals over the same draws
def _times_drawn(seed: int, draws: int, count: int) -> np.ndarray:
    """Return how often each of `count` items occurs in each draw with replacement, uint16 [R, N]."""
    drawn = ((seeding.uniform(key[None], count, "clips")[0] * count).long().numpy() for key in _keys(seed, draws))
    return np.stack([np.bincount(one, minlength=count).astype(np.uint16) for one in drawn])
