"""Linear probe on frozen features: multinomial logistic regression, solved to convergence.

Newton's method in float64 on standardised features; for large problems the step is searched in float32, and
convergence is judged in float64. There is no learning rate, batch order or number of epochs to choose: for each
strength of the ridge penalty the problem is convex and has one solution, and the strength is chosen on a held-out part
of the training clips (of the groups, for a list with groups); if the best is the first or the last tried, further ones
are tried. So the same features and seed give the same accuracy to the last digit.

Shapes: N training clips, M test clips, D width of the features, E = D + 1, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.runtime import seeding

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # each starts from the solution of the one before
VALIDATION_SHARE = 0.2
STRONGER, WEAKER = (1e0, 1e1, 1e2), (1e-6, 1e-7, 1e-8)  # tried if the best is at an edge, while worthwhile
# Accuracy gain that is worth a further fit, each up to 2.6 times as long as the one before: one clip of 2,000. For
# 240,000 clips x 768 and 400 classes, the fit at 1e-7 took 23 minutes on one core, and that at 1e-8 longer
# (2026-11-28).
_WORTH = 5e-4
_TOLERANCE = 1e-6  # bound on the largest gradient entry, for penalties from 1e-3; below, in proportion to the penalty
_NEWTON_STEPS, _CONJUGATE_STEPS = 100, 400
# Above this clips x width x classes, products with the second derivative are in float32, 2.9 times as fast on a CPU
# core (2026-11-27); below, a probe takes seconds. Six Newton steps of 5 to 20 products are usual. Curvature that takes
# many more is too weak for float32, and the fit goes on in float64.
_LARGE = 10**8
_WIDEST = 4096  # limit on min(clips, width): above, finding the directions takes more than a minute on one core
_SINGLE_NEWTON_STEPS, _SINGLE_CONJUGATE_STEPS = 20, 100


class ProbeResult(NamedTuple):
    """The probe's scores of the test clips and the chosen penalty."""

    scores_MC: Tensor  # float64, before softmax, on the CPU
    penalty: float
    validation_accuracy: float
    at_edge: bool  # the best penalty is the last of all that may be tried


class Validation(NamedTuple):
    """Rule that selects the part of the training clips held out for choosing hyperparameters.

    groups: the group of each clip, such as its subject or scene: a fifth of the groups is held out whole, since clips
    of one group are alike. If None or all the same, a fifth of the clips."""

    seed: int = 0
    groups: Sequence[str] | None = None

    def rows(self, clips: int) -> tuple[Tensor, Tensor]:
        """Return the row numbers (held out, kept), int64, in an order drawn by the seed."""
        distinct = sorted(set(self.groups or ()))
        order = self._drawn(clips)
        if len(distinct) < 2:
            held_out, kept = order.split([round(VALIDATION_SHARE * clips), clips - round(VALIDATION_SHARE * clips)])
            return held_out, kept
        assert self.groups is not None
        chosen = {distinct[i] for i in self._drawn(len(distinct))[: max(1, round(VALIDATION_SHARE * len(distinct)))]}
        out = torch.tensor([self.groups[row] in chosen for row in order.tolist()])
        return order[out], order[~out]

    def described(self) -> str:
        """Return a description of what was held out."""
        count = len(set(self.groups or ()))
        return "a fifth of the clips" if count < 2 else f"{max(1, round(VALIDATION_SHARE * count))} of {count} groups"

    def _drawn(self, count: int) -> Tensor:
        return torch.from_numpy(seeding.permutation(seeding.key(self.seed, "probe validation"), count))


class _Linear(NamedTuple):
    """Weights [D, C] and bias [C], float64."""

    weight: Tensor
    bias: Tensor

    def scores(self, x_ND: Tensor) -> Tensor:
        return x_ND @ self.weight + self.bias


def probe(
    train_ND: Tensor,
    labels_N: Tensor,
    test_MD: Tensor,
    validation: Validation | None = None,
    device: torch.device | None = None,
) -> ProbeResult:
    """Fit on the training clips and score the test clips.

    labels: int64 from 0. `device`: where to compute (default: the CPU), in float64 there, too. Raises ValueError for
    fewer than two classes or fewer than ten training clips."""
    classes = int(labels_N.max()) + 1
    refuse_too_few(classes, len(train_ND))
    train_ND, test_MD = turned(*standardised(train_ND.to(device), test_MD.to(device)))
    labels_N = labels_N.to(device)
    held_out, kept = (rows.to(device) for rows in (validation or Validation()).rows(len(train_ND)))
    solutions: dict[float, _Linear] = {}
    kept_ND, kept_N, held_out_ND, held_out_N = train_ND[kept], labels_N[kept], train_ND[held_out], labels_N[held_out]

    def accuracy_of(penalty: float) -> float:
        start = list(solutions.values())[-1] if solutions else None
        solutions[penalty] = fit(kept_ND, kept_N, classes, penalty, start)
        right = solutions[penalty].scores(held_out_ND).argmax(dim=1) == held_out_N
        return right.double().mean().item()

    best, accuracy, at_edge = choose(accuracy_of)
    # For large problems: 90 products, against 199 from zero and 200 from the solution at the same penalty, which is
    # far too certain of the clips that were held out (24,000 clips x 768, 100 classes, penalty 1e-5; 2026-11-28)
    near = solutions[max(best, PENALTIES[1])] if _is_large(train_ND, classes) else None
    chosen = fit(train_ND, labels_N, classes, best, near)
    return ProbeResult(chosen.scores(test_MD).cpu(), best, accuracy, at_edge)


