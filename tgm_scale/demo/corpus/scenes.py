"""Scenes of the synthetic corpus: drawn from keyed randomness, animated, rendered, a whole batch at once.

Shapes: B scenes, K objects, T frames, N = B * T images, H W pixels, W also waves of the background.
Lengths are fractions of the frame's side, time runs over [0, 1] in a clip, angles are radians, clockwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.demo.corpus.shapes import COLOURS, SHAPES, coverage, local_coordinates, rgb
from tgm_scale.runtime import seeding

MOTIONS = ("left", "right", "clockwise", "anticlockwise", "approach", "recede", "bounce")
ROLES = ("object", "same_colour", "same_shape")
MODES = ("named", "one_mover")
_WAVES = 8


@dataclass(frozen=True)
class Scenes:
    """B scenes of K objects each; index 0 of K is the named object, then the distractors in the order of ROLES."""

    shape: Tensor  # int64 [B, K] into SHAPES
    colour: Tensor  # int64 [B, K] into COLOURS
    motion: Tensor  # int64 [B, K] into MOTIONS
    depth: Tensor  # float32 [B, K], the largest in front
    paint: Tensor  # float32 [B, K, 3] RGB in [0, 1]
    radius: Tensor  # float32 [B, K], of the disc of equal area
    anchor: Tensor  # float32 [B, K, 2], middle of the path
    reach: Tensor  # float32 [B, K], half of the path's length
    turn: Tensor  # float32 [B, K], angle at time 0
    spin: Tensor  # radians per clip
    grain: Tensor  # float32 [B, K, 4]: two frequencies, phase and depth of the texture
    shake: Tensor  # float32 [B, 2, 3, 2]: for x and y, three (amplitude, phase) of the camera's shake
    ground: Tensor  # float32 [B, 3] RGB mean of the background
    waves: Tensor  # x and y frequency, drift per clip, phase, RGB amplitude


class _Draws:
    """Named uniform draws for a batch of scenes: equal names and seeds give equal numbers."""

    def __init__(self, seeds_B: Tensor):
        self.seeds_B = seeds_B

    def __call__(self, purpose: str, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        u = seeding.uniform(self.seeds_B, math.prod(shape), f"synthetic {purpose}")
        return low + (high - low) * u.view(-1, *shape)

    def choice(self, purpose: str, count: int, *shape: int) -> Tensor:
        return (self(purpose, 0, count, *shape)).long().clamp(max=count - 1)


def draw_scenes(seeds_B: Tensor, mode: str, difficulty_B: Tensor) -> Scenes:
    """Return scenes of keyed seeds, int64 [B]; difficulty in [0, 1], float32 [B].

    `named`: the object, a distractor of its colour and another shape, one of its shape and another colour.
    `one_mover`: the object alone, on a longer path. Difficulty raises the background's contrast, the texture, the
    camera shake, the jitter of colour and the overlap of objects."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} of the synthetic corpus is not known: use one of {', '.join(MODES)}")
    draw = _Draws(seeds_B)
    hard_B1 = difficulty_B.float()[:, None]
    objects = {
        **_identities(draw),
        **_paths(draw, hard_B1, alone=mode == "one_mover"),
        "grain": _grain(draw, hard_B1),
        "depth": draw("depth", 0, 1, 3),
        "radius": draw("radius", 0.14, 0.18, 3),
        "turn": draw("turn", 0, 2 * math.pi, 3),
        "spin": draw("spin", -0.5 * math.pi, 0.5 * math.pi, 3),
    }
    objects["paint"] = _paint(draw, hard_B1, objects["colour"])
    count = 1 if mode == "one_mover" else len(ROLES)
    shake = torch.stack(
        [draw("shake", 0, 0.012, 2, 3) * hard_B1[..., None], draw("shake phase", 0, 2 * math.pi, 2, 3)], 3
    )
    ground = draw("ground", 0.25, 0.65, 1) + draw("ground tint", -0.08, 0.08, 3) * hard_B1
    return Scenes(
        **{name: x[:, :count] for name, x in objects.items()}, shake=shake, ground=ground, waves=_waves(draw, hard_B1)
    )


