"""Selection rules, from saliency to hidden tokens: a rule computes priorities, and those of highest priority are
hidden.

A rule is `rule(saliency, spec)` -> priority, float [B, S, R, C] both (S = 1 under the scope `tube`). A new one is a
function and a line of RULES. Within each group of the scope a fixed number of tokens of highest priority is hidden.
Ties are broken by keyed noise, never by the place in memory.

Shapes: B clips, S slots, R rows, C columns, G groups of n tokens, K tokens of a clip, P parts.

Scopes: `clip` is one group of all tokens; `slot` a group for each slot; `tube` one group of positions, whose
saliency is the mean over the slots (S = 1 from there on) and whose selection applies to every slot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.runtime import seeding

BOX_ASPECTS = (3 / 4, 4 / 3)  # of a moving box, width / height in tokens
BOX_SMOOTHING = 1.0  # standard deviation, in slots, of the window that smooths a box's trajectory
PARTS = 7  # SemMAE's number


@dataclass(frozen=True)
class SelectionSpec:
    """Input of a rule besides the saliency."""

    seeds_B: Tensor  # int64
    scope: str
    scale: str  # of the saliency: 'rank' or 'raw'
    hidden: int  # tokens to hide in each group
    whole_parts: float  # of the rule stratified


def top_k(saliency_BSRC: Tensor, spec: SelectionSpec) -> Tensor:
    return saliency_BSRC


def bottom_k(saliency_BSRC: Tensor, spec: SelectionSpec) -> Tensor:
    return -saliency_BSRC


def moving_box(saliency_BSRC: Tensor, spec: SelectionSpec) -> Tensor:
    """Return priorities of a box that follows the saliency, for motion-guided masking (after MGM, arXiv 2308.12962).

    Its centre in each slot is the saliency's centre of mass, smoothed over the slots (weighted by their mass);
    where a clip has no saliency at all, a random place. Its area is that of the tokens to hide, its aspect random.
    Tokens in the box come first, by saliency, then the others, by saliency: so the count is exact, however the box
    is rounded to whole tokens."""
    rows, columns = saliency_BSRC.shape[2:]
    mass_BSRC = (saliency_BSRC - saliency_BSRC.amin(dim=(2, 3), keepdim=True)).double()
    share = spec.hidden / grouped(saliency_BSRC, spec.scope).shape[-1]
    log_low, log_high = (math.log(aspect) for aspect in BOX_ASPECTS)
    draws_B3 = seeding.uniform(spec.seeds_B, 3, "mask.box").double()
    aspect_B = (log_low + (log_high - log_low) * draws_B3[:, 0]).exp()
    inside = []
    for axis, length in ((2, rows), (3, columns)):
        side_B = (share * (aspect_B if axis == 3 else 1 / aspect_B)).sqrt().clamp(share, 1.0) * length
        place_L = torch.arange(length, device=side_B.device) + 0.5
        middle_BS = _smooth_centre(mass_BSRC.sum(dim=5 - axis), place_L, draws_B3[:, axis - 1] * length)
        half_B1 = side_B[:, None] / 2
        middle_BS = torch.minimum(torch.maximum(middle_BS, half_B1), length - half_B1)  # entirely inside the frame
        inside.append((place_L - middle_BS[..., None]).abs() <= half_B1[..., None])
    inside_BSRC = inside[0][..., None] & inside[1][:, :, None]
    return inside_BSRC + 0.5 * rank_normalise(saliency_BSRC, spec.scope)


def _smooth_centre(mass_BSL: Tensor, place_L: Tensor, fallback_B: Tensor) -> Tensor:
    """Return the centre of mass along one axis in each slot, float64 [B, S], smoothed over the slots."""
    slots = mass_BSL.shape[1]
    apart_SS = torch.arange(slots, device=mass_BSL.device)[:, None] - torch.arange(slots, device=mass_BSL.device)
    window_SS = torch.exp(-0.5 * (apart_SS / BOX_SMOOTHING).double().square()) + 1e-6  # every slot has some weight
    mass_BS = (window_SS * mass_BSL.sum(2)[:, None]).sum(2)
    moment_BS = (window_SS * (mass_BSL * place_L).sum(2)[:, None]).sum(2)
    centre_BS = torch.where(mass_BS > 0, moment_BS / mass_BS.clamp(min=1e-300), fallback_B[:, None])
    return (centre_BS * 2**20).round() / 2**20  # the last bit of a sum may depend on the batch


def stratified(saliency_BSRC: Tensor, spec: SelectionSpec) -> Tensor:
    """Return priorities that hide the same share of every part of the picture, or whole parts, or a mixture (SemMAE,
    arXiv 2206.10207, section 3.3: `whole_parts` grows from 0 to 1 in the course of the training).

    The saliency identifies the parts: their numbers 0 to 6 (`scale: raw`, from the source `parts`), or seven equal
    bands of ranks (`scale: rank`). Which tokens of a part are hidden, and which parts are hidden whole, is random."""
    saliency_BGn = grouped(saliency_BSRC, spec.scope)
    part_BGn = (saliency_BGn * PARTS if spec.scale == "rank" else saliency_BGn).long().clamp(0, PARTS - 1)
    shape = saliency_BGn.shape
    noise_BGn = seeding.bits(spec.seeds_B, shape[1] * shape[2], "mask.parts").view(shape)
    of_part_BGnP = F.one_hot(part_BGn, PARTS)
    shuffled_BGn = noise_BGn.argsort(dim=-1)
    in_order_BGnP = of_part_BGnP.gather(2, shuffled_BGn[..., None].expand(of_part_BGnP.shape))
    before_BGn = ((in_order_BGnP.cumsum(dim=2) - 1) * in_order_BGnP).sum(-1)
    before_BGn = torch.zeros_like(before_BGn).scatter(2, shuffled_BGn, before_BGn)  # tokens of its part before it
    size_BGP = of_part_BGnP.sum(dim=2)
    shared_BGP = size_BGP * (spec.hidden / shape[-1])
    quota_BGP = (1 - spec.whole_parts) * shared_BGP + spec.whole_parts * _whole(size_BGP, spec)
    priority_BGn = quota_BGP.gather(2, part_BGn) - before_BGn  # the k highest meet the quotas, by largest remainder
    return priority_BGn.view_as(saliency_BSRC)


def _whole(size_BGP: Tensor, spec: SelectionSpec) -> Tensor:
    """Return how many tokens of each part are hidden if whole parts are hidden, in random order, up to the required
    number; the last one partially."""
    noise_BGP = seeding.bits(spec.seeds_B, size_BGP[0].numel(), "mask.part order").view(size_BGP.shape)
    order_BGP = noise_BGP.argsort(dim=-1)
    sizes_BGP = size_BGP.gather(2, order_BGP)
    left_BGP = spec.hidden - (sizes_BGP.cumsum(dim=-1) - sizes_BGP)
    taken_BGP = torch.minimum(left_BGP.clamp(min=0), sizes_BGP)
    return torch.zeros_like(taken_BGP).scatter(2, order_BGP, taken_BGP)


# With a temperature, top_k is the Gumbel top-k trick: it draws the hidden tokens without replacement, bottom_k the
# visible ones.
RULES: dict[str, Callable[[Tensor, SelectionSpec], Tensor]] = {
    "top_k": top_k,
    "bottom_k": bottom_k,
    "moving_box": moving_box,
    "stratified": stratified,
}


SCOPES = ("clip", "slot", "tube")


def group_size(scope: str, grid: Grid) -> int:
    """Return the size of a group, in which a fixed count is hidden."""
    return grid.tokens if scope == "clip" else grid.per_slot


def pool(saliency_BSRC: Tensor, scope: str) -> Tensor:
    """Return the saliency at the scope's resolution: for tubes the mean over the slots, [B, 1, R, C]."""
    if scope != "tube":
        return saliency_BSRC
    # one slot after another: the summation order of a reduction, and so its last bit, may depend on the batch
    return sum(saliency_BSRC.split(1, dim=1), torch.zeros((), device=saliency_BSRC.device)) / saliency_BSRC.shape[1]


