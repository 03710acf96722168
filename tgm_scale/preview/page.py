"""HTML page of a preview: first the meaning of the metrics, then each clip in pictures.

Shapes: S slots, R rows, C columns of the token grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tgm_scale.contracts import Problem
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.preview import words
from tgm_scale.preview.clips import Clip
from tgm_scale.preview.figures import Figures, Mean, Pairing
from tgm_scale.preview.looks import Look, Way
from tgm_scale.preview.settings import Settings
from tgm_scale.report.html import Card, Code, Gallery, Picture, Report, Section, Table, Text
from tgm_scale.report.reconstruct import reconstruct
from tgm_scale.report.render import contact_sheet, heatmap, seen_tokens, slot_frames, some_slots, veiled
from tgm_scale.runtime.terminal import escaped, message

PICTURES = 4  # slots of a clip drawn, evenly spread
_LONGEST = 400  # longest part of a caption that is shown, letters
_HEADER = ["recipe", "hides", "of another caption", "in a centre box", "of the slot before", "pairings won", "p"]
_HOW = (
    "Hides is the share of the tokens that is hidden, and what the three shares right of it are by chance. Of "
    "another caption: the share of a clip's mask that the captions of the other clips hide, too; 100% where captions "
    "have no say. In a centre box: the share of the mask in a box of its size in the middle of the frame. Of the "
    "slot before: the share that was hidden there, too. Pairings won: of two clips and their captions, how often the "
    "hidden tokens answer to the captions more than the visible ones the right way round than with the captions "
    "exchanged; 50% is chance. p is tested on all captions at once: how often, with the captions assigned to the "
    "clips at random, hidden tokens answer to the captions more than visible ones by at least as much in sum. So p "
    "can be high where many pairings are won narrowly. Recipes that read no caption are judged by the scorer that "
    "pairs best. Means over the clips shown, with their standard errors."
)

_READING = (
    "Relevance is drawn from its lowest in the clip (blue) to its highest (yellow). Of each recipe the upper pictures "
    "show what is hidden and the lower ones what the encoder sees."
)


@dataclass(frozen=True)
class Shown:
    """A clip and its pictures."""

    clip: Clip
    gallery: Gallery


def picture_clip(
    clip: Clip, look: Look, ways: Sequence[Way], model: MaskedVideoAutoencoder | None, settings: Settings
) -> Shown:
    """Draw the pictures of a clip. model: reconstructs it under `of_the_run`'s way."""
    grid = settings.maskers[0].grid
    frames = slot_frames(clip.video, grid.slots)
    chosen = some_slots(grid.slots, PICTURES)
    pictures = [_picture("frames", "the clip", [frames], chosen)]
    for scorer, relevance in look.relevance.items():
        said = f"relevance, scorer {scorer}"
        pictures.append(_picture(said, said, [heatmap(frames, relevance)], chosen))
    for way in ways:
        seen = seen_tokens(look.masks[way.label].visible[0], grid)
        rows = [veiled(frames, look.hidden[way.label]), veiled(frames, seen)]
        pictures.append(_picture(f"{way.label}: hidden and seen", way.label, rows, chosen))
    if model is not None:
        way = of_the_run(ways, settings)
        completed = reconstruct(model, clip.video[None], look.masks[way.label], settings.normalise_by)
        said = f"reconstruction under {way.label}, with brightness and contrast of visible patches alone"
        pictures.append(_picture("reconstruction", said, [slot_frames(completed[0], grid.slots)], chosen))
    return Shown(clip, Gallery(pictures))


def of_the_run(ways: Sequence[Way], settings: Settings) -> Way:
    """Return the first recipe given, with the configuration's scorer."""
    first = [way for way in ways if way.masker is settings.maskers[0]]
    return next((way for way in first if way.scorer == settings.config.guidance.scorer), first[0])