def _identities(draw: _Draws) -> dict[str, Tensor]:
    """Return shape, colour and motion of the three roles: int64 [B, 3]. The distractors' motions may be equal."""
    shape = _with_other(draw, "shape", len(SHAPES), (0, 1, 0))
    colour = _with_other(draw, "colour", len(COLOURS), (0, 0, 1))
    step = 1 + draw.choice("other motions", len(MOTIONS) - 1, len(ROLES) - 1)
    motion = draw.choice("motion", len(MOTIONS), 1) + F.pad(step, (1, 0))
    return {"shape": shape, "colour": colour, "motion": motion % len(MOTIONS)}


def _with_other(draw: _Draws, name: str, count: int, differs: tuple[int, ...]) -> Tensor:
    """Return for each role the object's own value or, where it differs, one other value."""
    step = 1 + draw.choice(f"other {name}", count - 1, 1)
    return (draw.choice(name, count, 1) + torch.tensor(differs) * step) % count


def _paths(draw: _Draws, hard_B1: Tensor, alone: bool) -> dict[str, Tensor]:
    """Return paths: a single object starts near the middle and goes far; three start on a circle, closer when
    harder."""
    if alone:
        return {"anchor": 0.5 + draw("anchor", -0.06, 0.06, 3, 2), "reach": draw("reach", 0.16, 0.22, 3)}
    thirds = torch.arange(3) * (2 * math.pi / 3)
    bearing = draw("bearing", 0, 2 * math.pi, 1) + thirds + draw("stray", -0.25, 0.25, 3)
    away = 0.29 - 0.05 * hard_B1 + draw("away", -0.02, 0.02, 3)
    anchor = 0.5 + away[..., None] * torch.stack([torch.cos(bearing), torch.sin(bearing)], 2)
    return {"anchor": anchor, "reach": draw("reach", 0.07, 0.12, 3)}


def _paint(draw: _Draws, hard_B1: Tensor, colour: Tensor) -> Tensor:
    hue = torch.tensor(list(COLOURS.values()))[colour] + draw("hue", -0.035, 0.035, 3) * hard_B1
    return rgb(hue % 1, 1 - draw("saturation", 0.0, 0.4, 3) * hard_B1, 1 - draw("value", 0.0, 0.35, 3) * hard_B1)


def _grain(draw: _Draws, hard_B1: Tensor) -> Tensor:
    depth = draw("grain depth", 0.1, 0.35, 3) * (0.3 + 0.7 * hard_B1)
    frequency, phase = draw("grain frequency", 2, 6, 3, 2), draw("grain phase", 0, 2 * math.pi, 3, 1)
    return torch.cat([frequency, phase, depth[..., None]], 2)


def _waves(draw: _Draws, hard_B1: Tensor) -> Tensor:
    contrast = (0.03 + 0.09 * hard_B1)[..., None]
    return torch.cat(
        [
            draw("wave frequency", -6, 6, _WAVES, 2) * 2 * math.pi,
            draw("wave drift", -3, 3, _WAVES, 1),
            draw("wave phase", 0, 2 * math.pi, _WAVES, 1),
            contrast * (draw("wave light", -1, 1, _WAVES, 1) + draw("wave tint", -0.5, 0.5, _WAVES, 3)),
        ],
        2,
    )


