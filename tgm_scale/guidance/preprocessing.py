"""Preprocessing of a tower's pixels: size, crop, resampling and normalisation, from its preprocessor_config.json.

Shapes: N frames of H x W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGEST_SIDE = 4096


MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as in preprocessor_config.json


def _check_numbers(mean: tuple, std: tuple, levels: float, sides: list) -> None:
    """Raise ValueError for values that no tower was trained with."""
    plain = all(isinstance(x, (int, float)) and isfinite(x) for x in (*mean, *std, levels))
    if not plain or len(mean) != 3 or len(std) != 3 or min(*std, levels) <= 0:
        raise ValueError(
            f"guidance.towers: preprocessor_config.json: image_mean={list(mean)}, image_std={list(std)}, a pixel by "
            f"{levels}: wanted three means, three deviations above 0 and a factor above 0"
        )
    if any(type(side) is not int or not 0 < side <= _LARGEST_SIDE for side in sides):
        raise ValueError(
            f"guidance.towers: preprocessor_config.json: size, crop_size {sides}: wanted 1 to {_LARGEST_SIDE} pixels"
        )


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing that a tower was trained with: resizing as by PIL, to within one grey level, and normalisation."""

    side: int
    crop: bool  # a picture's shorter edge is resized to `side`; else it is stretched to a square
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cut: int | None = None  # side of the centre crop, 0 for none; None: `side` where `crop`, and else none
    levels: float = 255.0  # divisor of a pixel before normalisation

    @classmethod
    def read(cls, config: dict[str, Any]) -> Preprocessing:
        """Parse preprocessor_config.json, field by field. Raises ValueError where one is missing or unknown."""
        try:
            size, cut, mode = config["size"], 0, MODES[config["resample"]]
            crop = isinstance(size, int) or "shortest_edge" in size
            side = size if isinstance(size, int) else size["shortest_edge"] if crop else size["height"]
            if config.get("do_center_crop", crop):
                cut = config.get("crop_size", side)
                cut = cut if isinstance(cut, int) else cut["height"]
            normal = config.get("do_normalize", True)
            mean = tuple(config["image_mean"]) if normal else (0.0, 0.0, 0.0)
            std = tuple(config["image_std"]) if normal else (1.0, 1.0, 1.0)
            levels = round(1 / config.get("rescale_factor", 1 / 255), 6) if config.get("do_rescale", True) else 1.0
            sides = [side, cut] if cut else [side]
            _check_numbers(mean, std, levels, sides)
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(
                f"guidance.towers: preprocessor_config.json: {error} is missing or unknown; wanted size, resample "
                "(2 or 3), image_mean and image_std"
            ) from None
        squares = [value for value in (size, config.get("crop_size")) if isinstance(value, dict)]
        if any(value.get("height") != value.get("width") or "longest_edge" in value for value in squares):
            raise ValueError(
                f"guidance.towers: preprocessor_config.json: wanted squares, found size and crop {squares}"
            )
        if not config.get("do_resize", True):
            raise ValueError(
                "guidance.towers: preprocessor_config.json: do_resize=false: frames come in any size: set it to "
                f"true, with the size that the tower was trained at ({side}?)"
            )
        if cut > side:
            raise ValueError(
                f"guidance.towers: preprocessor_config.json: crop_size {cut}, size {side}: wanted a crop that fits"
            )
        return cls(side, crop, mode, mean, std, cut, levels)

    def frames(self, frames_N3HW: Tensor, side: int) -> Tensor:
        """Return each whole frame at side x side: float32 [N, 3, side, side] of uint8 [N, 3, H, W]."""
        return self._normalise(self._resize(_planes(frames_N3HW), side, side))

    def pictures(self, pictures_N3HW: Tensor) -> Tensor:
        """Return pictures as the tower's own image processor does: float32 [N, 3, side, side], or of its centre
        crop."""
        side, (height, width) = self.side, pictures_N3HW.shape[2:]
        if self.crop:
            short = min(height, width)
            height, width = side * height // short, side * width // short
        else:
            height = width = side
        resized = self._resize(_planes(pictures_N3HW), height, width)
        if cut := (side if self.crop else 0) if self.cut is None else self.cut:
            top, left = (height - cut) // 2, (width - cut) // 2
            resized = resized[:, :, top : top + cut, left : left + cut]
        return self._normalise(resized)

    def _resize(self, x_N3HW: Tensor, height: int, width: int) -> Tensor:
        """Resize as PIL does: along the rows, then along the columns, rounded to whole grey levels after each.

        In one float pass, a photograph would be off by 3 grey levels. (PIL 13 takes the other order for some
        pictures that shrink more in height than in width.)"""
        for size in ((x_N3HW.shape[2], width), (height, width)):
            if x_N3HW.shape[2:] != size:
                x_N3HW = F.interpolate(x_N3HW, size=size, mode=self.mode, antialias=True, align_corners=False)
                x_N3HW = x_N3HW.round().clamp(0, 255)
        return x_N3HW

    def _normalise(self, x_N3HW: Tensor) -> Tensor:
        mean, std = (_channels(values, x_N3HW.device) for values in (self.mean, self.std))
        return (x_N3HW / self.levels - mean) / std


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return [C, 1, 1], cached."""
    return torch.tensor(values).to(device, non_blocking=True)[:, None, None]


def _planes(x_N3HW: Tensor) -> Tensor:
    """Return float32 planes, contiguous by channel: the memory layout may change a product's last bit."""
    return x_N3HW.to(torch.float32, memory_format=torch.contiguous_format)
