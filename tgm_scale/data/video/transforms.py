"""Crops of clips: their position, and cropping and resizing, consistent between pixels and maps.

T frames, H W pixels of the source; h w pixels of the crop. A map [S, y, x] of any resolution covers the whole
frame; R, C are the rows and columns of the clip's token grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tgm_scale.contracts import STANDARD_DEVIATION, STANDARD_MEAN
from tgm_scale.runtime import seeding

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
RESIZED_SHARES = (0.5, 1.0)  # of the frame's area
RESIZED_ASPECTS = (3 / 4, 4 / 3)  # width / height
_TRIES = 10

Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Crop:
    """Box in a frame of frame_height x frame_width pixels, and whether its picture is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    frame_height: int
    frame_width: int

    def cut(self, image_HW3: np.ndarray) -> np.ndarray:
        """Return a view of the box's pixels, not yet mirrored."""
        return image_HW3[self.top : self.top + self.height, self.left : self.left + self.width]

    def resize(self, cut_Thw3: np.ndarray, size: int) -> Tensor:
        """Return the box's pixels of T frames as uint8 [T, size, size, 3], mirrored if `flip`."""
        clip_Thw3 = torch.empty(len(cut_Thw3), size, size, 3, dtype=torch.uint8)
        self.resize_into(clip_Thw3, cut_Thw3)
        return clip_Thw3

    def resize_into(self, clip_Thw3: Tensor, cut_Thw3: np.ndarray) -> None:
        """Write the resized box's pixels into `clip_Thw3`, mirrored if `flip`.

        Bilinear, with antialiasing when shrinking. All frames in one call: torch sets up its weights again for each
        call, which for single frames costs four times the resize itself."""
        pixels_T3hw = torch.from_numpy(np.ascontiguousarray(cut_Thw3)).permute(0, 3, 1, 2)  # in memory as the clip is
        size = clip_Thw3.shape[1:3]
        # what F.interpolate(mode="bilinear", antialias=True) calls, which has no `out` argument
        torch.ops.aten._upsample_bilinear2d_aa.out(
            pixels_T3hw, size, False, None, None, out=clip_Thw3.permute(0, 3, 1, 2)
        )
        if self.flip:
            clip_Thw3.copy_(clip_Thw3.flip(2))

    def resample(self, map_Syx: np.ndarray, rows: int, columns: int) -> Tensor:
        """Return a map on the clip's token grid, float32 [S, R, C]: each token samples it at its own place in the
        frame.

        Bilinear, with antialiasing where the map is finer than the tokens."""
        _, y, x = map_Syx.shape
        vertical_Ry = axis_weights(self.top / self.frame_height, self.height / self.frame_height, rows, y)
        across_Cx = axis_weights(self.left / self.frame_width, self.width / self.frame_width, columns, x)
        if self.flip:
            across_Cx = across_Cx[::-1]
        return torch.from_numpy(np.float32(vertical_Ry @ map_Syx.astype(np.float64) @ across_Cx.T))

    def row(self) -> tuple[float, float, float, float, float]:
        """Return the crop in the form of `Batch.crops`."""
        return self.top, self.left, self.height, self.width, float(self.flip)


def standardised(clip: Tensor) -> Tensor:
    """Return a clip's pixels, uint8 of any shape, mapped to STANDARD_MEAN and STANDARD_DEVIATION by one linear
    function and clipped to 0..255: for dark clips with few bright spots both end up somewhat lower. Counts are
    integers, so the result does not depend on summation order."""
    counts_256 = torch.bincount(clip.flatten(), minlength=256)
    levels_256 = torch.arange(256, dtype=torch.float64)
    mean = (levels_256 * counts_256).sum() / clip.numel()
    deviation = ((levels_256 - mean).square() * counts_256).sum().div(clip.numel()).sqrt()
    # at least 2: compression noise in a clip of one level, a deviation of about 1, is amplified half as much
    line_256 = (levels_256 - mean) / max(float(deviation), 2.0) * STANDARD_DEVIATION + STANDARD_MEAN
    return line_256.round().clamp(0, 255).to(torch.uint8)[clip.long()]


