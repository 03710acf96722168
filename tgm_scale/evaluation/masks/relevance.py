"""Measurement of whether relevance points at the named object, on synthetic clips, whose every pixel is known.

A token is an object's if at least half of its tubelet's pixels show it. Shapes: S slots, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.data.video.decode import decode_clip
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import SyntheticClip, SyntheticSpec, render_clip
from tgm_scale.demo.corpus.scenes import ROLES
from tgm_scale.demo.corpus.shapes import COLOURS, rgb
from tgm_scale.demo.corpus.truth import absent_caption, object_tokens
from tgm_scale.guidance.image import ImageTower
from tgm_scale.guidance.maps import Relevance
from tgm_scale.guidance.text import TextTower
from tgm_scale.masking.recipes import Masker, build_masker

MASK_RATIO = 0.6
_SPEC = SyntheticSpec()

# Scores of a clip's tokens for its own caption and for that of an absent object (or None): [S, R, C] each
Scorer = Callable[[SyntheticClip, Tensor, str], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class RelevanceMetrics:
    """Means over clips. `hidden`: share of each role's tokens that text-guided masking at 0.6 hides."""

    hidden: dict[str, float]
    auc: float  # of the scores: the named object's tokens against all others, in each slot
    absent_hidden: float | None  # share of the named object's tokens hidden under an absent object's caption
    absent_auc: float | None


def evaluate(
    score: Scorer, clips: int, grid: Grid, spec: SyntheticSpec = _SPEC, masker: Masker | None = None
) -> RelevanceMetrics:
    """Measure a scorer of tokens on clips 0 to `clips` - 1 of a corpus, encoded and decoded as in a corpus.

    masker: decides which tokens are hidden; default: those of highest score in each slot."""
    masker = masker or build_masker("text_guided", grid, MASK_RATIO)
    hidden: dict[str, list[float]] = {role: [] for role in ROLES}
    aucs: list[float] = []
    absent_aucs: list[float] = []
    absent_hidden: list[float] = []
    for index in range(clips):
        clip = render_clip(index, spec)
        video = _as_decoded(clip, spec)
        own, absent = score(clip, video, absent_caption(clip.truth, index))
        tokens = {one.role: torch.from_numpy(object_tokens(one.visible, grid)) for one in clip.truth.objects}
        mask = masker.hidden(torch.tensor([index]), relevance=own[None])[0]
        for role, is_object in tokens.items():
            if is_object.any():
                hidden[role].append(mask[is_object].float().mean().item())
        aucs += slot_aucs(own, tokens["object"])
        if absent is not None and tokens["object"].any():
            absent_aucs += slot_aucs(absent, tokens["object"])
            blind = masker.hidden(torch.tensor([index]), relevance=absent[None])[0]
            absent_hidden.append(blind[tokens["object"]].float().mean().item())
    return RelevanceMetrics(
        {role: float(np.mean(values)) for role, values in hidden.items()},
        float(np.mean(aucs)),
        float(np.mean(absent_hidden)) if absent_hidden else None,
        float(np.mean(absent_aucs)) if absent_aucs else None,
    )


def towers_scorer(text: TextTower, image: ImageTower, scorer: str, grid: Grid) -> Scorer:
    """Return a scorer that computes relevance from towers, as in training."""
    relevance = Relevance(image, scorer)

    def score(clip: SyntheticClip, video: Tensor, absent: str) -> tuple[Tensor, Tensor | None]:
        captions = text.encode([clip.captions[0], absent])[None]
        own, other = relevance.of_captions(video[None], captions, grid)[0]
        return own, other

    return score


def colour_scorer(grid: Grid) -> Scorer:
    """Return the control without a model: nearness of a pixel's colour to the one that the caption names."""

    def score(clip: SyntheticClip, video: Tensor, absent: str) -> tuple[Tensor, Tensor | None]:
        wanted = rgb(torch.tensor(COLOURS[clip.truth.named.colour]), torch.tensor(1.0), torch.tensor(1.0))
        distance = (video.float() / 255 - wanted.view(3, 1, 1, 1)).square().sum(0).sqrt()
        frames, height, width = distance.shape
        tubes = distance.view(
            grid.slots, frames // grid.slots, grid.rows, height // grid.rows, grid.columns, width // grid.columns
        )
        return -tubes.mean((1, 3, 5)), None

    return score


def slot_aucs(score_SRC: Tensor, positive_SRC: Tensor) -> list[float]:
    """Return the area under the ROC curve of each slot that has tokens of both kinds; ties count half."""
    aucs = []
    for score, positive in zip(score_SRC.flatten(1), positive_SRC.flatten(1), strict=True):
        if positive.any() and not positive.all():
            difference = score[positive][:, None] - score[~positive][None]
            aucs.append(((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item())
    return aucs


def _as_decoded(clip: SyntheticClip, spec: SyntheticSpec) -> Tensor:
    """Return the clip after H.264, as a loader would see it: uint8 [3, T, H, W]."""
    decoded = decode_clip(encode_video(clip.frames, spec.fps), spec.frames, 1, 0.0).video
    return torch.from_numpy(np.ascontiguousarray(decoded)).permute(3, 0, 1, 2)
