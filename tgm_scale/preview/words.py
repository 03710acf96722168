"""Interpretation of a preview's metrics for these clips, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from tgm_scale.guidance.tower_folder import SMALL_KNOWS, is_small
from tgm_scale.masking.diagnostics import ALARM
from tgm_scale.preview.figures import LEVEL, Figures
from tgm_scale.preview.settings import Settings

SMALL = (
    f"{SMALL_KNOWS}, so its relevance and its masks say nothing of these clips: give guidance.towers=FOLDER, a CLIP "
    "or SigLIP."
)

PASSES = "*"  # marks a p that passes
_LITTLE = 0.25  # share of a mask that was visible in the slot before: what can be copied from there


def verdict(settings: Settings, found: Sequence[Figures], clips: int, synthetic: bool) -> list[str]:
    """Return the first sentences of the page and the terminal. synthetic: whether all clips are the project's own."""
    towers = settings.config.guidance.towers
    if not settings.speaks or towers is None:
        return ["No caption has a say in these recipes: they hide the same whatever a caption says."]
    said = [SMALL] if is_small(towers) and not synthetic else []
    paired = [one for one in found if one.way.scorer is not None and one.pairing is not None]
    if not paired:
        return [
            *said,
            "There are no two clips with different captions here, so nothing tells whether captions matter.",
        ]
    best = max(paired, key=lambda one: (one.pairing.share, -one.pairing.p) if one.pairing else (0, 0))
    assert best.pairing is not None
    if not best.pairing.enough:
        return [
            *said,
            f"{best.pairing.captions} different captions are too few to tell whether the tower knows these clips: "
            f"{best.pairing.fewest} or more different ones are wanted, of more clips (--clips).",
        ]
    if said:
        verdict = "above chance" if best.pairing.known else "no better than chance"
        share = f"{best.pairing.share:.0%} of the pairings"
        judged = f"p {best.pairing.p:.4f}: {verdict} (above {best.pairing.level:.4f} is chance)"
        return [*said, f"Here {best.way.label} wins {share}, {judged}."]
    if best.pairing.known:
        return _knows(best, found)
    return [
        f"guidance.towers={towers} knows nothing of these {clips} clips, as far as they tell: under its best scorer "
        f"({best.way.scorer}) the right captions win {best.pairing.share:.0%} of the pairings, and a random "
        f"assignment of the captions does as well in {best.pairing.p:.1%} of the draws (above "
        f"{best.pairing.level:.1%} is chance). Masks that it guides do not follow what the captions say: give another "
        "tower, or look at more clips (--clips).",
    ]


def _knows(best: Figures, found: Sequence[Figures]) -> list[str]:
    """Return which scorer is best, and whether a recipe that reads no caption does as well."""
    assert best.pairing is not None
    said = [
        f"{best.way.label} tells these captions apart best: the right captions win {best.pairing.share:.0%} of the "
        f"pairings of two clips and two captions (50% is chance); set masking.recipe={best.way.masker.name} "
        f"guidance.scorer={best.way.scorer}."
    ]
    chance = [one.way.scorer for one in found if one.way.scorer and one.pairing and not one.pairing.known]
    if chance:
        said.append(f"At chance: {', '.join(map(str, chance))}.")
    deaf = [one.way.label for one in found if one.way.scorer is None and one.pairing and one.pairing.known]
    if deaf:
        said.append(
            f"Without reading them, {', '.join(deaf)} hides what the captions speak of more than the rest, too."
        )
    return said


def threshold(found: Sequence[Figures]) -> list[str]:
    """Return the note below the table: which p passes, and why not every p below 0.05."""
    pairings = [one.pairing for one in found if one.pairing is not None]
    if not pairings:
        return []
    lines = f"{LEVEL:g} over the {len(found)} lines of the table" if len(found) > 1 else "with one line"
    passing = f"{PASSES} passes: p is" if any(pairing.known for pairing in pairings) else "None passes, by a p of"
    said = (
        f"{passing} at most {pairings[0].level:.4f}, {lines}. Above it a p is chance: of that many lines, "
        "each judged by itself, one is often below 0.05 where no caption matters."
    )
    if not pairings[0].enough:
        said += (
            f" Of {pairings[0].captions} different captions none can pass: {pairings[0].fewest} or more are wanted."
        )
    return [said]


def meaning(one: Figures) -> str:
    """Return one way's metrics as a sentence."""
    said = "; ".join(part for part in (_swapped(one), _centre(one), _repeat(one)) if part)
    return f"{said[0].upper()}{said[1:]}."


def _share_of_the_way(value: float, chance: float) -> float:
    """Return the position between chance (0) and 1 (1)."""
    return (value - chance) / (1 - chance)


def _swapped(one: Figures) -> str:
    if one.swapped is None:
        return "no caption changes it" if one.way.scorer is None else ""
    said = f"another clip's caption hides {one.swapped.value:.0%} of the same tokens ({one.ratio:.0%} is chance)"
    way = _share_of_the_way(one.swapped.value, one.ratio)
    if way > ALARM:
        return f"{said}, so the captions hardly matter: this is not text-guided masking"
    moved = "and are what decides" if way < 0.5 else "though most of the mask is the same under any"
    if one.pairing is None:
        return f"{said}: captions change the mask, {moved}"
    if not one.pairing.enough:
        return f"{said}: captions change the mask, {moved}; so few cannot tell whether towards what they say"
    if one.pairing.known:
        return f"{said}: captions change the mask, {moved}, and towards what they say"
    return f"{said}: captions change the mask, but not towards what they say, as far as these clips tell"


def _centre(one: Figures) -> str:
    way = _share_of_the_way(one.centre.value, one.ratio)
    said = f"{one.centre.value:.0%} of it lies in a box of its size in the centre ({one.ratio:.0%} is chance)"
    if way > ALARM:
        return f"{said}, so a box would do"
    if abs(way) < 0.1 or not abs(one.centre.value - one.ratio) > 2 * one.centre.error:  # nan: of one clip
        return f"{said}: no clear leaning to the centre"
    return f"{said}: it leans to the {'centre' if way > 0 else 'rim'}"


def _repeat(one: Figures) -> str:
    if one.way.masker.recipe.scope == "tube":
        return "every slot hides the same places, as it is made"
    way = _share_of_the_way(one.repeat.value, one.ratio)
    said = f"{one.repeat.value:.0%} was hidden in the slot before ({one.ratio:.0%} is chance)"
    if way > ALARM:
        return f"{said}: the mask hardly moves with the picture, and what it hides is hidden throughout"
    if way < 0.1:
        shown = 1 - one.repeat.value
        copied = "too little to copy much from" if shown < _LITTLE else "which the model can copy where little moves"
        return f"{said}: the slot before shows {shown:.0%} of what this one hides, {copied}"
    return said
