"""Captions of the synthetic corpus: which object, and what it does."""

from __future__ import annotations

from collections.abc import Iterator

from tgm_scale.demo.corpus.scenes import MOTIONS
from tgm_scale.demo.corpus.shapes import COLOURS, SHAPES
from tgm_scale.demo.corpus.truth import Truth
from tgm_scale.runtime import seeding

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
    """The three phrasings of one fact, as three captions a clip are drawn from in text-guided masking."""
    return [form.format(colour=colour, shape=shape, does=does) for form, does in zip(_FORMS, _DOES[motion])]


def absent_caption(truth: Truth, seed: int) -> str:
    """A caption of an object that is not there: its colour and its shape are those of no object of the clip."""
    colours = [colour for colour in COLOURS if colour not in {one.colour for one in truth.objects}]
    shapes = [shape for shape in SHAPES if shape not in {one.shape for one in truth.objects}]
    pick = seeding.draw(seed, "absent caption", 2)
    colour, shape = colours[int(pick[0] * len(colours))], shapes[int(pick[1] * len(shapes))]
    return captions(colour, shape, truth.named.motion)[0]


def every_caption() -> Iterator[str]:
    """All that the corpus can say."""
    for colour in COLOURS:
        for shape in SHAPES:
            for motion in MOTIONS:
                yield from captions(colour, shape, motion)
