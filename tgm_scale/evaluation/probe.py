"""Linear probe on frozen features: multinomial logistic regression, solved to the end.

Full-batch L-BFGS in float64 on standardised features. There is no learning rate, no batch order and no number of
epochs to choose: for each strength of the ridge penalty the problem is convex and has one answer, and the strength is
chosen on a part of the training clips; where the best is the first or the last that was tried, further ones are tried.
So the same features and seed give the same accuracy to the last digit.

Shapes: N training clips, M test clips, D width of the features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.runtime import seeding

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # each starts from the solution of the one before
VALIDATION_SHARE = 0.2
STRONGER, WEAKER = (1e0, 1e1, 1e2), (1e-6, 1e-7, 1e-8)  # tried where the best is at an edge, as long as it gets better
_ITERATIONS = 3000
_TOLERANCE = 1e-6  # of the largest gradient, at a penalty of 1e-3 or more; below in proportion to the penalty


class ProbeResult(NamedTuple):
    """The probe's scores of the test clips, and the penalty that it chose."""

    scores_MC: Tensor  # float64, before softmax, on the CPU
    penalty: float
    validation_accuracy: float
    at_edge: bool  # the best penalty is the last of all that may be tried

    @property
    def predictions_M(self) -> Tensor:
        return self.scores_MC.argmax(dim=1)


class _Linear(NamedTuple):
    """Weights in float64: [D, C] and [C]."""

    weight: Tensor
    bias: Tensor

    def scores(self, x_ND: Tensor) -> Tensor:
        return x_ND @ self.weight + self.bias


def probe(
    train_ND: Tensor, labels_N: Tensor, test_MD: Tensor, seed: int = 0, device: torch.device | None = None
) -> ProbeResult:
    """Fit on the training clips, predict the test clips.

    labels: int64 from 0. `seed` draws the validation part. `device`: where (default: the CPU), in
    float64 there, too. Raises ValueError for fewer than two classes or fewer than ten training clips."""
    classes = int(labels_N.max()) + 1
    if classes < 2 or len(train_ND) < 10:
        raise ValueError(f"a linear probe needs 2 classes and 10 clips: found {classes} and {len(train_ND)}")
    train_ND, test_MD = standardised(train_ND.to(device), test_MD.to(device))
    labels_N = labels_N.to(device)
    order = torch.from_numpy(seeding.permutation(seeding.key(seed, "probe validation"), len(train_ND))).to(device)
    held_out, kept = order.split(
        [round(VALIDATION_SHARE * len(order)), len(order) - round(VALIDATION_SHARE * len(order))]
    )
    start = None
    kept_ND, kept_N, held_out_ND, held_out_N = train_ND[kept], labels_N[kept], train_ND[held_out], labels_N[held_out]

    def accuracy_of(penalty: float) -> float:
        nonlocal start
        start = fit(kept_ND, kept_N, classes, penalty, start)
        right = start.scores(held_out_ND).argmax(dim=1) == held_out_N
        return right.double().mean().item()

    best, accuracy, at_edge = choose(accuracy_of)
    chosen = fit(train_ND, labels_N, classes, best)
    return ProbeResult(chosen.scores(test_MD).cpu(), best, accuracy, at_edge)


def choose(accuracy_of: Callable[[float], float]) -> tuple[float, float, bool]:
    """(best penalty, its accuracy, whether it is the last that may be tried). Of equals the strongest of PENALTIES."""
    found = {penalty: accuracy_of(penalty) for penalty in PENALTIES}
    best = max(found, key=found.__getitem__)
    beyond = {PENALTIES[0]: STRONGER, PENALTIES[-1]: WEAKER}.get(best, ())
    for penalty in beyond:
        found[penalty] = accuracy_of(penalty)
        if found[penalty] <= found[best]:
            break
        best = penalty
    return best, found[best], best in beyond[-1:]


def standardised(train_ND: Tensor, test_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, each feature with the training clips' mean taken off and divided by their standard deviation.

    A feature that is constant there becomes 0."""
    train_ND, test_MD = train_ND.double(), test_MD.double()
    mean_D, std_D = train_ND.mean(0), train_ND.std(0)
    scale_D = torch.where(std_D > 1e-12, 1 / std_D.clamp(min=1e-12), 0.0)
    return (train_ND - mean_D) * scale_D, (test_MD - mean_D) * scale_D


def fit(x_ND: Tensor, labels_N: Tensor, classes: int, penalty: float, start: _Linear | None = None) -> _Linear:
    """The minimum of mean cross entropy + penalty / 2 * sum of squared weights (the bias is free).

    The objective is at most |gradient|^2 / (2 penalty) above its minimum: a weak penalty wants a small gradient."""
    share = min(1.0, penalty / 1e-3)
    weight, bias = start or _Linear(x_ND.new_zeros(x_ND.shape[1], classes), x_ND.new_zeros(classes))
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, max_eval=10 * _ITERATIONS, tolerance_grad=_TOLERANCE * share,
        tolerance_change=1e-10 * share**2, history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x_ND @ weight + bias, labels_N) + 0.5 * penalty * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return _Linear(weight.detach(), bias.detach())
