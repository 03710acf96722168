"""Relevance and masks of every scorer and recipe for a clip, under its own caption and those of the other clips.

Shapes: n clips shown, each with a caption; S slots, R rows, C columns of the token grid; E width of embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tgm_scale.assembly.towers import load_towers
from tgm_scale.contracts import Mask
from tgm_scale.guidance.image import SCORERS, memoised
from tgm_scale.guidance.maps import Relevance
from tgm_scale.masking.diagnostics import overlap, slot_repeat
from tgm_scale.masking.recipes import Masker
from tgm_scale.preview.clips import Clip
from tgm_scale.preview.settings import Settings


@dataclass(frozen=True)
class Way:
    """A recipe, with the scorer of its relevance if it is guided by text."""

    masker: Masker
    scorer: str | None = None

    @property
    def label(self) -> str:
        return self.masker.name if self.scorer is None else f"{self.masker.name} ({self.scorer})"


@dataclass(frozen=True)
class Look:
    """One clip under every way, by its label, and every scorer, by its name."""

    relevance: dict[str, Tensor]  # to its own caption, float32 [S, R, C]
    hidden: dict[str, Tensor]  # bool [S, R, C]
    masks: dict[str, Mask]  # of one clip, as in a run
    swapped: dict[str, Tensor]  # for ways with a scorer: overlap of its mask with that under each caption, [n]
    repeat: dict[str, float]
    lifts: dict[tuple[str, str], Tensor]  # by way and scorer: `lift` for each caption, [n]


def ways_of(settings: Settings) -> list[Way]:
    """Return each recipe once, or once per scorer if it is guided by text."""
    return [
        Way(masker, scorer)
        for masker in settings.maskers
        for scorer in (SCORERS if "relevance" in masker.needs else [None])
    ]


def lift(relevance_nSRC: Tensor, hidden_nSRC: Tensor) -> Tensor:
    """Return the mean cosine of the hidden tokens to each caption minus that of the visible ones, float64 [n]."""
    relevance_nK, hidden_nK = relevance_nSRC.double().flatten(1), hidden_nSRC.flatten(1)
    inside, outside = ((relevance_nK * chosen).sum(1) / chosen.sum(1) for chosen in (hidden_nK, ~hidden_nK))
    return inside - outside


class Looker:
    """Applies every way to clips one by one. The towers are on `device`; masks are made on the CPU."""

    def __init__(self, settings: Settings, device: torch.device):
        guidance = settings.config.guidance
        self.ways = ways_of(settings)
        self.grid = settings.maskers[0].grid
        self.towers = load_towers(guidance, settings.needs, settings.speaks, device)
        self.towers.maps |= settings.learned
        self.device = device
        self.scorers: dict[str, Relevance] = {}
        if self.towers.relevance is not None:
            image = memoised(self.towers.relevance.image)
            view = (guidance.frames_per_tubelet, guidance.resolution)
            self.scorers = {name: Relevance(image, name, *view) for name in SCORERS}

    def embed(self, clips: list[Clip]) -> Tensor | None:
        """Return the mean embedding of each clip's captions, [n, E]; None if no recipe is guided by text."""
        if self.towers.text is None:
            return None
        return torch.stack([self.towers.text.encode(clip.captions).mean(0) for clip in clips])

    def differ(self, clips: list[Clip]) -> Tensor:
        """Return which pairs of clips have different captions, bool [n, n]; captions of equal tokens are the same."""
        if self.towers.text is None:
            said = [clip.captions for clip in clips]
        else:
            said = [sorted(self.towers.text.caption_ids(clip.captions).tolist()) for clip in clips]
        return torch.tensor([[one != other for other in said] for one in said])

    @torch.no_grad()
    def look(self, clip: Clip, number: int, captions_nE: Tensor | None) -> Look:
        """Apply every way to a clip. number: of the clip, and of its own caption."""
        video_1CTHW = clip.video[None]
        maps: dict[str, Tensor | None] = {
            name: look(video_1CTHW.to(self.device), self.grid).float().cpu() for name, look in self.towers.maps.items()
        }
        maps["motion"] = None if clip.motion_SRC is None else clip.motion_SRC[None]
        answers = (
            {}
            if captions_nE is None
            else {
                name: scorer.of_captions(video_1CTHW.to(self.device), captions_nE[None], self.grid)[0].float().cpu()
                for name, scorer in self.scorers.items()
            }
        )
        found = Look({name: answer[number] for name, answer in answers.items()}, {}, {}, {}, {}, {})
        for way in self.ways:
            self._add(found, way, clip, number, maps, answers)
        return found

    def _add(
        self,
        found: Look,
        way: Way,
        clip: Clip,
        number: int,
        maps: dict[str, Tensor | None],
        answers: dict[str, Tensor],
    ) -> None:
        label, masker = way.label, way.masker
        own = {} if way.scorer is None else {"relevance": answers[way.scorer][number][None]}
        seed = torch.tensor([clip.seed])
        hidden_1SRC = masker.hidden(seed, **maps, **own)
        found.hidden[label], found.masks[label] = hidden_1SRC[0], masker(seed, **maps, **own)
        found.repeat[label] = float(slot_repeat(hidden_1SRC)[0])
        if way.scorer is None:
            for scorer, answer_nSRC in answers.items():
                found.lifts[label, scorer] = lift(answer_nSRC, hidden_1SRC.expand(answer_nSRC.shape))
            return
        answer_nSRC = answers[way.scorer]
        other = [{"relevance": one[None]} for one in answer_nSRC]
        hidden_nSRC = torch.cat([masker.hidden(seed, **maps, **one) for one in other])
        found.swapped[label] = overlap(hidden_1SRC.expand(hidden_nSRC.shape), hidden_nSRC)
        found.lifts[label, way.scorer] = lift(answer_nSRC, hidden_nSRC)
