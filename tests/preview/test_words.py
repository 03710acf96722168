"""The words below a preview's figures follow the figures."""

from __future__ import annotations

import pytest

from tgm_scale.contracts import Grid
from tgm_scale.masking.recipes import build_masker
from tgm_scale.preview.figures import Figures, Mean, Pairing
from tgm_scale.preview.looks import Way
from tgm_scale.preview.words import meaning, threshold


def figures(ratio: float, repeat: float, pairing: Pairing | None = None) -> Figures:
    masker = build_masker("random", Grid(4, 8, 8), ratio)
    return Figures(Way(masker), ratio, Mean(ratio, 0.0), Mean(repeat, 0.0), None, pairing)


@pytest.mark.parametrize(
    ("ratio", "repeat", "words"),
    [
        (0.6, 0.6, "the slot before shows 40% of what this one hides, which the model can copy where little moves."),
        (0.9, 0.9, "the slot before shows 10% of what this one hides, too little to copy much from."),
        (0.9, 0.5, "the slot before shows 50% of what this one hides, which the model can copy where little moves."),
        (0.6, 0.8, "80% was hidden in the slot before (60% is chance)."),
        (0.6, 0.99, "the mask hardly moves with the picture, and what it hides is hidden throughout."),
    ],
)
def test_what_the_slot_before_shows_is_by_its_share(ratio: float, repeat: float, words: str) -> None:
    assert meaning(figures(ratio, repeat)).endswith(words)


def test_the_threshold_is_that_by_which_lines_pass() -> None:
    """0.042 in one of five lines is what a user took for a finding."""
    lines = [figures(0.6, 0.6, Pairing(0.8, p, 6, 0.05 / 5)) for p in (0.042, 0.001, 0.5, 0.5, 0.5)]
    [said] = threshold(lines)
    assert (
        said.startswith("* passes: p is at most 0.0100, 0.05 over the 5 lines of the table.") and "wanted" not in said
    )
    [said] = threshold(lines[:1] * 5)
    assert said.startswith("None passes, by a p of at most 0.0100, 0.05 over the 5 lines of the table."), "no * there"
    [said] = threshold([figures(0.6, 0.6, Pairing(0.8, 0.042, 4, 0.05 / 5)), figures(0.6, 0.6)])
    assert said.endswith("Of 4 different captions none can pass: 5 or more are wanted.")
    assert threshold([figures(0.6, 0.6)]) == [], "no captions, no p"
