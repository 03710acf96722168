"""Metrics of how well masks and their saliency find annotated objects.

hidden     share of the object's pixels that lie in hidden tokens; `lift` is that over the share of tokens hidden
auc        area under the ROC curve of the saliency for the object's tokens (at least half of one shows it), by slot
pointing   share of the slots whose most salient token is the object's

Shapes: B clips, S slots, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tgm_scale.assembly.towers import Towers
from tgm_scale.evaluation.masks.relevance import slot_aucs
from tgm_scale.masking.diagnostics import centre_box
from tgm_scale.masking.recipes import Masker
from tgm_scale.runtime import seeding

SIZES = {"small": (0.0, 0.05), "middle": (0.05, 0.15), "large": (0.15, 1.01)}  # share of the clip's pixels
DRAWS = 8  # masks drawn for each clip


@dataclass(frozen=True)
class ClipScore:
    """Metrics of one clip under one recipe."""

    name: str
    object_share: float
    hidden: float
    ratio: float  # of the mask, after rounding
    auc: float | None  # None if no slot has tokens of both kinds
    pointing: float | None

    @property
    def lift(self) -> float:
        return self.hidden / self.ratio


def clip_maps(
    masker: Masker, towers: Towers, video_CTHW: Tensor, motion_SRC: Tensor, caption: str | None
) -> dict[str, Tensor] | None:
    """Return the maps of one clip that a masker needs, each [1, ...]; None if relevance lacks a caption."""
    video_1CTHW = video_CTHW[None].contiguous()
    maps = {name: look(video_1CTHW, masker.grid) for name, look in towers.maps.items()}
    maps["motion"] = motion_SRC[None]
    if "relevance" in masker.needs:
        assert towers.relevance is not None and towers.text is not None
        if caption is None:
            return None
        maps["relevance"] = towers.relevance(video_1CTHW, towers.text.encode([caption]), masker.grid)
    return {name: maps[name] for name in masker.needs}


def score_clip(masker: Masker, name: str, object_SRC: Tensor, maps: Mapping[str, Tensor], seed: int = 0) -> ClipScore:
    """Score DRAWS masks of one clip. maps: the maps that the masker needs, [1, ...] each."""
    seeds = torch.tensor([seeding.key(seed, "judged mask", name, draw) for draw in range(DRAWS)])
    aux = {key: value.expand(DRAWS, *value.shape[1:]) for key, value in maps.items()}
    hidden_BSRC = masker.hidden(seeds, **aux)
    saliency_SRC = masker.saliency(seeds, **aux)[0].expand(object_SRC.shape)
    is_object = object_SRC >= 0.5
    aucs = slot_aucs(saliency_SRC, is_object)
    return ClipScore(
        name,
        float(object_SRC.mean()),
        _covered(hidden_BSRC, object_SRC),
        masker.hidden_count / masker.grid.tokens,
        sum(aucs) / len(aucs) if aucs else None,
        _pointing(saliency_SRC, is_object),
    )


def centre_score(masker: Masker, name: str, object_SRC: Tensor) -> ClipScore:
    """Score a fixed box in the centre of the frame, with as many tokens as the mask hides."""
    box = centre_box(masker)
    return ClipScore(name, float(object_SRC.mean()), _covered(box, object_SRC), float(box.float().mean()), None, None)


def upper_bound(masker: Masker, name: str, object_SRC: Tensor) -> ClipScore:
    """Score the tokens that show most of the object, as many as the mask hides in each slot."""
    best = centre_box(masker)  # for its counts
    order = object_SRC.flatten(1).argsort(dim=1, descending=True)
    count = int(best[0, 0].sum())
    hidden = torch.zeros(order.shape, dtype=torch.bool).scatter(1, order[:, :count], True).view(object_SRC.shape)
    return ClipScore(
        name, float(object_SRC.mean()), _covered(hidden[None], object_SRC), float(hidden.float().mean()), 1.0, 1.0
    )


def _covered(hidden_BSRC: Tensor, object_SRC: Tensor) -> float:
    return float((hidden_BSRC * object_SRC).flatten(1).sum(1).mean() / object_SRC.sum())


def _pointing(saliency_SRC: Tensor, is_object_SRC: Tensor) -> float | None:
    """Return the pointing score over slots that show the object; tied highest tokens share the point."""
    points = []
    for saliency, is_object in zip(saliency_SRC, is_object_SRC):
        if is_object.any():
            highest = saliency == saliency.max()
            points.append(float((highest & is_object).sum() / highest.sum()))
    return sum(points) / len(points) if points else None


@dataclass(frozen=True)
class RecipeScore:
    """Means over videos (each the mean of its clips), and the lift by object size for sizes that occur."""

    hidden: float
    lift: float
    lift_by_video: dict[str, float]
    lift_by_size: dict[str, float]
    auc_by_video: dict[str, float]  # for videos that have one
    auc: float | None
    pointing: float | None


def summarise(scores: Sequence[ClipScore]) -> RecipeScore:
    by_name: dict[str, list[ClipScore]] = {}
    for score in scores:
        by_name.setdefault(score.name, []).append(score)
    by_size = {
        size: [score.lift for score in scores if low <= score.object_share < high]
        for size, (low, high) in SIZES.items()
    }
    lifts = {name: _mean([score.lift for score in of_name]) for name, of_name in by_name.items()}
    aucs = {name: _mean_or_none([score.auc for score in of_name]) for name, of_name in by_name.items()}
    known_aucs = {name: value for name, value in aucs.items() if value is not None}
    lift = _mean(list(lifts.values()))
    return RecipeScore(
        lift * scores[0].ratio,
        lift,
        lifts,
        {size: _mean(values) for size, values in by_size.items() if values},
        known_aucs,
        _mean_or_none(list(known_aucs.values())),
        _mean_or_none([score.pointing for score in scores]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None
