"""Ranks of the right answers of a retrieval.

Shapes: Q queries, G answers to choose from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tgm_scale.evaluation import results
from tgm_scale.objectives.contrastive import MAX_SCALE

RANKS = (1, 5, 10)


def ranks(name: str, scores_QG: Tensor, right_QG: Tensor, same_Q: Tensor) -> tuple[dict[str, Any], dict[str, float]]:
    """Return recall at 1, 5 and 10 with intervals; and recall at 1 by chance, median and mean rank, from 1.

    The median of an even number of ranks is the mean of the middle two, as in numpy, which CLIP4Clip's code uses.
    same_Q: int64, equal for queries that are the same, whose answers are right or wrong together: intervals are over
    distinct queries."""
    place_Q = first_right(scores_QG, right_QG)
    recalls = {f"{name} R@{k}": results.accuracy(place_Q < k, same_Q) for k in RANKS if k < scores_QG.shape[1]}
    rank_Q = place_Q.sort().values.double() + 1
    median = (rank_Q[(len(rank_Q) - 1) // 2] + rank_Q[len(rank_Q) // 2]) / 2
    facts = {
        f"{name} R@1 by chance": right_QG.double().mean().item(),
        f"{name} median rank": median.item(),
        f"{name} mean rank": rank_Q.mean().item(),
    }
    return recalls, facts


def first_right(scores_QG: Tensor, right_QG: Tensor) -> Tensor:
    """Return the place, from 0, of each query's best right answer, int64 [Q]; wrong answers of equal score precede
    it."""
    best_Q1 = scores_QG.masked_fill(~right_QG, -torch.inf).amax(dim=1, keepdim=True)
    return ((scores_QG >= best_Q1) & ~right_QG).sum(dim=1)


def dual_softmax(cosines_QG: Tensor) -> Tensor:
    """Return each score times its softmax over the queries, [Q, G], at CLIP's scale of 100.

    Cheng et al. 2021, arXiv 2109.04290, section 3.3. It uses all queries at once, so it does not apply to a single
    query."""
    scores_QG = MAX_SCALE * cosines_QG
    return scores_QG * scores_QG.softmax(dim=0)
