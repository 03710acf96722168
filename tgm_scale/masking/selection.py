"""Selection: which tokens a saliency map hides.

A rule turns saliency into priority; within each group of the scope the tokens of highest priority are hidden, in a
count that never changes. Equal priorities are ordered by keyed noise, never by their place in memory.

Shapes: B clips, S slots, R rows, C columns, G groups of n tokens, K tokens of a clip.
Scopes: `clip` is one group of all tokens; `slot` a group for each slot; `tube` one group of positions, whose saliency
is the mean over the slots (S = 1 from there on) and whose choice holds for every slot.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.runtime import seeding

SCOPES = ("clip", "slot", "tube")

# name -> priority [B, S, R, C] from saliency [B, S, R, C]. With a temperature (Gumbel noise on the saliency) top_k
# draws the hidden tokens without replacement, bottom_k the visible ones.
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "top_k": lambda saliency_BSRC: saliency_BSRC,
    "gumbel_top_k": lambda saliency_BSRC: saliency_BSRC,
    "bottom_k": lambda saliency_BSRC: -saliency_BSRC,
}


def group_size(scope: str, grid: Grid) -> int:
    """Tokens among which a fixed count is hidden."""
    return grid.tokens if scope == "clip" else grid.per_slot


def pool(saliency_BSRC: Tensor, scope: str) -> Tensor:
    """Saliency as the scope sees it: for tubes the mean over the slots, [B, 1, R, C]."""
    if scope != "tube":
        return saliency_BSRC
    # one slot after another: the order in which a reduction adds, and so its last bit, may depend on the batch
    return sum(saliency_BSRC.split(1, dim=1), torch.zeros((), device=saliency_BSRC.device)) / saliency_BSRC.shape[1]


def _grouped(x_BSRC: Tensor, scope: str) -> Tensor:
    """[B, G, n]"""
    return x_BSRC.flatten(1)[:, None] if scope == "clip" else x_BSRC.flatten(2)


def mid_ranks(saliency_BSRC: Tensor, scope: str) -> Tensor:
    """Each token's rank in its group, from 0 (lowest) to 1; equal values share the mean of their ranks.

    So sources of any unit and any distribution are mixed and heated on one scale, a few outliers cannot flatten the
    rest as they would under min-max scaling, and a map that is constant says nothing: all of it is at 0.5."""
    x_BGn = _grouped(saliency_BSRC, scope).contiguous()
    ordered_BGn = x_BGn.sort(dim=-1).values
    below = torch.searchsorted(ordered_BGn, x_BGn, right=False)
    not_above = torch.searchsorted(ordered_BGn, x_BGn, right=True)
    ranks_BGn = (below + not_above - 1).float() / (2 * max(x_BGn.shape[-1] - 1, 1))
    return ranks_BGn.view_as(saliency_BSRC)


def heat(saliency_BSRC: Tensor, temperature: float, seeds_B: Tensor) -> Tensor:
    """Saliency / temperature + Gumbel noise: its top k are a draw without replacement from softmax(saliency /
    temperature) (Kool et al. 2019, arXiv 1903.06059)."""
    noise = seeding.gumbel(seeds_B, saliency_BSRC[0].numel(), "mask.gumbel")
    return saliency_BSRC / temperature + noise.view_as(saliency_BSRC)


def split(priority_BSRC: Tensor, scope: str, hidden: int, grid: Grid, seeds_B: Tensor) -> tuple[Tensor, Tensor]:
    """Token indices (hidden int64 [B, K], visible int64 [B, K']): `hidden` tokens of each group, in no set order."""
    priority_BGn = _grouped(priority_BSRC, scope)
    noise_BGn = seeding.bits(seeds_B, priority_BSRC[0].numel(), "mask.ties").view_as(priority_BGn)
    shuffled_BGn = noise_BGn.argsort(dim=-1)
    by_priority = priority_BGn.gather(-1, shuffled_BGn).argsort(dim=-1, descending=True, stable=True)
    order_BGn = shuffled_BGn.gather(-1, by_priority)
    if scope != "clip":
        first_S1 = torch.arange(grid.slots, device=seeds_B.device)[:, None] * grid.per_slot
        order_BGn = order_BGn + first_S1  # a tube's single group is repeated for each slot
    return order_BGn[..., :hidden].flatten(1), order_BGn[..., hidden:].flatten(1)


def draw(index_BK: Tensor, count: int, grid: Grid, seeds_B: Tensor, purpose: str) -> Tensor:
    """`count` of each row's indices, drawn at random without replacement, ascending."""
    if count < index_BK.shape[1]:
        noise_BK = seeding.bits(seeds_B, grid.tokens, purpose).gather(1, index_BK)
        index_BK = index_BK.gather(1, noise_BK.argsort(dim=-1)[:, :count])
    return index_BK.sort(dim=-1).values
