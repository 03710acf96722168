"""Ridge regression of classes, one against all: the classifier of the raw-pixel baseline.

Shapes: N training clips, M test clips, D numbers of a clip, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.evaluation.probe import Validation

PENALTIES = tuple(10.0**power for power in range(-7, 3))


def scores(train_ND: Tensor, labels_N: Tensor, test_MD: Tensor, validation: Validation) -> tuple[Tensor, float]:
    """Return (scores float64 [M, C], penalty) of the minimum of mean squared error + penalty * D * squared weights.

    The numbers are centred and scaled as a whole, since they have one unit: scaled one by one, pixels that hardly
    change would count as much as the others. The penalty is the best on the validation part; ties go to the strongest.
    labels: int64 from 0."""
    classes = int(labels_N.max()) + 1
    train_ND, test_MD = train_ND.double(), test_MD.double()
    mean_D, scale = train_ND.mean(0), 1 / train_ND.std().clamp(min=1e-12)
    train_ND, test_MD = (train_ND - mean_D) * scale, (test_MD - mean_D) * scale
    held_out, kept = validation.rows(len(train_ND))
    solve = _Ridge(train_ND[kept], labels_N[kept], classes)
    right = {
        penalty: (solve(penalty, train_ND[held_out]).argmax(1) == labels_N[held_out]).double().mean().item()
        for penalty in reversed(PENALTIES)
    }
    best = max(right, key=right.__getitem__)
    return _Ridge(train_ND, labels_N, classes)(best, test_MD), best


class _Ridge:
    """The regression in its dual form: N x N for any width."""

    def __init__(self, x_ND: Tensor, labels_N: Tensor, classes: int) -> None:
        targets_NC = F.one_hot(labels_N, classes).double()
        self._mean_C = targets_NC.mean(0)
        self._x_ND, self._scale = x_ND, float(x_ND.shape[1])
        self._values_N, self._vectors_NN = torch.linalg.eigh(x_ND @ x_ND.T / self._scale)
        self._targets_NC = self._vectors_NN.T @ (targets_NC - self._mean_C)

    def __call__(self, penalty: float, x_MD: Tensor) -> Tensor:
        dual_NC = self._vectors_NN @ (self._targets_NC / (self._values_N[:, None] + penalty * len(self._x_ND)))
        return x_MD @ self._x_ND.T / self._scale @ dual_NC + self._mean_C
