"""Shapes and colours of the synthetic corpus, and their rasteriser.

A shape is two radial profiles: a point at angle a and distance d from the centre is inside where inner(a) < d <
outer(a). So one table look-up draws all shapes of a batch at once. Every shape has the area of the unit disc: size
reveals nothing about shape.

Shapes: N images, K objects in each, H W pixels, A angles of the profile table.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {  # hue, in turns
    "red": 0.0,
    "yellow": 1 / 6,
    "green": 2 / 6,
    "cyan": 3 / 6,
    "blue": 4 / 6,
    "magenta": 5 / 6,
}
_ANGLES = 720


def _regular(corners: int) -> np.ndarray:
    turns = 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(turns), np.sin(turns)], 1)


def _cross(half_width: float) -> np.ndarray:
    w = half_width
    arm = np.array([[w, -1.0], [w, -w], [1.0, -w]])
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter.T, i) for i in range(4)])


def _profile(corners: np.ndarray) -> np.ndarray:
    """Return the distance from the origin to a polygon that every ray from the origin leaves once, at each angle."""
    angles = 2 * math.pi * np.arange(_ANGLES) / _ANGLES
    ray = np.stack([np.cos(angles), np.sin(angles)], 1)[:, None]
    start = corners[None]
    edge = np.roll(corners, -1, axis=0)[None] - start
    turn = ray[..., 0] * edge[..., 1] - ray[..., 1] * edge[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (start[..., 0] * edge[..., 1] - start[..., 1] * edge[..., 0]) / turn
        along = (start[..., 0] * ray[..., 1] - start[..., 1] * ray[..., 0]) / turn
    hit = (distance > 0) & (along >= -1e-9) & (along <= 1 + 1e-9)
    return np.where(hit, distance, -np.inf).max(1)


@cache
def profiles() -> Tensor:
    """Return the outer and inner radius of every shape at every angle: float32 [shapes, 2, A], each of area pi.

    A shape without a hole has the inner radius -1."""
    circle = np.ones(_ANGLES)
    outer = {
        "circle": circle,
        "square": _profile(_regular(4)),
        "triangle": _profile(_regular(3)),
        "star": _profile(_regular(10) * np.tile([1.0, 0.42], 5)[:, None]),
        "cross": _profile(_cross(0.34)),
        "ring": circle,
    }
    hole = {"ring": 0.45}
    table = np.empty((len(SHAPES), 2, _ANGLES))
    for row, name in enumerate(SHAPES):
        inner = hole.get(name, 0.0)
        scale = 1 / math.sqrt((outer[name] ** 2).mean() - inner**2)
        table[row, 0] = scale * outer[name]
        table[row, 1] = scale * inner if inner else -1.0
    return torch.from_numpy(table).float()


def local_coordinates(centre_NK2: Tensor, radius_NK: Tensor, turn_NK: Tensor, height: int, width: int) -> Tensor:
    """Return each pixel's position in each object's frame, in units of its radius: float32 [N, K, 2, H, W] (x, y).

    centre in pixels (x, y), radius in pixels, turn in radians, clockwise on the screen (y points down)."""
    x_W = torch.arange(width) + 0.5
    y_H = torch.arange(height) + 0.5
    dx = x_W - centre_NK2[..., 0, None, None]
    dy = y_H[:, None] - centre_NK2[..., 1, None, None]
    cos = (torch.cos(turn_NK) / radius_NK)[..., None, None]
    sin = (torch.sin(turn_NK) / radius_NK)[..., None, None]
    return torch.stack([dx * cos + dy * sin, dy * cos - dx * sin], 2)


def coverage(shape_NK: Tensor, local_NK2HW: Tensor, radius_NK: Tensor) -> Tensor:
    """Return each object's share of each pixel, in [0, 1]: float32 [N, K, H, W]; edges are one pixel soft."""
    x, y = local_NK2HW.unbind(2)
    distance = torch.hypot(x, y)
    angle = (torch.atan2(y, x) * (_ANGLES / (2 * math.pi))).round().long() % _ANGLES
    table = profiles()[shape_NK]
    outer = table[:, :, 0].gather(2, angle.flatten(2)).view_as(distance)
    inner = table[:, :, 1].gather(2, angle.flatten(2)).view_as(distance)
    pixels = radius_NK[..., None, None]
    inside = ((outer - distance) * pixels + 0.5).clamp(0, 1)
    beyond = ((distance - inner) * pixels + 0.5).clamp(0, 1)
    return inside * beyond


def rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert HSV in [0, 1] to RGB in [0, 1], with the three channels last."""
    phase = (hue[..., None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    ramp = torch.minimum(phase, 4 - phase).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)