def grouped(x_BSRC: Tensor, scope: str) -> Tensor:
    """Return the groups of the scope, [B, G, n]."""
    return x_BSRC.flatten(1)[:, None] if scope == "clip" else x_BSRC.flatten(2)


def rank_normalise(saliency_BSRC: Tensor, scope: str) -> Tensor:
    """Return each token's rank in its group, from 0 (lowest) to 1; equal values share the mean of their ranks.

    Sources of any unit and distribution are thus mixed on one scale, to which the Gumbel noise is added, too. A few
    outliers cannot flatten the rest as they would under min-max scaling, and a constant map is neutral: all of it
    is at 0.5."""
    x_BGn = grouped(saliency_BSRC, scope).contiguous()
    ordered_BGn = x_BGn.sort(dim=-1).values
    below = torch.searchsorted(ordered_BGn, x_BGn, right=False)
    not_above = torch.searchsorted(ordered_BGn, x_BGn, right=True)
    ranks_BGn = (below + not_above - 1).float() / (2 * max(x_BGn.shape[-1] - 1, 1))
    return ranks_BGn.view_as(saliency_BSRC)


def add_gumbel_noise(saliency_BSRC: Tensor, temperature: float, seeds_B: Tensor) -> Tensor:
    """Return saliency / temperature + Gumbel noise: its top k are a draw without replacement from softmax(saliency
    / temperature) (Kool et al. 2019, arXiv 1903.06059)."""
    noise = seeding.gumbel(seeds_B, saliency_BSRC[0].numel(), "mask.gumbel")
    return saliency_BSRC / temperature + noise.view_as(saliency_BSRC)


def split(priority_BSRC: Tensor, scope: str, hidden: int, grid: Grid, seeds_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return token indices (hidden int64 [B, K], visible int64 [B, K']): `hidden` tokens of each group, in no set
    order."""
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
    """Draw `count` of each row's indices at random without replacement, ascending; `preferred` tokens (bool) among
    them come before any others."""
    if count < index_BK.shape[1]:
        noise_BN = seeding.bits(seeds_B, grid.tokens, purpose)
        if preferred_BN is not None:
            noise_BN = noise_BN.bitwise_or(1 << 62).where(~preferred_BN, noise_BN.bitwise_and((1 << 62) - 1))
        index_BK = index_BK.gather(1, noise_BN.gather(1, index_BK).argsort(dim=-1)[:, :count])
    return index_BK.sort(dim=-1).values


def running_cell(seeds_B: Tensor, grid: Grid) -> Tensor:
    """Return VideoMAE V2's running cells (arXiv 2303.16727, section 3.2): bool [B, N], half of the tokens of each
    slot.

    In each cell of 2 x 2 tokens two neighbours on its rim are kept; in the next slot the pair moves on by one. The
    pair of the first slot is random, one for the clip."""
    start_B111 = seeding.bits(seeds_B, 1, "mask.running cell")[:, :, None, None] % 4
    slot, row, column = (torch.arange(n, device=seeds_B.device) for n in (grid.slots, grid.rows, grid.columns))
    rim_RC = (2 * (row % 2))[:, None] + (column % 2 != (row % 2)[:, None])  # 0 1 / 3 2: clockwise
    step = (rim_RC - slot[:, None, None] - start_B111) % 4
    return (step < 2).flatten(1)