def too_few(classes: int, clips: int, share: float = 1.0) -> str:
    """Return why a probe of any kind cannot be fitted to so few classes or clips; "" if it can.

    share: data.share, by which the clips were drawn."""
    if classes >= 2 and clips >= 10:
        return ""
    drawn = f", by data.share={share:g}" if share < 1 else ""
    return f"a probe needs 2 classes and 10 training clips: found {classes} and {clips}{drawn}"


def refuse_too_few(classes: int, clips: int, share: float = 1.0) -> None:
    """Raise ValueError if `too_few` gives a reason."""
    if few := too_few(classes, clips, share):
        more = "raise data.share, give" if share < 1 else "give"
        raise ValueError(f"{few}: {more} more labelled clips, or take tgm-scale knn, which works with any number")


def choose(accuracy_of: Callable[[float], float]) -> tuple[float, float, bool]:
    """Return (best penalty, its accuracy, whether it is the last that may be tried).

    Ties go to the strongest of PENALTIES."""
    found = {penalty: accuracy_of(penalty) for penalty in PENALTIES}
    best = max(found, key=found.__getitem__)
    beyond = {PENALTIES[0]: STRONGER, PENALTIES[-1]: WEAKER}.get(best, ())
    for penalty in beyond:
        found[penalty] = accuracy_of(penalty)
        if found[penalty] < found[best] + _WORTH:
            break
        best = penalty
    return best, found[best], best in beyond[-1:]


