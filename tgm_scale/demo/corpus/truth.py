"""Ground truth of a synthetic clip, its form in a sample's json, and its captions.

Shapes: T frames, H W pixels; S slots x R rows x C columns of tokens.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tgm_scale.contracts import Grid
from tgm_scale.demo.corpus.scenes import MOTIONS
from tgm_scale.demo.corpus.shapes import COLOURS, SHAPES
from tgm_scale.runtime import seeding
from tgm_scale.runtime.outside.json_text import json_of

_MOST_PIXELS = 1 << 30  # of all frames


@dataclass(frozen=True)
class ObjectTruth:
    """Object in a clip. `visible`: bool [T, H, W], true where at least half of a pixel shows it."""

    role: str  # one of scenes.ROLES
    shape: str
    colour: str
    motion: str
    visible: np.ndarray

    @property
    def boxes(self) -> list[list[int] | None]:
        """Return the box of the visible pixels in each frame: left, top, right, bottom (the last two one past the
        end), or None where the object is not visible."""
        return [_box(frame) for frame in self.visible]


@dataclass(frozen=True)
class Truth:
    """Objects of a clip: the named one first, then the distractors."""

    objects: list[ObjectTruth]

    @property
    def named(self) -> ObjectTruth:
        return self.objects[0]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON tree, with masks as base64 of zlib of `np.packbits` of the flattened [T, H, W]: about 1 kB
        each."""
        frames, height, width = self.named.visible.shape
        objects = [
            {
                "role": one.role,
                "shape": one.shape,
                "colour": one.colour,
                "motion": one.motion,
                "boxes": one.boxes,
                "visible": base64.b64encode(zlib.compress(np.packbits(one.visible).tobytes(), 9)).decode(),
            }
            for one in self.objects
        ]
        return {"frames": frames, "height": height, "width": width, "objects": objects}


def has_truth(data: bytes | None) -> bool:
    """Return whether a sample's json is that of a synthetic clip."""
    try:
        content = json_of(data or b"null")
    except ValueError:
        return False
    truth = content.get("truth") if isinstance(content, dict) else None
    return isinstance(truth, dict) and "objects" in truth


def read_truth(sample: bytes | str | dict[str, Any]) -> Truth:
    """Return the truth in the json member of a synthetic sample. Raises ValueError where there is none."""
    fields = sample if isinstance(sample, dict) else json_of(sample)
    if not isinstance(fields, dict) or "truth" not in fields:
        found = ", ".join(map(str, fields)) if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(f"the sample's json has no key 'truth' (found: {found[:200]}); is it a synthetic one?")
    truth = fields["truth"]
    try:
        shape = (truth["frames"], truth["height"], truth["width"])
        return Truth([_object(one, shape) for one in truth["objects"]])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"the sample's truth is damaged ({type(error).__name__}: {error})") from None


def _object(one: dict[str, Any], shape: tuple[int, int, int]) -> ObjectTruth:
    pixels = prod(shape)
    if not all(type(side) is int and side > 0 for side in shape) or pixels > _MOST_PIXELS:
        raise ValueError(f"frames, height and width {shape}")
    size = -(-pixels // 8)
    packed = zlib.decompressobj().decompress(base64.b64decode(one["visible"]), size + 1)
    if len(packed) != size:
        raise ValueError(f"{len(packed)} bytes of pixels, wanted {size}")
    visible = np.unpackbits(np.frombuffer(packed, np.uint8), count=pixels).reshape(shape).astype(bool)
    return ObjectTruth(one["role"], one["shape"], one["colour"], one["motion"], visible)


def object_tokens(visible_THW: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the object's tokens: bool [S, R, C], true where at least half of the tubelet's pixels show it.

    The grid covers the whole clip: T, H and W are multiples of its sides."""
    frames, height, width = visible_THW.shape
    tubes = visible_THW.reshape(
        grid.slots, frames // grid.slots, grid.rows, height // grid.rows, grid.columns, width // grid.columns
    )
    return tubes.mean((1, 3, 5)) >= 0.5


def _box(visible_HW: np.ndarray) -> list[int] | None:
    rows, columns = np.flatnonzero(visible_HW.any(1)), np.flatnonzero(visible_HW.any(0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


_DOES = {
    "left": ("moving left", "drifts to the left", "on its way left"),
    "right": ("moving right", "drifts to the right", "on its way right"),
    "clockwise": ("circling clockwise", "goes round clockwise", "on a clockwise round"),
    "anticlockwise": ("circling anticlockwise", "goes round anticlockwise", "on an anticlockwise round"),
    "approach": ("coming closer", "grows as it comes closer", "on its way closer"),
    "recede": ("going away", "shrinks as it goes away", "on its way farther off"),
    "bounce": ("bouncing", "bounces up and down", "on the bounce"),
}
_FORMS = ("a {colour} {shape} {does}", "the {colour} {shape} {does}", "a {shape} that is {colour}, {does}")


def captions(colour: str, shape: str, motion: str) -> list[str]:
    """Return three phrasings of one fact, like the captions per clip from which text-guided masking draws."""
    return [form.format(colour=colour, shape=shape, does=does) for form, does in zip(_FORMS, _DOES[motion])]


def absent_caption(truth: Truth, seed: int) -> str:
    """Return a caption of an absent object: no object of the clip has its colour or its shape."""
    colours = [colour for colour in COLOURS if colour not in {one.colour for one in truth.objects}]
    shapes = [shape for shape in SHAPES if shape not in {one.shape for one in truth.objects}]
    pick = seeding.draw(seed, "absent caption", 2)
    colour, shape = colours[int(pick[0] * len(colours))], shapes[int(pick[1] * len(shapes))]
    return captions(colour, shape, truth.named.motion)[0]


def every_caption() -> Iterator[str]:
    """Yield all captions that the corpus can have."""
    for colour in COLOURS:
        for shape in SHAPES:
            for motion in MOTIONS:
                yield from captions(colour, shape, motion)
