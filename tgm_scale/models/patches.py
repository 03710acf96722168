"""A video as tokens: patches, their positions and their embedding.

Shapes: B clips, C=3 channels, T frames, H W pixels, N tokens of the grid, V of them gathered, D width of the model,
P = C * tubelet * patch * patch values of a patch.

A patch's values are in the order (channel, frame, row, column), that of a Conv3d weight: embedding is one matrix
product with the flattened weight, and the pixels of a channel, over which targets are normalised, stay together.
VideoMAE's targets and predictions are in the order (frame, row, column, channel); `channel_last` and `channel_first`
convert between the two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.contracts import Grid

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS = 3


class PixelStatistics(NamedTuple):
    """Statistics that normalise pixels: means and standard deviations of red, green and blue in 0..1."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def in_grey_levels(self) -> Tensor:
        """Return the statistics of pixels in 0..255, float32 [2, C, 1]."""
        return torch.tensor([self.mean, self.std])[..., None] * 255

    def restated(self, weight_DCtpp: Tensor, bias_D: Tensor, old: PixelStatistics) -> tuple[Tensor, Tensor]:
        """Convert a patch embedding's weight and bias from pixels normalised by `old` to pixels normalised by these
        statistics: one is linear in the other, channel by channel. float32, computed in float64."""
        mean_C, std_C, old_mean_C, old_std_C = (torch.tensor(x, dtype=torch.float64) for x in (*self, *old))
        weight_DCtpp, scale_C, shift_C = weight_DCtpp.double(), std_C / old_std_C, (mean_C - old_mean_C) / old_std_C
        more_D = (weight_DCtpp.sum((2, 3, 4)) * shift_C).sum(1)
        return (weight_DCtpp * scale_C[:, None, None, None]).float(), (bias_D + more_D).float()


IMAGENET = PixelStatistics()


