"""Saliency sources by name, the components of a recipe's mixture. A new source is a function and a line of SOURCES.

Shapes: B clips, S slots, R rows, C columns, K cuboids or centres, L positions along one axis, T frames, h x w cells
of the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.runtime import seeding

CUBOIDS = 128  # together they cover 0.97 of a clip of 8 x 14 x 14 on average; the remainder counts as one more
CUBOID_SIDE = (0.25, 0.5)  # share of the frame's height and of its width
CUBOID_LENGTH = (0.25, 1.0)  # share of the clip's slots


@dataclass(frozen=True)
class SaliencyInputs:
    """Clips of a batch: their seeds, and the maps that came with them, by name."""

    seeds_B: Tensor  # int64
    grid: Grid
    maps: Mapping[str, Tensor]  # each float [B, S, R, C], except flow (see `mixture`) and heads [B, A, S, R, C]
    visible_share: float  # of a clip's tokens that the mask will not hide


def per_token(inputs: SaliencyInputs) -> Tensor:
    """Return uniform noise for each token: random masking (MAE-ST, arXiv 2205.09113); tubes under the scope `tube`
    (VideoMAE, arXiv 2203.12602)."""
    grid = inputs.grid
    noise_BN = seeding.uniform(inputs.seeds_B, grid.tokens, "saliency.random")
    return noise_BN.view(-1, grid.slots, grid.rows, grid.columns)


def per_slot(inputs: SaliencyInputs) -> Tensor:
    """Return one random number for all tokens of a slot: frame masking (ablated in VideoMAE, arXiv 2203.12602)."""
    grid = inputs.grid
    noise_BS = seeding.uniform(inputs.seeds_B, grid.slots, "saliency.frame")
    return noise_BS[:, :, None, None].expand(-1, -1, grid.rows, grid.columns)


def cuboids(inputs: SaliencyInputs) -> Tensor:
    """Return scores of random ordered cuboids, the first scoring highest: block masking in space-time (ablated in
    MAE-ST, arXiv 2205.09113, after BEiT, arXiv 2106.08254).

    A cuboid may lie partly outside the clip, so that border and centre are covered equally. A token in several
    cuboids has the score of the first, one in none has 0."""
    grid, seeds_B = inputs.grid, inputs.seeds_B
    lengths = (grid.slots, grid.rows, grid.columns)
    inside = [_inside(seeds_B, axis, length) for axis, length in enumerate(lengths)]
    inside_BKSRC = inside[0][:, :, :, None, None] & inside[1][:, :, None, :, None] & inside[2][:, :, None, None, :]
    order_K = torch.arange(CUBOIDS, 0, -1, device=seeds_B.device, dtype=torch.uint8)
    return (inside_BKSRC * order_K[:, None, None, None]).amax(dim=1).float()


def _inside(seeds_B: Tensor, axis: int, length: int) -> Tensor:
    """Return the positions of an axis that each cuboid covers: bool [B, K, L], none where it lies almost entirely
    outside."""
    smallest, largest = CUBOID_LENGTH if axis == 0 else CUBOID_SIDE
    centre_BK, share_BK = seeding.uniform(seeds_B, 2 * CUBOIDS, f"saliency.block.{axis}").chunk(2, dim=1)
    half_BK = (smallest + (largest - smallest) * share_BK) * length / 2
    half_BK = half_BK.clamp(min=0.5)
    middle_L = torch.arange(length, device=seeds_B.device) + 0.5
    centre_BK = centre_BK * (length + 2 * half_BK) - half_BK
    return (middle_L - centre_BK[..., None]).abs() <= half_BK[..., None]


def attention(inputs: SaliencyInputs) -> Tensor:
    """Return the logarithm of a frozen tower's class attention: with Gumbel noise of temperature 1, the tokens of
    highest score are a draw without replacement in proportion to it (Unmasked Teacher, arXiv 2303.16058)."""
    attention_BSRC = inputs.maps["attention"].float()
    return attention_BSRC.clamp(min=torch.finfo(torch.float32).tiny).log()


def mixture(inputs: SaliencyInputs) -> Tensor:
    """Return the maximum of Gaussians around tokens of the base frame, as many as tokens will be visible, with one
    token's standard deviation, warped to every frame along the flow; a slot has the mean over its frames and pixels.

    maps["flow"]: float [B, T, 2, h, w]; from each frame to the previous one (after the base frame) or the next one
    (before the base frame), across then down, as shares of the frame; the base frame is the first of the middle
    slot, T // 2, and its own flow is not read. A cell is traced back to the base frame step by step, and the
    Gaussians are evaluated at the end point, so they stay sharp, however many steps. A trace that leaves the frame
    uses the base frame at the cell's own place, as MGMAE fills holes."""
    grid, flow_BT2hw = inputs.grid, inputs.maps["flow"].float()
    frames = flow_BT2hw.shape[1]
    centres_BK2 = _centres(inputs)
    traced = trace(flow_BT2hw)
    home_hw2 = _places(flow_BT2hw.shape[-2], flow_BT2hw.shape[-1], flow_BT2hw.device)
    maps = []
    for place_Bhw2 in traced:
        inside_Bhw1 = ((place_Bhw2 >= 0) & (place_Bhw2 <= 1)).all(dim=-1, keepdim=True)
        read_BP2 = torch.where(inside_Bhw1, place_Bhw2, home_hw2).flatten(1, 2)
        across_BPK, down_BPK = (read_BP2[:, :, None] - centres_BK2[:, None]).unbind(-1)
        nearest_BP = ((across_BPK * grid.columns).square() + (down_BPK * grid.rows).square()).amin(dim=-1)
        height_B1hw = torch.exp(-nearest_BP / 2).view(-1, 1, *home_hw2.shape[:2])
        maps.append(F.adaptive_avg_pool2d(height_B1hw, (grid.rows, grid.columns)))
    pooled_BTRC = torch.cat(maps, dim=1)
    tubelet = frames // grid.slots
    mean_BSRC = torch.zeros((), device=pooled_BTRC.device)
    for k in range(tubelet):  # one after another, in the same order in any batch
        mean_BSRC = mean_BSRC + pooled_BTRC[:, k::tubelet] / tubelet
    return mean_BSRC