def axis_weights(start: float, length: float, count: int, cells: int) -> np.ndarray:
    """Return weights, float64 [count, cells], that sample an axis of equal cells in `count` equal steps.

    The steps cover `length` from `start`, both as shares of the axis. A step weights cells by a triangle about its
    middle that reaches one cell or one step, whichever is longer; rows sum to 1. Where steps are cells: the
    identity.
    """
    step = length * cells / count
    middles = start * cells + step * (np.arange(count) + 0.5)
    distance = np.abs(middles[:, None] - (np.arange(cells) + 0.5))
    weights = np.maximum(0.0, 1.0 - distance / max(1.0, step))
    return weights / weights.sum(axis=1, keepdims=True)


def multi_scale_crop(height: int, width: int, seed: int) -> Box:
    """Draw VideoMAE's crop (Tong et al. 2022, after TSN, Wang et al. 2016, section 3.2).

    Each side of the box is the frame's short side times a scale; the two scales are equal or neighbours in
    MULTI_SCALES, so the aspect is at most 4/3. The box lies at one of 13 places: divide the remaining room by 4 in
    each direction, and take the lattice points (a, b) with a + b even."""
    short = min(height, width)
    last = len(MULTI_SCALES) - 1
    pairs = [(i, j) for i in range(last + 1) for j in range(max(0, i - 1), min(last, i + 1) + 1)]
    places = [(a, b) for a in range(5) for b in range(5) if (a + b) % 2 == 0]
    which_pair, which_place = seeding.draw(seed, "crop", 2)
    i, j = pairs[int(which_pair * len(pairs))]
    a, b = places[int(which_place * len(places))]
    box_height, box_width = (max(1, int(short * MULTI_SCALES[k])) for k in (i, j))
    return (height - box_height) * a // 4, (width - box_width) * b // 4, box_height, box_width


def random_resized_crop(height: int, width: int, seed: int) -> Box:
    """Draw a box of a random share of the frame's area and a random aspect (Szegedy et al. 2015, section 6), with the
    narrower ranges of MAE-ST (Feichtenhofer et al. 2022): share 0.5 to 1, aspect 3/4 to 4/3, log-uniform.

    Takes the first of 10 draws that fits in the frame; else the largest centred box of an allowed aspect."""
    draws = seeding.draw(seed, "crop", 4 * _TRIES)
    low, high = (math.log(aspect) for aspect in RESIZED_ASPECTS)
    for k in range(0, len(draws), 4):
        area = height * width * (RESIZED_SHARES[0] + draws[k] * (RESIZED_SHARES[1] - RESIZED_SHARES[0]))
        aspect = math.exp(low + draws[k + 1] * (high - low))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = (int(draws[k + 2] * (height - box_height + 1)), int(draws[k + 3] * (width - box_width + 1)))
            return top, left, box_height, box_width
    aspect = min(max(width / height, RESIZED_ASPECTS[0]), RESIZED_ASPECTS[1])
    box_height, box_width = max(1, min(height, round(width / aspect))), max(1, min(width, round(height * aspect)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def center_crop(height: int, width: int, seed: int) -> Box:
    """Return the largest centred square; nothing random."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


CROPS: dict[str, Callable[[int, int, int], Box]] = {
    "multi_scale": multi_scale_crop,
    "random_resized": random_resized_crop,
    "center": center_crop,
}


def draw_crop(kind: str, height: int, width: int, seed: int, flip: bool) -> Crop:
    """Return the crop that `seed` draws in a frame of height x width; mirrored half of the time if `flip`."""
    mirrored = flip and seeding.draw(seed, "flip")[0] < 0.5
    return Crop(*CROPS[kind](height, width, seed), mirrored, height, width)
