"""Attentive probe on frozen tokens: one learned query attends to a clip's tokens; a linear layer reads what it gathers
(as the attentive probe of V-JEPA, Bardes et al. 2024, without its further MLP).

Learning rates are swept in one pass: a head for each, all on the same batches. The one that is best on a part of the
training clips that none of them saw is trained again, from its first values, on all of them.

Shapes: N training clips, M test clips, K tokens, D width of the encoder, B clips of a batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.evaluation.probe import VALIDATION_SHARE, refuse_too_few
from tgm_scale.evaluation.settings import ProbeConfig
from tgm_scale.runtime import seeding

_STD = 0.02  # of the query's and the last layer's first values
_WARMUP = 0.1  # share of the steps
_CLIPS = 256  # of a pass without gradient


class AttentiveHead(nn.Module):
    """Tokens -> scores: norm, attention of one query, norm, linear layer. First values keyed by `seed`."""

    def __init__(self, width: int, heads: int, classes: int, seed: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.empty(width))
        self.key_value = nn.Linear(width, 2 * width)
        self.out_norm = nn.LayerNorm(width)
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
        """Scores [B, C] of tokens of any floating type."""
        x_BKD = self.norm(tokens_BKD.to(self.query.dtype))
        key_BHKd, value_BHKd = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.key_value(x_BKD).chunk(2, dim=2)
        )
        query_BH1d = self.query.view(1, self.heads, 1, -1).expand(len(tokens_BKD), -1, -1, -1)
        found_BD = F.scaled_dot_product_attention(query_BH1d, key_BHKd, value_BHKd).flatten(1)
        return self.head(self.out_norm(found_BD))


class AttentiveResult(NamedTuple):
    """Scores of the test clips, and what was chosen."""

    scores_MC: Tensor  # float32, on the CPU
    learning_rate: float
    validation_accuracies: dict[float, float]


def probe(
    train_NKD: Tensor,
    labels_N: Tensor,
    test_MKD: Tensor,
    settings: ProbeConfig,
    seed: int = 0,
    device: torch.device | None = None,
) -> AttentiveResult:
    """Fit on the training clips, score the test clips. labels: int64 from 0.

    Raises ValueError for fewer than two classes or ten clips, or heads that do not divide the width."""
    classes, width, clips = int(labels_N.max()) + 1, train_NKD.shape[2], len(train_NKD)
    refuse_too_few(classes, clips)
    refuse_heads(settings.heads, width)
    order = torch.from_numpy(seeding.permutation(seeding.key(seed, "probe validation"), clips))
    held_out, kept = order[: round(VALIDATION_SHARE * clips)], order[round(VALIDATION_SHARE * clips) :]

    def fitted(rows: Tensor, *rates: float) -> dict[float, AttentiveHead]:
        heads = {rate: AttentiveHead(width, settings.heads, classes, seed).to(device) for rate in rates}
        _fit(heads, train_NKD, labels_N, rows, settings, seed)
        return heads

    accuracies = {}
    for rate, head in fitted(kept, *settings.learning_rates).items():
        right = _scores(head, train_NKD, held_out).argmax(1) == labels_N[held_out]
        accuracies[rate] = right.double().mean().item()
    best = max(sorted(accuracies), key=accuracies.__getitem__)  # of equals the lowest
    chosen = fitted(order, best)[best]
    return AttentiveResult(_scores(chosen, test_MKD, torch.arange(len(test_MKD))), best, accuracies)


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
    """AdamW with warm-up and cosine for each head (by its learning rate); every batch is read once for all of them."""
    groups = [{"params": list(head.parameters()), "lr": rate, "peak": rate} for rate, head in heads.items()]
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    device = next(next(iter(heads.values())).parameters()).device
    steps, step = settings.epochs * math.ceil(len(rows) / settings.batch_size), 0
    for epoch in range(settings.epochs):
        order = torch.from_numpy(seeding.permutation(seeding.key(seed, "probe order", epoch), len(rows)))
        for part in rows[order].split(settings.batch_size):
            step += 1
            warm = min(1.0, step / max(1, round(_WARMUP * steps)))
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
            tokens, labels = train_NKD[part].to(device), labels_N[part].to(device)
            optimiser.zero_grad()
            torch.stack([F.cross_entropy(head(tokens), labels) for head in heads.values()]).sum().backward()
            optimiser.step()


@torch.no_grad()
def _scores(head: nn.Module, tokens_MKD: Tensor, rows: Tensor) -> Tensor:
    device = next(head.parameters()).device
    return torch.cat([head(tokens_MKD[part].to(device)).cpu() for part in rows.split(_CLIPS)])