def trace(flow_BT2hw: Tensor) -> list[Tensor]:
    """Return the locations of each frame's cells in the base frame: T of float32 [B, h, w, 2], across then down, as
    shares."""
    batch, frames, _, height, width = flow_BT2hw.shape
    base = frames // 2
    home_hw2 = _places(height, width, flow_BT2hw.device)
    traced: dict[int, Tensor] = {base: home_hw2.expand(batch, -1, -1, -1)}
    for outward in (range(base + 1, frames), range(base - 1, -1, -1)):
        for t in outward:
            nearer = t - 1 if t > base else t + 1
            there_Bhw2 = home_hw2 + flow_BT2hw[:, t].permute(0, 2, 3, 1)
            moved_B2hw = (traced[nearer] - home_hw2).permute(0, 3, 1, 2)
            further_B2hw = F.grid_sample(moved_B2hw, 2 * there_Bhw2 - 1, padding_mode="border", align_corners=False)
            traced[t] = there_Bhw2 + further_B2hw.permute(0, 2, 3, 1)
    return [traced[t] for t in range(frames)]


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Return the centres of h x w cells: float32 [h, w, 2], across then down, as shares."""
    down_h, across_w = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
    return torch.stack(torch.broadcast_tensors(across_w, down_h[:, None]), dim=-1)


def _centres(inputs: SaliencyInputs) -> Tensor:
    """Return the centres of distinct tokens, drawn at random: float32 [B, K, 2]."""
    grid = inputs.grid
    count = max(round(inputs.visible_share * grid.per_slot), 1)
    token_BK = seeding.bits(inputs.seeds_B, grid.per_slot, "saliency.flow").argsort(dim=-1)[:, :count]
    row_BK, column_BK = token_BK // grid.columns, token_BK % grid.columns
    return torch.stack([(column_BK + 0.5) / grid.columns, (row_BK + 0.5) / grid.rows], dim=-1)


@dataclass(frozen=True)
class Learned:
    """Properties of a learned source, whose map is the logits of a model within the trained module, from which the
    mask is drawn. taught_by: the term of the objective that teaches it. draws: the rule that draws from its logits,
    `bottom_k` the visible tokens, `top_k` the hidden ones. relaxed: taught through the noise of the draw."""

    taught_by: str
    draws: str
    relaxed: bool = False


@dataclass(frozen=True)
class Source:
    """Saliency source: `score(inputs)` -> float32 [B, S, R, C], higher = more salient, of any range.

    `needs` names the maps of the batch that must be in `inputs.maps`. Randomness of a score is keyed by the
    sample's seed."""

    score: Callable[[SaliencyInputs], Tensor]
    needs: frozenset[str] = frozenset()
    learned: Learned | None = None


def _of_batch(name: str) -> Source:
    """Return a source of the batch's map of this name."""
    return Source(lambda inputs: inputs.maps[name].float(), frozenset({name}))


SOURCES: dict[str, Source] = {
    "random": Source(per_token),
    "frame": Source(per_slot),
    "block": Source(cuboids),
    "text": _of_batch("relevance"),  # relevance to the caption: text-guided masking (arXiv 2408.00759)
    "motion": _of_batch("motion"),  # from the codec's vectors: motion-guided masking (arXiv 2308.12962)
    "attention": Source(attention, frozenset({"attention"})),
    "parts": _of_batch("parts"),  # the number of each patch's part of the picture: SemMAE (arXiv 2206.10207)
    "flow": Source(mixture, frozenset({"flow"})),
    "sampler": replace(_of_batch("sampler"), learned=Learned("policy", draws="bottom_k")),  # AdaMAE's
    # AutoMAE's, computed from the attention of each head of the frozen tower
    "generator": replace(
        _of_batch("generator"),
        needs=frozenset({"generator", "heads"}),
        learned=Learned("adversary", draws="top_k", relaxed=True),
    ),
}
