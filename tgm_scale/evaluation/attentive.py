"""Attentive probe on frozen tokens: attention with one learned query, then a linear layer.

Like the attentive probe of V-JEPA (Bardes et al. 2024), without its additional MLP. Tokens are standardised per
feature by the mean and deviation of the training clips' tokens, and a BatchNorm without weights precedes the linear
layer (as in MAE's linear probe, He et al. 2022, appendix A.1): if most tokens are background, the differences between
clips are small beside what all clips share, and a head without these norms hardly learns (docs/EVALUATION.md).

Learning rates are swept in one pass: one head per rate, all on the same batches. The rate that is best on a held-out
part of the training clips is trained again, from the same initial weights, on all of them. If the best is the first or
the last of the rates, further ones are tried.

Shapes: N training clips, M test clips, K tokens, D width of the encoder, B clips of a batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.evaluation.probe import Validation, refuse_too_few
from tgm_scale.evaluation.settings import ProbeConfig
from tgm_scale.runtime import seeding

_STD = 0.02  # of the initial query and last layer
_WARMUP = 0.1  # share of the steps
_CLIPS = 256  # per forward pass without gradient
_EPS = 1e-6
_FACTOR, _BEYOND = 3.0, 4


class AttentiveHead(nn.Module):
    """Head from tokens to scores: norms, attention of one query, norm, linear layer. Initial weights keyed by `seed`.

    mean_and_scale: [2, D], which standardises the tokens."""

    mean_and_scale_2D: Tensor

    def __init__(self, mean_and_scale_2D: Tensor, heads: int, classes: int, seed: int) -> None:
        super().__init__()
        width = mean_and_scale_2D.shape[1]
        self.heads = heads
        self.register_buffer("mean_and_scale_2D", mean_and_scale_2D.float())
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.empty(width))
        self.key_value = nn.Linear(width, 2 * width)
        self.out_norm = nn.BatchNorm1d(width, eps=_EPS, affine=False)
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                generator = seeding.generator(seed, "attentive", name)
                if name in ("query", "head.weight"):
                    parameter.copy_(torch.empty(parameter.shape).normal_(std=_STD, generator=generator))
                elif name == "key_value.weight":
                    nn.init.xavier_uniform_(parameter, generator=generator)
                elif name.endswith("bias"):
                    parameter.zero_()

    def forward(self, tokens_BKD: Tensor) -> Tensor:
        """Return scores [B, C] for tokens of any floating type."""
        mean_D, scale_D = self.mean_and_scale_2D
        x_BKD = self.norm((tokens_BKD.to(self.query.dtype) - mean_D) * scale_D)
        key_BHKd, value_BHKd = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.key_value(x_BKD).chunk(2, dim=2)
        )
        query_BH1d = self.query.view(1, self.heads, 1, -1).expand(len(tokens_BKD), -1, -1, -1)
        found_BD = F.scaled_dot_product_attention(query_BH1d, key_BHKd, value_BHKd).flatten(1)
        return self.head(self.out_norm(found_BD))


class AttentiveResult(NamedTuple):
    """Scores of the test clips, and the chosen learning rate."""

    scores_MC: Tensor  # float32, on the CPU
    learning_rate: float
    validation_accuracies: dict[float, float]
    at_edge: bool  # the best is the last of all that may be tried

    @property
    def tried(self) -> list[float]:
        return sorted(self.validation_accuracies)


def probe(
    train_NKD: Tensor,
    labels_N: Tensor,
    test_MKD: Tensor,
    settings: ProbeConfig,
    validation: Validation | None = None,
    device: torch.device | None = None,
) -> AttentiveResult:
    """Fit on the training clips and score the test clips. labels: int64 from 0.

    Raises ValueError for fewer than two classes or ten clips, or heads that do not divide the width."""
    classes, clips = int(labels_N.max()) + 1, len(train_NKD)
    refuse_too_few(classes, clips)
    refuse_heads(settings.heads, train_NKD.shape[2])
    validation = validation or Validation()
    seed, (held_out, kept) = validation.seed, validation.rows(clips)

    def fitted(rows: Tensor, *rates: float) -> dict[float, AttentiveHead]:
        statistics_2D = mean_and_scale(train_NKD, rows)
        heads = {rate: AttentiveHead(statistics_2D, settings.heads, classes, seed).to(device) for rate in rates}
        _fit(heads, train_NKD, labels_N, rows, settings, seed)
        return heads

    def accuracies_of(*rates: float) -> dict[float, float]:
        right = {
            rate: _scores(head, train_NKD, held_out).argmax(1) == labels_N[held_out]
            for rate, head in fitted(kept, *rates).items()
        }
        return {rate: of_rate.double().mean().item() for rate, of_rate in right.items()}

    best, accuracies, at_edge = choose(accuracies_of, settings.learning_rates)
    chosen = fitted(torch.cat([held_out, kept]), best)[best]
    return AttentiveResult(_scores(chosen, test_MKD, torch.arange(len(test_MKD))), best, accuracies, at_edge)


def mean_and_scale(tokens_NKD: Tensor, rows: Tensor) -> Tensor:
    """Return mean and 1 / deviation of each feature over all tokens of these clips, float64 [2, D]."""
    count, sums_2D = 0, torch.zeros(2, tokens_NKD.shape[2], dtype=torch.float64)
    for part in rows.split(_CLIPS):
        tokens_MD = tokens_NKD[part].flatten(0, 1).double()
        count += len(tokens_MD)
        sums_2D += torch.stack([tokens_MD.sum(0), tokens_MD.square().sum(0)])
    mean_D, square_D = sums_2D / count
    return torch.stack([mean_D, ((square_D - mean_D.square()).clamp(min=0) + _EPS).rsqrt()])


def choose(
    accuracies_of: Callable[..., dict[float, float]], rates: Sequence[float]
) -> tuple[float, dict[float, float], bool]:
    """Return (best rate, accuracies of all that were tried, whether the best is the last that may be tried).

    If the best of `rates` is the lowest or the highest of several, up to _BEYOND further ones, each _FACTOR times the
    one before, are tried while they are better. Ties go to the lowest."""
    found = accuracies_of(*rates)
    best = max(sorted(found), key=found.__getitem__)
    if len(found) < 2 or best not in (min(found), max(found)):
        return best, found, False
    factor = 1 / _FACTOR if best == min(found) else _FACTOR
    for _ in range(_BEYOND):
        further = best * factor
        found |= accuracies_of(further)
        if found[further] <= found[best]:
            return best, found, False
        best = further
    return best, found, True


def refuse_heads(heads: int, width: int) -> None:
    if width % heads:
        raise ValueError(f"probe.heads={heads} does not divide the encoder's width of {width}: choose a divisor")


def _fit(
    heads: Mapping[float, nn.Module],
    train_NKD: Tensor,
    labels_N: Tensor,
    rows: Tensor,
    settings: ProbeConfig,
    seed: int,
) -> None:
    """Train each head (keyed by learning rate) by AdamW with warm-up and cosine; a batch is read once for all."""
    groups = [{"params": list(head.parameters()), "lr": rate, "peak": rate} for rate, head in heads.items()]
    for head in heads.values():
        head.train()
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    device = next(next(iter(heads.values())).parameters()).device
    of_epoch = math.ceil(len(rows) / settings.batch_size)
    epochs = max(settings.epochs, math.ceil(settings.steps / of_epoch))
    steps, step = epochs * of_epoch, 0
    for epoch in range(epochs):
        order = torch.from_numpy(seeding.permutation(seeding.key(seed, "probe order", epoch), len(rows)))
        for part in rows[order].tensor_split(of_epoch):  # of near-equal size: a batch of one clip has no deviation
            step += 1
            if len(part) < 2:
                continue
            warm = min(1.0, step / max(1, round(_WARMUP * steps)))
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
            tokens, labels = train_NKD[part].to(device), labels_N[part].to(device)
            optimiser.zero_grad()
            torch.stack([F.cross_entropy(head(tokens), labels) for head in heads.values()]).sum().backward()
            optimiser.step()


@torch.no_grad()
def _scores(head: nn.Module, tokens_MKD: Tensor, rows: Tensor) -> Tensor:
    head.eval()
    device = next(head.parameters()).device
    return torch.cat([head(tokens_MKD[part].to(device)).cpu() for part in rows.split(_CLIPS)])
