"""Figures over the clips shown: do captions change the masks, and towards what they say?

Shapes: n clips, each with its caption; D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tgm_scale.masking.diagnostics import centre_box, overlap
from tgm_scale.preview.looks import Look, Way
from tgm_scale.runtime import seeding

DRAWS = 2000
LEVEL = (
    0.01  # below it a pairing is not chance; three scorers are tried, at 0.05 one in seven random towers would pass
)
FEWEST = 5  # captions: of four no order is rarer than 1 in 24


@dataclass(frozen=True)
class Mean:
    """Over the clips, with its standard error (nan for one clip)."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        values = values.double()
        return cls(float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan"))


@dataclass(frozen=True)
class Pairing:
    """How well captions find their clips among those shown.

    share: of the pairs of clips with different captions, those where the right way round answers more than the wrong
    one; 0.5 is chance. p: share of random assignments of the captions that answer as much as the right one."""

    share: float
    p: float
    captions: int  # different ones

    @property
    def enough(self) -> bool:
        return self.captions >= FEWEST

    @property
    def known(self) -> bool:
        return self.enough and self.p <= LEVEL


@dataclass(frozen=True)
class Figures:
    """Of one way over all clips."""

    way: Way
    ratio: float  # share of the tokens that is hidden: what overlaps are by chance
    centre: Mean  # share of the mask in a box of its size in the middle of the frame
    repeat: Mean  # share of the mask that was hidden in the slot before
    swapped: Mean | None  # share of the mask that another clip's caption hides, too; None where no caption has a say
    pairing: Pairing | None  # None where there are no captions, or all are the same


def figures_of(ways: Sequence[Way], looks: Sequence[Look], differ_nn: Tensor, seed: int) -> list[Figures]:
    """differ_nn: bool, which clips have different captions. Recipes that no caption guides are paired by the scorer
    that pairs best."""
    speaking = {way.scorer: _pairing(way.label, way.scorer, looks, differ_nn, seed) for way in ways if way.scorer}
    paired = {scorer: found for scorer, found in speaking.items() if found is not None}
    best = max(paired, key=lambda scorer: (paired[scorer].share, -paired[scorer].p), default=None)
    found = []
    for way in ways:
        scorer = way.scorer or best
        hidden_nSRC = torch.stack([look.hidden[way.label] for look in looks])
        found.append(
            Figures(
                way,
                way.masker.hidden_count / way.masker.grid.tokens,
                Mean.of(overlap(hidden_nSRC, centre_box(way.masker).expand(hidden_nSRC.shape))),
                Mean.of(torch.tensor([look.repeat[way.label] for look in looks])),
                _swapped(way, looks, differ_nn),
                None if scorer is None else _pairing(way.label, scorer, looks, differ_nn, seed),
            )
        )
    return found


def _swapped(way: Way, looks: Sequence[Look], differ_nn: Tensor) -> Mean | None:
    """The mean over clips of the mean over the captions that are different."""
    if way.scorer is None or not differ_nn.any():
        return None
    overlap_nn = torch.stack([look.swapped[way.label] for look in looks]).double()
    counted_n = differ_nn.sum(1)
    return Mean.of(((overlap_nn * differ_nn).sum(1) / counted_n.clamp(min=1))[counted_n > 0])


def _pairing(label: str, scorer: str | None, looks: Sequence[Look], differ_nn: Tensor, seed: int) -> Pairing | None:
    if scorer is None or not differ_nn.any():
        return None
    return pairing(torch.stack([look.lifts[label, scorer] for look in looks]), differ_nn, seed)


def pairing(lift_nn: Tensor, differ_nn: Tensor, seed: int) -> Pairing:
    """lift_nn: of clip i under the caption of clip j. What is a clip's own (its lifts are high under any caption) or a
    caption's (on any clip) cancels in a pair, and in the sum over a permutation."""
    own_n = lift_nn.diagonal()
    right_nn = own_n[:, None] + own_n - lift_nn - lift_nn.T
    pairs = right_nn[differ_nn.triu(1)]
    share = float(((pairs > 0).double() + 0.5 * (pairs == 0)).mean())
    n = len(lift_nn)
    order_Dn = seeding.bits(torch.tensor([seeding.key(seed, "pairing")]), DRAWS * n, "order").view(DRAWS, n).argsort(1)
    sum_D = lift_nn[torch.arange(n), order_Dn].sum(1)
    as_much = int((sum_D >= own_n.sum() - 1e-9 * lift_nn.abs().sum()).sum())
    different = len({tuple(row) for row in differ_nn.tolist()})
    return Pairing(share, (1 + as_much) / (1 + DRAWS), different)
