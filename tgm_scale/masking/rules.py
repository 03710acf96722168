"""Rules: from saliency to priority. Of each group, selection hides the tokens of highest priority.

A rule is `rule(saliency, spec)` -> priority, float [B, S, R, C] both (S = 1 under the scope `tube`). A new one is a
function and a line of RULES.

Shapes: B clips, S slots, R rows, C columns, G groups of n tokens, P parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.masking.selection import grouped, rank_normalise
from tgm_scale.runtime import seeding

BOX_ASPECTS = (3 / 4, 4 / 3)  # of a moving box, width / height in tokens
BOX_SMOOTHING = 1.0  # standard deviation in slots of the window over which a box's way is smoothed
PARTS = 7  # SemMAE's number


@dataclass(frozen=True)
class SelectionSpec:
    """What a rule has to select."""

    seeds_B: Tensor  # int64
    scope: str
    scale: str  # of the saliency: 'rank' or 'raw'
    hidden: int  # tokens to hide in each group
    whole_parts: float  # of stratified


def top_k(saliency_BSRC: Tensor, spec: SelectionSpec) -> Tensor:
    return saliency_BSRC


def bottom_k(saliency_BSRC: Tensor, spec: SelectionSpec) -> Tensor:
    return -saliency_BSRC


def moving_box(saliency_BSRC: Tensor, spec: SelectionSpec) -> Tensor:
    """A box that follows the saliency, for motion-guided masking (after MGM, arXiv 2308.12962).

    Its middle in each slot is the saliency's centre of mass, smoothed over the slots (each weighs as much as its
    mass); where a clip has no saliency at all, a random place. Its area is that of the tokens to hide, its aspect
    random. Tokens in the box come first, by saliency, then the others, by saliency: so the count is exact, however the
    box is rounded to whole tokens."""
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
        middle_BS = torch.minimum(torch.maximum(middle_BS, half_B1), length - half_B1)  # wholly inside the frame
        inside.append((place_L - middle_BS[..., None]).abs() <= half_B1[..., None])
    inside_BSRC = inside[0][..., None] & inside[1][:, :, None]
    return inside_BSRC + 0.5 * rank_normalise(saliency_BSRC, spec.scope)


def _smooth_centre(mass_BSL: Tensor, place_L: Tensor, fallback_B: Tensor) -> Tensor:
    """Centre of mass along one axis in each slot, float64 [B, S], smoothed over the slots."""
    slots = mass_BSL.shape[1]
    apart_SS = torch.arange(slots, device=mass_BSL.device)[:, None] - torch.arange(slots, device=mass_BSL.device)
    window_SS = torch.exp(-0.5 * (apart_SS / BOX_SMOOTHING).double().square()) + 1e-6  # all slots have some say
    mass_BS = (window_SS * mass_BSL.sum(2)[:, None]).sum(2)
    moment_BS = (window_SS * (mass_BSL * place_L).sum(2)[:, None]).sum(2)
    centre_BS = torch.where(mass_BS > 0, moment_BS / mass_BS.clamp(min=1e-300), fallback_B[:, None])
    return (centre_BS * 2**20).round() / 2**20  # the last bit of a sum may depend on the batch


def stratified(saliency_BSRC: Tensor, spec: SelectionSpec) -> Tensor:
    """The same share of every part of the picture, or parts as wholes, or between the two (SemMAE, arXiv 2206.10207,
    section 3.3; there `whole_parts` grows from 0 to 1 in the course of the training).

    The saliency names the parts: 0 to 6 as they are (`scale: raw`, from the source `parts`), or seven equal bands of
    ranks (`scale: rank`). Which tokens of a part are hidden, and which parts are hidden as wholes, is random."""
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
    """How many tokens of each part are hidden where parts are hidden as wholes, in random order, until it is enough;
    the last one in part."""
    noise_BGP = seeding.bits(spec.seeds_B, size_BGP[0].numel(), "mask.part order").view(size_BGP.shape)
    order_BGP = noise_BGP.argsort(dim=-1)
    sizes_BGP = size_BGP.gather(2, order_BGP)
    left_BGP = spec.hidden - (sizes_BGP.cumsum(dim=-1) - sizes_BGP)
    taken_BGP = torch.minimum(left_BGP.clamp(min=0), sizes_BGP)
    return torch.zeros_like(taken_BGP).scatter(2, order_BGP, taken_BGP)


# With a temperature top_k is the Gumbel top-k trick: it draws the hidden tokens without replacement, bottom_k the
# visible ones.
RULES: dict[str, Callable[[Tensor, SelectionSpec], Tensor]] = {
    "top_k": top_k,
    "bottom_k": bottom_k,
    "moving_box": moving_box,
    "stratified": stratified,
}