def _picture(alt: str, caption: str, rows: Sequence[Tensor], chosen: Tensor) -> Picture:
    return Picture(contact_sheet([row[chosen] for row in rows]), alt, caption)


def compose(
    settings: Settings,
    said: Sequence[str],
    found: Sequence[Figures],
    shown: Sequence[Shown],
    problems: Sequence[Problem],
    command: str,
) -> Report:
    """Compose the page. said: the verdict, after any differences from the checkpoint's run."""
    below = [Text(one) for one in [*words.threshold(found), _HOW]]
    sections = [Section("What the masks follow", [*(Text(message(one)) for one in said), _table(found), *below])]
    meant = [[one.way.label, words.meaning(one)] for one in found]
    sections.append(Section("What that means for these clips", [Table(["recipe", "in words"], meant, words=True)]))
    if problems:
        rows = [[message(one.key), one.reason, message(one.detail)] for one in problems]
        told = Text("A run skips these, counts them by reason and names them.")
        sections.append(Section("Left out", [told, Table(["clip", "reason", "what was found"], rows, words=True)]))
    sections.append(Section("The clips", [Text(_READING)]))
    sections += [Section(escaped(one.clip.name, keep=""), [Text(_caption(one.clip)), one.gallery]) for one in shown]
    sections.append(Section("The page again", [Code(command)]))
    config = settings.config
    grid = settings.maskers[0].grid
    return Report(
        title="What masking hides in your clips",
        lead=(
            f"{len(shown)} clips of {config.data.frames} frames of {config.data.size} pixels, "
            f"{grid.slots} x {grid.rows} x {grid.columns} tokens. Crops, captions and masks are those of a run with "
            f"seed {config.run.seed}. Pictures are the first frames of {min(PICTURES, grid.slots)} of the "
            f"{grid.slots} slots, each a token's {config.data.frames // grid.slots} frames."
        ),
        sections=sections,
        cards=_cards(found),
        footer=message(f"guidance.towers={config.guidance.towers or 'none'}"),
    )


def _caption(clip: Clip) -> str:
    if not clip.captions:
        return "No caption."
    said = escaped(" / ".join(clip.captions), keep="")
    return f"“{said[:_LONGEST]}{'…' if len(said) > _LONGEST else ''}”"


def _cards(found: Sequence[Figures]) -> list[Card]:
    best = max((one for one in found if one.pairing and one.way.scorer), key=_rank, default=None)
    if best is None or best.pairing is None:
        return []
    known = "" if best.pairing.known else ": at chance" if best.pairing.enough else ": too few to tell"
    cards = [Card(f"{best.pairing.share:.0%}", f"of pairings won by the right captions, {best.way.label}{known}")]
    if best.swapped is not None:
        said = f"of this recipe's mask is the same under another caption ({best.ratio:.0%} is chance)"
        cards.append(Card(f"{best.swapped.value:.0%}", said))
    said = f"of this recipe's mask lies in a box in the centre ({best.ratio:.0%} is chance)"
    return [*cards, Card(f"{best.centre.value:.0%}", said)]


def _rank(one: Figures) -> tuple[float, float]:
    return (one.pairing.share, -one.pairing.p) if one.pairing else (0.0, 0.0)


def _table(found: Sequence[Figures]) -> Table:
    return Table(_HEADER, [_row(one) for one in found])


def _row(one: Figures) -> list[str]:
    return [
        one.way.label,
        f"{one.ratio:.1%}",
        "-" if one.swapped is None else _mean(one.swapped),
        _mean(one.centre),
        _mean(one.repeat),
        *(("-", "-") if one.pairing is None else _paired(one.pairing)),
    ]


def _mean(one: Mean) -> str:
    return f"{one.value:.1%}" + ("" if one.error != one.error else f"\u00a0±\u00a0{one.error:.1%}")


def _paired(one: Pairing) -> tuple[str, str]:
    return f"{one.share:.1%}", f"{one.p:.4f}{words.PASSES if one.known else ''}"