def place(scenes: Scenes, time_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the objects' centre [B, T, K, 2] and radius [B, T, K], both in sides of the frame, and angle [B, T,
    K]."""
    u = time_BT[:, :, None]
    swing = 2 * u - 1
    reach = scenes.reach[:, None]
    circle = scenes.turn[:, None] + 2 * math.pi * u * _sign(scenes.motion, "clockwise", "anticlockwise")[:, None]
    circling = _is(scenes.motion, "clockwise", "anticlockwise")[:, None]
    bouncing = _is(scenes.motion, "bounce")[:, None]
    dx = reach * swing * _sign(scenes.motion, "right", "left")[:, None] + circling * reach * torch.cos(circle)
    dy = circling * reach * torch.sin(circle) + bouncing * reach * (
        1 - 2 * torch.sin(scenes.turn[:, None] + 3 * math.pi * u).abs()
    )
    centre = scenes.anchor[:, None] + torch.stack([dx, dy], 3)
    radius = scenes.radius[:, None] * torch.exp(0.35 * swing * _sign(scenes.motion, "approach", "recede")[:, None])
    return centre, radius, scenes.turn[:, None] + scenes.spin[:, None] * u


def _is(motion: Tensor, *names: str) -> Tensor:
    return torch.isin(motion, torch.tensor([MOTIONS.index(name) for name in names])).float()


def _sign(motion: Tensor, plus: str, minus: str) -> Tensor:
    return _is(motion, plus) - _is(motion, minus)


def render(scenes: Scenes, time_BT: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Render scenes at given times.

    Returns frames, uint8 [B, T, 3, H, W] RGB, and visibility, bool [B, T, K, H, W]: where at least half of a pixel
    shows the object."""
    batch, frames = time_BT.shape
    angle_BT23 = (
        2 * math.pi * time_BT[:, :, None, None] * torch.tensor([1.0, 2.0, 3.0]) + scenes.shake[:, None, ..., 1]
    )
    camera = (scenes.shake[:, None, ..., 0] * torch.sin(angle_BT23)).sum(3)
    centre, radius, turn = place(scenes, time_BT)
    centre = (centre + camera[:, :, None]) * size
    radius = radius * size
    centre, radius, turn = (x.flatten(0, 1) for x in (centre, radius, turn))
    shape, paint, grain, depth = (
        x.repeat_interleave(frames, 0) for x in (scenes.shape, scenes.paint, scenes.grain, scenes.depth)
    )

    image = _background(scenes, time_BT, camera, size)
    local = local_coordinates(centre, radius, turn, size, size)
    cover = coverage(shape, local, radius)
    colour = _textured(paint, grain, local)
    order = depth.argsort(1)
    rows = torch.arange(len(image))
    visible = torch.zeros_like(cover)
    for layer in order.unbind(1):
        top = cover[rows, layer][:, None]
        image = image * (1 - top) + colour[rows, layer] * top
        visible = visible * (1 - top)
        visible[rows, layer] = top[:, 0]
    image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return image.view(batch, frames, 3, size, size), (visible >= 0.5).view(batch, frames, -1, size, size)


def _background(scenes: Scenes, time_BT: Tensor, camera_BT2: Tensor, size: int) -> Tensor:
    """Return drifting plane waves over a mean colour, float32 [N, 3, H, W]; they move with the camera."""
    frequency, drift, phase, amplitude = scenes.waves.split([2, 1, 1, 3], 2)
    pixel = (torch.arange(size) + 0.5) / size
    x = pixel - camera_BT2[..., 0, None]
    y = pixel - camera_BT2[..., 1, None]
    start = (drift[:, None, :, 0] * time_BT[:, :, None] + phase[:, None, :, 0])[..., None]
    across = frequency[:, None, :, 0, None] * x[:, :, None] + start
    down = frequency[:, None, :, 1, None] * y[:, :, None]
    # sin(a + b) from the sines of the two axes: 2 * size of them per wave instead of size ** 2
    down_basis = torch.cat([torch.cos(down), torch.sin(down)], 2)
    across_basis = torch.cat([torch.sin(across), torch.cos(across)], 2)
    weight = torch.cat([amplitude, amplitude], 1)
    weighted = across_basis[:, :, :, None] * weight[:, None, :, :, None]
    image = torch.einsum("btwy,btwcx->btcyx", down_basis, weighted)
    return (image + scenes.ground[:, None, :, None, None]).flatten(0, 1)


def _textured(paint_NK3: Tensor, grain_NK4: Tensor, local_NK2HW: Tensor) -> Tensor:
    """Return an object's paint under a light pattern fixed to it: float32 [N, K, 3, H, W]."""
    along, across, phase, depth = grain_NK4[..., None, None].unbind(2)
    x, y = local_NK2HW.unbind(2)
    light = 1 - depth * (1 + torch.sin(along * x + phase) * torch.sin(across * y + 2 * phase))
    return paint_NK3[..., None, None] * light[:, :, None]