def patchify(video_BCTHW: Tensor, tubelet: int, patch: int) -> Tensor:
    """Return the clip's patches in the grid's order, [B, N, P], of the video's dtype. Sides divide (see `Grid.of`)."""
    B, C, T, H, W = video_BCTHW.shape
    x = video_BCTHW.reshape(B, C, T // tubelet, tubelet, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def unpatchify(patches_BNP: Tensor, grid: Grid, tubelet: int, patch: int) -> Tensor:
    """Invert `patchify`: [B, C, T, H, W]."""
    B = patches_BNP.shape[0]
    x = patches_BNP.reshape(B, grid.slots, grid.rows, grid.columns, CHANNELS, tubelet, patch, patch)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(B, CHANNELS, grid.slots * tubelet, grid.rows * patch, grid.columns * patch)


def channel_last(patches_BNP: Tensor) -> Tensor:
    """Reorder each patch: (channel, frame, row, column) -> (frame, row, column, channel)."""
    return patches_BNP.unflatten(-1, (CHANNELS, -1)).transpose(-1, -2).flatten(-2)


def channel_first(patches_BNP: Tensor) -> Tensor:
    """Reorder each patch: (frame, row, column, channel) -> (channel, frame, row, column)."""
    return patches_BNP.unflatten(-1, (-1, CHANNELS)).transpose(-1, -2).flatten(-2)


def gather_tokens(x_BND: Tensor, index_BV: Tensor) -> Tensor:
    """Return the tokens that each clip's row of `index_BV` names: [B, V, D]."""
    return x_BND.gather(1, index_BV[..., None].expand(-1, -1, x_BND.shape[-1]))


def most_varied(patches_BNP: Tensor, count: int) -> Tensor:
    """Return the `count` tokens of each clip whose pixels vary most, the channels' variances added: int64 [B, count],
    ascending. Of equal ones the first are taken. Levels are rounded to integers, so that the order cannot depend on
    the batch."""
    levels_BNCQ = patches_BNP.round().int().unflatten(-1, (CHANNELS, -1))
    size = levels_BNCQ.shape[-1]
    spread_BN = (size * levels_BNCQ.square().sum(-1) - levels_BNCQ.sum(-1).square()).sum(-1)
    return spread_BN.argsort(dim=-1, descending=True, stable=True)[:, :count].sort(dim=-1).values


def sine_cosine_table(tokens: int, width: int) -> Tensor:
    """Return fixed positions, float32 [tokens, width]: sine and cosine by turns (Vaswani et al. 2017, section 3.5).

    The position is the token's index in the flattened clip, as in VideoMAE (Tong et al. 2022). Computed in float64: in
    float32 the table is up to 1.2e-4 off."""
    frequency_K = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle_NK = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency_K
    return torch.stack([angle_NK.sin(), angle_NK.cos()], dim=-1).flatten(1)[:, :width].float()


def interpolated_table(origin: Grid, grid: Grid, width: int) -> Tensor:
    """Return the positions of `origin`, on which a model was trained, interpolated at the places of another grid's
    tokens: float32 [tokens of grid, width]. Both grids span the whole clip.

    Bicubic in space, as image transformers are adapted to other sizes (Touvron et al. 2019, arXiv 1906.06423; DeiT),
    then linear in time. The same grid has the same positions to the bit."""
    table_ND = sine_cosine_table(origin.tokens, width)
    if grid == origin:
        return table_ND
    x_SDRC = table_ND.double().view(origin.slots, origin.rows, origin.columns, width).permute(0, 3, 1, 2)
    if (grid.rows, grid.columns) != (origin.rows, origin.columns):
        x_SDRC = F.interpolate(x_SDRC, (grid.rows, grid.columns), mode="bicubic", align_corners=False)
    x_SE = x_SDRC.permute(0, 2, 3, 1).flatten(1)
    if grid.slots != origin.slots:
        x_SE = F.interpolate(x_SE.T[None], grid.slots, mode="linear", align_corners=False)[0].T
    return x_SE.reshape(grid.tokens, width).float()


class ComputedBuffer(nn.Module):
    """A float32 buffer that is computed and never saved, and computed anew after every move or cast of the module.

    So `module.bfloat16()`, which DeepSpeed calls, does not round it, and `to_empty()` does not leave it empty."""

    value: Tensor

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.register_buffer("value", compute(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ComputedBuffer:
        super()._apply(fn, recurse)
        if not self.value.is_meta:
            self.value = self.compute().to(self.value.device)
        return self


class Positions(ComputedBuffer):
    """Fixed position embedding of a grid: adds to each token that of its place.

    origin: the grid that the model was trained on, where it is another: positions are interpolated from it."""

    def __init__(self, grid: Grid, width: int, origin: Grid | None = None) -> None:
        if origin is None:
            super().__init__(partial(sine_cosine_table, grid.tokens, width))
        else:
            super().__init__(partial(interpolated_table, origin, grid, width))

    def forward(self, x_BVD: Tensor, index_BV: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the tokens plus the positions of `index_BV` (None: all, in order), summed in float32, as `dtype`."""
        positions = self.value if index_BV is None else self.value[index_BV]
        return (x_BVD + positions).to(dtype)


class PatchProjection(nn.Module):
    """A Conv3d whose kernel is its stride, as one matrix product: the weight keeps the Conv3d's shape [D, C, t, p, p].

    torch's own Conv3d takes a slow path in bf16 on several releases (pytorch issue 174051)."""

    def __init__(self, width: int, tubelet: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, CHANNELS, tubelet, patch, patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_BVP: Tensor) -> Tensor:
        dtype = self.weight.dtype  # also of the result, under autocast too
        return F.linear(x_BVP.to(dtype), self.weight.flatten(1), self.bias).to(dtype)


class PatchEmbed(nn.Module):
    """Embedding of patches: 0..255 (uint8 or float) -> normalised in float32 -> tokens of the model's width."""

    def __init__(self, width: int, tubelet: int, patch: int, statistics: PixelStatistics = IMAGENET) -> None:
        super().__init__()
        self.statistics = ComputedBuffer(statistics.in_grey_levels)
        self.proj = PatchProjection(width, tubelet, patch)

    def forward(self, patches_BVP: Tensor) -> Tensor:
        mean_C1, std_C1 = self.statistics.value
        x = (patches_BVP.float().unflatten(-1, (CHANNELS, -1)) - mean_C1) / std_C1
        return self.proj(x.flatten(-2))
