"""Relevance of a video's tokens to a caption, and the tokens that a masking recipe hides.

Shapes: B clips, T frames of H x H pixels, S = T / tubelet slots, R = C = H / patch rows and columns of tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from tgm_scale.assembly.towers import Towers, load_towers
from tgm_scale.config.mistakes import with_current_values
from tgm_scale.config.sections import GuidanceConfig
from tgm_scale.contracts import Grid
from tgm_scale.guidance.image import SCORERS
from tgm_scale.guidance.towers import check_folder, tower_folder
from tgm_scale.masking.recipes import Masker, Recipe, build_masker
from tgm_scale.python.arguments import device_of, existing, told, whole_number
from tgm_scale.python.video import checked
from tgm_scale.runtime import seeding

Captions = str | Sequence[str]  # one for all clips, or one for each


def load_guidance(
    towers: str | os.PathLike[str] = "small",
    *,
    scorer: str = "value",
    patch: int = 16,
    tubelet: int = 2,
    device: str | torch.device = "cpu",
) -> Guidance:
    """Load frozen towers that compute relevance to captions and the masks of recipes.

    towers: a CLIP or SigLIP folder in the Hugging Face layout, or `small`, the packaged CLIP, which has seen synthetic
    shapes only and is meaningless on real video. scorer: `value`, `vv` or `raw` (docs/RECIPES.md). patch, tubelet:
    pixels and frames of a token; unlike a model's, they can be chosen freely. Weights are read when first needed.

    Raises ValueError for an invalid folder, scorer or device, and FileNotFoundError for a missing folder."""
    whole_number("tubelet", tubelet)
    whole_number("patch", patch)
    if not isinstance(scorer, str) or scorer not in SCORERS:
        raise ValueError(f"scorer={scorer!r}: wanted one of {', '.join(SCORERS)}")
    try:
        folder = str(existing("towers", "small" if towers == "small" else towers, tower_folder))
    except FileNotFoundError as missing:
        raise FileNotFoundError(f"{missing}; 'small' is the packaged CLIP") from None
    with told():
        check_folder(folder)
    return Guidance(
        GuidanceConfig(towers=folder).model_copy(update={"scorer": scorer}), tubelet, patch, device_of(device)
    )


class Guidance:
    """Frozen towers, with the size of the tokens that they are evaluated on.

    Methods take a video as uint8 RGB [B, 3, T, H, H] on any device. caption: one for all clips, or a list of one for
    each. Methods raise ValueError for an invalid video or caption, and for sides that do not divide."""

    def __init__(self, settings: GuidanceConfig, tubelet: int, patch: int, device: torch.device) -> None:
        self._settings, self._tubelet, self._patch, self._device = settings, tubelet, patch, device
        self._loaded: dict[frozenset[str], Towers] = {}

    def relevance(self, video: Tensor, caption: Captions) -> Tensor:
        """Return the relevance of each token of each clip to its caption: float32 [B, S, R, C].

        Values are cosines; only their order within a clip is meaningful."""
        video = checked(video).to(self._device)
        captions = _captions(caption, len(video))
        return self._relevance(self._towers({"relevance"}), video, captions, self._grid(video))

    def masks(
        self,
        video: Tensor,
        caption: Captions | None = None,
        *,
        recipe: str = "text_guided",
        mask_ratio: float = 0.75,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Return the tokens that a masking recipe hides in each clip: bool [B, S, R, C], True where hidden.

        recipe, mask_ratio, options: as `masking.*` of a run (docs/RECIPES.md). seed: of random draws; clip i of any
        batch has the same mask at the same seed. Only recipes that follow a caption need one. motion_guided is
        unavailable, since frames lack the codec's motion, and so are learned masks, such as adamae. Also raises
        ValueError for a recipe, ratio or options that do not go together."""
        video, seed = checked(video).to(self._device), whole_number("seed", seed, least=None)
        captions = None if caption is None else _captions(caption, len(video))
        grid = self._grid(video)
        masker = _masker(recipe, grid, mask_ratio, options)
        if "relevance" in masker.needs and captions is None:
            raise ValueError(f"recipe={recipe}: follows a caption: give one")
        found = self._towers(masker.needs)
        maps = {name: look(video, grid) for name, look in found.maps.items()}
        if "relevance" in masker.needs and captions is not None:
            maps["relevance"] = self._relevance(found, video, captions, grid)
        seeds = [seeding.key(seed, "masks", clip) for clip in range(len(video))]
        return masker.hidden(torch.tensor(seeds, device=self._device), **maps)

    def _grid(self, video: Tensor) -> Grid:
        with told():
            return Grid.of(video.shape[2], video.shape[3], self._tubelet, self._patch)

    def _towers(self, needs: Set[str]) -> Towers:
        """Return the towers for these needs, loaded once."""
        wanted = frozenset(needs)
        if wanted not in self._loaded:
            with told():
                self._loaded[wanted] = load_towers(
                    self._settings, set(wanted), embed_captions=False, device=self._device
                )
        return self._loaded[wanted]

    def _relevance(self, found: Towers, video: Tensor, captions: list[str], grid: Grid) -> Tensor:
        assert found.text is not None and found.relevance is not None
        return found.relevance(video, found.text.encode(captions), grid)

    def __repr__(self) -> str:
        size = f"patch={self._patch}, tubelet={self._tubelet}"
        return f"Guidance({self._settings.towers!r}, scorer={self._settings.scorer!r}, {size})"


def _masker(recipe: str, grid: Grid, mask_ratio: float, options: Mapping[str, Any] | None) -> Masker:
    if not isinstance(recipe, str):
        raise ValueError(f"recipe={recipe!r}: wanted the name of one, such as text_guided")
    if isinstance(mask_ratio, bool) or not isinstance(mask_ratio, Real):
        raise ValueError(f"mask_ratio={mask_ratio!r}: wanted a share above 0 and below 1")
    with told():
        masker = build_masker(recipe, grid, mask_ratio=float(mask_ratio), **_known(options))
    if "motion" in masker.needs:
        raise ValueError(f"recipe={recipe}: needs the codec's motion, which a tensor of frames does not have")
    if masker.taught_by is not None:
        raise ValueError(f"recipe={recipe}: is learned with a run's model, which guidance does not have")
    return masker


def _known(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options with the current names of values, as for a configuration."""
    if not isinstance(options, (Mapping, type(None))):
        raise ValueError(f"options={options!r}: wanted values by name, such as {{'temperature': 1.0}}")
    names = [one.name for one in fields(Recipe)]
    for name in options or {}:
        if name not in names:
            raise ValueError(f"options.{name}: unknown; known: {', '.join(names)}")
    return with_current_values({"masking": {"options": dict(options or {})}})["masking"]["options"]


def _captions(caption: Captions, clips: int) -> list[str]:
    if not isinstance(caption, (str, Sequence)):
        raise ValueError(f"caption: wanted text, or a list of texts, found {caption!r}")
    found = [caption] * clips if isinstance(caption, str) else list(caption)
    if len(found) != clips:
        raise ValueError(f"caption: {len(found)} for {clips} clips: wanted one, or one for each")
    for one in found:
        if not isinstance(one, str) or not one.strip() or re.search("[\ud800-\udfff]", one):  # half a character
            raise ValueError(f"caption: wanted text, found {one!r}")
    return found
