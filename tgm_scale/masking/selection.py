"""Selection: which tokens a saliency map hides.

A rule (masking.rules) turns saliency into priority; within each group of the scope the tokens of highest priority are
hidden, in a count that never changes. Equal priorities are ordered by keyed noise, never by their place in memory.

Shapes: B clips, S slots, R rows, C columns, G groups of n tokens, K tokens of a clip.
Scopes: `clip` is one group of all tokens; `slot` a group for each slot; `tube` one group of positions, whose saliency
is the mean over the slots (S = 1 from there on) and whose choice holds for every slot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.runtime import seeding

SCOPES = ("clip", "slot", "tube")


def group_size(scope: str, grid: Grid) -> int:
    """Tokens among which a fixed count is hidden."""
    return grid.tokens if scope == "clip" else grid.per_slot


def pool(saliency_BSRC: Tensor, scope: str) -> Tensor:
    """Saliency as the scope sees it: for tubes the mean over the slots, [B, 1, R, C]."""
    if scope != "tube":
        return saliency_BSRC
    # one slot after another: the order in which a reduction adds, and so its last bit, may depend on the batch
    return sum(saliency_BSRC.split(1, dim=1), torch.zeros((), device=saliency_BSRC.device)) / saliency_BSRC.shape[1]


def grouped(x_BSRC: Tensor, scope: str) -> Tensor:
    """[B, G, n]"""
    return x_BSRC.flatten(1)[:, None] if scope == "clip" else x_BSRC.flatten(2)


def rank_normalise(saliency_BSRC: Tensor, scope: str) -> Tensor:
    """Each token's rank in its group, from 0 (lowest) to 1; equal values share the mean of their ranks.

    So sources of any unit and any distribution are mixed on one scale, on which the Gumbel noise is added, too. A few
    outliers cannot flatten the rest as they would under min-max scaling, and a map that is constant says nothing: all
    of it is at 0.5."""
    x_BGn = grouped(saliency_BSRC, scope).contiguous()
    ordered_BGn = x_BGn.sort(dim=-1).values
    below = torch.searchsorted(ordered_BGn, x_BGn, right=False)
    not_above = torch.searchsorted(ordered_BGn, x_BGn, right=True)
    ranks_BGn = (below + not_above - 1).float() / (2 * max(x_BGn.shape[-1] - 1, 1))
    return ranks_BGn.view_as(saliency_BSRC)


def add_gumbel_noise(saliency_BSRC: Tensor, temperature: float, seeds_B: Tensor) -> Tensor:
    """Saliency / temperature + Gumbel noise: its top k are a draw without replacement from softmax(saliency /
    temperature) (Kool et al. 2019, arXiv 1903.06059)."""
    noise = seeding.gumbel(seeds_B, saliency_BSRC[0].numel(), "mask.gumbel")
    return saliency_BSRC / temperature + noise.view_as(saliency_BSRC)


def split(priority_BSRC: Tensor, scope: str, hidden: int, grid: Grid, seeds_B: Tensor) -> tuple[Tensor, Tensor]:
    """Token indices (hidden int64 [B, K], visible int64 [B, K']): `hidden` tokens of each group, in no set order."""
    priority_BGn = grouped(priority_BSRC, scope)
    noise_BGn = seeding.bits(seeds_B, priority_BSRC[0].numel(), "mask.ties").view_as(priority_BGn)
    shuffled_BGn = noise_BGn.argsort(dim=-1)
    by_priority = priority_BGn.gather(-1, shuffled_BGn).argsort(dim=-1, descending=True, stable=True)
    order_BGn = shuffled_BGn.gather(-1, by_priority)
    if scope != "clip":
        first_S1 = torch.arange(grid.slots, device=seeds_B.device)[:, None] * grid.per_slot
        order_BGn = order_BGn + first_S1  # a tube's single group is repeated for each slot
    return order_BGn[..., :hidden].flatten(1), order_BGn[..., hidden:].flatten(1)


def draw(
    index_BK: Tensor, count: int, grid: Grid, seeds_B: Tensor, purpose: str, preferred_BN: Tensor | None = None
) -> Tensor:
    """`count` of each row's indices, drawn at random without replacement, ascending; where there are `preferred`
    tokens (bool) among them, these before any others."""
    if count < index_BK.shape[1]:
        noise_BN = seeding.bits(seeds_B, grid.tokens, purpose)
        if preferred_BN is not None:
            noise_BN = noise_BN.bitwise_or(1 << 62).where(~preferred_BN, noise_BN.bitwise_and((1 << 62) - 1))
        index_BK = index_BK.gather(1, noise_BN.gather(1, index_BK).argsort(dim=-1)[:, :count])
    return index_BK.sort(dim=-1).values


def running_cell(seeds_B: Tensor, grid: Grid) -> Tensor:
    """VideoMAE V2's running cells (arXiv 2303.16727, section 3.2): bool [B, N], half of the tokens of each slot.

    Of each cell of 2 x 2 tokens two neighbours on its rim are kept; in the next slot the pair has moved on by one. The
    pair of the first slot is random, one for the clip."""
    start_B111 = seeding.bits(seeds_B, 1, "mask.running cell")[:, :, None, None] % 4
    slot, row, column = (torch.arange(n, device=seeds_B.device) for n in (grid.slots, grid.rows, grid.columns))
    rim_RC = (2 * (row % 2))[:, None] + (column % 2 != (row % 2)[:, None])  # 0 1 / 3 2: clockwise
    step = (rim_RC - slot[:, None, None] - start_B111) % 4
    return (step < 2).flatten(1)