def standardised(train_ND: Tensor, test_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float64, with each feature standardised by the training clips' mean and standard deviation.

    A feature that is constant there becomes 0."""
    train_ND, test_MD = train_ND.double(), test_MD.double()
    mean_D, std_D = train_ND.mean(0), train_ND.std(0)
    scale_D = torch.where(std_D > 1e-12, 1 / std_D.clamp(min=1e-12), 0.0)
    return (train_ND - mean_D) * scale_D, (test_MD - mean_D) * scale_D


def turned(train_ND: Tensor, test_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate both to the directions in which the training clips vary, at most as many as there are clips.

    The ridge penalty and the scores stay the same; the second derivative becomes nearly diagonal, and small if there
    are more features than clips: 61 s became 7 s for 1,000 clips x 3,072 (2026-11-28)."""
    if min(train_ND.shape) > _WIDEST:
        return train_ND, test_MD
    if len(train_ND) < train_ND.shape[1]:
        spanning_DN = torch.linalg.qr(train_ND.T).Q
        train_ND, test_MD = train_ND @ spanning_DN, test_MD @ spanning_DN
    directions_DD = torch.linalg.eigh(train_ND.T @ train_ND).eigenvectors
    return train_ND @ directions_DD, test_MD @ directions_DD


def fit(x_ND: Tensor, labels_N: Tensor, classes: int, penalty: float, start: _Linear | None = None) -> _Linear:
    """Minimise mean cross entropy + penalty / 2 * sum of squared weights (the bias is not penalised).

    Truncated Newton's method (Nocedal and Wright, Numerical Optimization, 2nd edition, section 7.1): about 6 steps for
    any penalty. L-BFGS did not converge in 3,000 steps with many correlated features."""
    objective = _Objective(x_ND, labels_N, classes, penalty)
    single = _is_large(x_ND, classes)
    weight, bias = start or _Linear(x_ND.new_zeros(x_ND.shape[1], classes), x_ND.new_zeros(classes))
    at_EC = torch.cat([weight, bias[None]])
    value = objective.value(at_EC)
    # The objective is at most |gradient|^2 / (2 penalty) above its minimum: a weak penalty needs a small gradient
    tolerance = _TOLERANCE * min(1.0, penalty / 1e-3)
    for number in range(_NEWTON_STEPS):
        gradient_EC, scale_EC, curved = objective.around(at_EC, torch.float32 if single else torch.float64)
        if gradient_EC.abs().max() <= tolerance:
            break
        step_EC, reached = _conjugate_gradients(
            curved, scale_EC, -gradient_EC, _SINGLE_CONJUGATE_STEPS if single else _CONJUGATE_STEPS
        )
        if single and not (reached and number < _SINGLE_NEWTON_STEPS):
            single = False
            continue
        slope, share = float((gradient_EC * step_EC).sum()), 1.0
        enough = 1e-4 * slope  # Armijo condition, section 3.1 there; the 1e-14 below allows for rounding
        while (lower := objective.value(there_EC := at_EC + share * step_EC)) > value + share * enough + 1e-14:
            if share <= 1e-10:
                break
            share /= 2
        at_EC, value = there_EC, lower
    return _Linear(at_EC[:-1], at_EC[-1])


def _is_large(x_ND: Tensor, classes: int) -> bool:
    return x_ND.numel() * classes > _LARGE


class _Objective:
    """The objective of `fit`, a function of the weights with the bias as last row: [E, C], E = D + 1."""

    def __init__(self, x_ND: Tensor, labels_N: Tensor, classes: int, penalty: float):
        self._x_NE = torch.cat([x_ND, x_ND.new_ones(len(x_ND), 1)], dim=1)
        self._rounded: dict[torch.dtype, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None  # weights and scores: one step ends where the next begins
        self._squares_E1 = self._x_NE.square().mean(dim=0)[:, None]
        self._labels_N = labels_N
        self._targets_NC = F.one_hot(labels_N, classes).to(x_ND.dtype)
        self._penalty_E1 = x_ND.new_full((x_ND.shape[1] + 1, 1), penalty)
        self._penalty_E1[-1] = 0

    def value(self, at_EC: Tensor) -> float:
        squares = (self._penalty_E1 * at_EC.square()).sum()
        return float(F.cross_entropy(self._scores(at_EC), self._labels_N) + 0.5 * squares)

    def _scores(self, at_EC: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not at_EC:
            self._last = at_EC, self._x_NE @ at_EC
        return self._last[1]

    def around(self, at_EC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return gradient, approximate diagonal of the second derivative, and product with that derivative.

        The gradient is float64; the product is a function of a direction [E, C], computed in `dtype`."""
        x_NE, count = self._x_NE, len(self._x_NE)
        chances_NC = self._scores(at_EC).softmax(dim=1)
        gradient_EC = x_NE.T @ (chances_NC - self._targets_NC) / count + self._penalty_E1 * at_EC
        spread_C = (chances_NC * (1 - chances_NC)).mean(dim=0).clamp(min=1e-12)
        scale_EC = self._squares_E1 * spread_C + self._penalty_E1
        if dtype not in self._rounded:
            self._rounded = {dtype: x_NE.to(dtype)}
        rounded_NE, chances_NC = self._rounded[dtype], chances_NC.to(dtype)

        def curved(direction_EC: Tensor) -> Tensor:
            change_NC = rounded_NE @ direction_EC.to(dtype)
            change_NC = chances_NC * (change_NC - (chances_NC * change_NC).sum(dim=1, keepdim=True))
            return (rounded_NE.T @ change_NC).to(direction_EC.dtype) / count + self._penalty_E1 * direction_EC

        return gradient_EC, scale_EC, curved


def _conjugate_gradients(
    curved: Callable[[Tensor], Tensor], scale_EC: Tensor, wanted_EC: Tensor, steps: int
) -> tuple[Tensor, bool]:
    """Solve second derivative x step = `wanted` by preconditioned conjugate gradients.

    Returns the step and whether it reached the tolerance, which is tighter the smaller `wanted` is, within `steps`
    steps. scale: approximate diagonal of the second derivative, the preconditioner."""

    def scaled(rest_EC: Tensor) -> Tensor:
        by_EC = rest_EC / scale_EC
        return by_EC - by_EC.mean(dim=1, keepdim=True)  # a shift of all classes changes no probability: remove it

    found_EC, rest_EC, direction_EC = torch.zeros_like(wanted_EC), wanted_EC, scaled(wanted_EC)
    squared, begun = (rest_EC * direction_EC).sum(), rest_EC.square().sum()
    near = begun * min(0.1, float(begun) ** 0.25) ** 2
    for _ in range(steps):
        bent_EC = curved(direction_EC)
        curvature = (direction_EC * bent_EC).sum()
        if curvature <= 0:  # by rounding
            break
        length = squared / curvature
        found_EC = found_EC + length * direction_EC
        rest_EC = rest_EC - length * bent_EC
        if rest_EC.square().sum() <= near:
            return found_EC, True
        next_EC = scaled(rest_EC)
        before, squared = squared, (rest_EC * next_EC).sum()
        direction_EC = next_EC + squared / before * direction_EC
    return found_EC, False
