"""Metrics over the clips shown: do captions change the masks, and towards their content?

Shapes: n clips, each with its caption; D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as count_from
from math import factorial

import torch
from torch import Tensor

from tgm_scale.masking.diagnostics import centre_box, overlap
from tgm_scale.preview.looks import Look, Way
from tgm_scale.runtime import seeding

DRAWS = 2000
LEVEL = 0.05  # for all ways together: each has its share (Bonferroni), or one random tower in seven would pass


@dataclass(frozen=True)
class Mean:
    """A mean over the clips, with its standard error (nan for one clip)."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        values = values.double()
        return cls(float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan"))


@dataclass(frozen=True)
class Pairing:
    """Measure of how well captions find their clips among those shown.

    share: of pairs of clips with different captions, those in which the right assignment has more lift than the
    exchanged one; 0.5 is chance. p: share of random assignments of the captions with at least the lift of the right
    one. level: a p above it is chance."""

    share: float
    p: float
    captions: int  # number of different ones
    level: float

    @property
    def fewest(self) -> int:
        """Fewest captions for which one order is rare enough: with four none is rarer than 1 in 24."""
        return next(count for count in count_from(2) if factorial(count) * self.level >= 1)

    @property
    def enough(self) -> bool:
        return self.captions >= self.fewest

    @property
    def known(self) -> bool:
        return self.enough and self.p <= self.level


@dataclass(frozen=True)
class Figures:
    """Metrics of one way over all clips."""

    way: Way
    ratio: float  # share of tokens hidden: the chance level of overlaps
    centre: Mean  # share of the mask in a box of its size in the middle of the frame
    repeat: Mean  # share of the mask hidden in the slot before
    swapped: Mean | None  # share of the mask that another clip's caption hides, too; None if captions play no part
    pairing: Pairing | None  # None if there are no captions, or all are the same


def figures_of(ways: Sequence[Way], looks: Sequence[Look], differ_nn: Tensor, seed: int) -> list[Figures]:
    """Compute the metrics of each way. differ_nn: bool, which clips have different captions.

    Recipes that no caption guides are paired by the scorer that pairs best."""

    def paired(label: str, scorer: str | None) -> Pairing | None:
        if scorer is None or not differ_nn.any():
            return None
        lift_nn = torch.stack([look.lifts[label, scorer] for look in looks])
        return pairing(lift_nn, differ_nn, seed, LEVEL / len(ways))

    speaking = {way.scorer: one for way in ways if (one := paired(way.label, way.scorer)) is not None}
    best = max(speaking, key=lambda scorer: (speaking[scorer].share, -speaking[scorer].p), default=None)
    found = []
    for way in ways:
        hidden_nSRC = torch.stack([look.hidden[way.label] for look in looks])
        found.append(
            Figures(
                way,
                way.masker.hidden_count / way.masker.grid.tokens,
                Mean.of(overlap(hidden_nSRC, centre_box(way.masker).expand(hidden_nSRC.shape))),
                Mean.of(torch.tensor([look.repeat[way.label] for look in looks])),
                _swapped(way, looks, differ_nn),
                paired(way.label, way.scorer or best),
            )
        )
    return found


def _swapped(way: Way, looks: Sequence[Look], differ_nn: Tensor) -> Mean | None:
    """Return the mean over clips of the mean overlap over the different captions."""
    if way.scorer is None or not differ_nn.any():
        return None
    overlap_nn = torch.stack([look.swapped[way.label] for look in looks]).double()
    counted_n = differ_nn.sum(1)
    return Mean.of(((overlap_nn * differ_nn).sum(1) / counted_n.clamp(min=1))[counted_n > 0])


def pairing(lift_nn: Tensor, differ_nn: Tensor, seed: int, level: float) -> Pairing:
    """Measure the pairing. lift_nn: of clip i under the caption of clip j.

    A clip's own level (its lifts are high under any caption) or a caption's (on any clip) cancels in a pair, and in
    the sum over a permutation."""
    own_n = lift_nn.diagonal()
    right_nn = own_n[:, None] + own_n - lift_nn - lift_nn.T
    pairs = right_nn[differ_nn.triu(1)]
    share = float(((pairs > 0).double() + 0.5 * (pairs == 0)).mean())
    n = len(lift_nn)
    order_Dn = seeding.bits(torch.tensor([seeding.key(seed, "pairing")]), DRAWS * n, "order").view(DRAWS, n).argsort(1)
    sum_D = lift_nn[torch.arange(n), order_Dn].sum(1)
    as_much = int((sum_D >= own_n.sum() - 1e-9 * lift_nn.abs().sum()).sum())
    different = len({tuple(row) for row in differ_nn.tolist()})
    return Pairing(share, (1 + as_much) / (1 + DRAWS), different, level)
