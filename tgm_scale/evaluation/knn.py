"""Weighted nearest neighbours on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).

Shapes: N training clips, M test clips, D width of the features, C classes, K neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 20
TEMPERATURE = 0.07
_ROWS = 4096  # test clips at a time, at most
_COSINES = 2**28  # at a time: 1 GB; 1,118 test clips with Kinetics' 240,000 training clips


def votes(
    train_ND: Tensor,
    labels_N: Tensor,
    test_MD: Tensor,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    device: torch.device | None = None,
) -> Tensor:
    """Return votes for each class, float64 [M, C], on the CPU.

    The k training clips of highest cosine vote with weight exp(cosine / temperature). labels: int64 from 0. If k
    exceeds N, all vote. `device`: where neighbours are searched (default: the CPU), in float32; among equal cosines at
    the k-th place another device may choose another clip."""
    train_ND, test_MD = (F.normalize(x.float().to(device), dim=1) for x in (train_ND, test_MD))
    classes = int(labels_N.max()) + 1
    found = []
    for rows_RD in test_MD.split(max(1, min(_ROWS, _COSINES // len(train_ND)))):
        nearest = (rows_RD @ train_ND.T).topk(min(k, len(train_ND)), dim=1)
        cosine_RK, neighbour_RK = (part.cpu() for part in nearest)
        votes_RC = torch.zeros(len(rows_RD), classes, dtype=torch.float64)
        found.append(votes_RC.scatter_add_(1, labels_N[neighbour_RK], (cosine_RK.double() / temperature).exp()))
    return torch.cat(found)
