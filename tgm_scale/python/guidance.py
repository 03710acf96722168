"""What a caption says about a video's tokens, and what a masking recipe hides of it.

Shapes: B clips, T frames of H x H pixels, S = T / tubelet slots, R = C = H / patch rows and columns of tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tgm_scale.config.sections import GuidanceConfig
from tgm_scale.contracts import Grid
from tgm_scale.guidance.image import SCORERS
from tgm_scale.masking.recipes import Recipe, build_masker
from tgm_scale.planning.towers import Towers, load_towers
from tgm_scale.python.video import checked, device_of, whole_number
from tgm_scale.runtime import seeding
from tgm_scale.runtime.command import reported_as

Captions = str | Sequence[str]  # one for all clips, or one for each
_KEPT = 4  # sets of models


def relevance(
    video: Tensor,
    caption: Captions,
    *,
    towers: str | os.PathLike[str] = "small",
    scorer: str = "value",
    patch: int = 16,
    tubelet: int = 2,
    device: str | torch.device = "cpu",
) -> Tensor:
    """How well each token of each clip answers to its caption: float32 [B, S, R, C], cosines; only their order within
    a clip means something.

    video: uint8 RGB [B, 3, T, H, H]. caption: one for all clips, or a list of one for each. towers: a CLIP or SigLIP
    folder in the Hugging Face layout, or `small`, the packaged CLIP, which has seen synthetic shapes only and says
    nothing of real video. scorer: `value`, `vv` or `raw` (docs/RECIPES.md). patch, tubelet: pixels and frames of a
    token; other than a model's, they are free. The models of the last calls are kept in memory.

    Raises ValueError for a video, caption, folder or scorer that is none, and for sides that do not divide."""
    place = device_of(device)
    video = checked(video).to(place)
    captions = _captions(caption, len(video))
    with _told():
        grid = _grid(video, tubelet, patch)
        found = _models(os.fspath(towers), scorer, frozenset({"relevance"}), place)
    return _relevance(found, video, captions, grid)


def masks(
    video: Tensor,
    caption: Captions | None = None,
    *,
    recipe: str = "text_guided",
    mask_ratio: float = 0.75,
    options: Mapping[str, Any] | None = None,
    towers: str | os.PathLike[str] = "small",
    scorer: str = "value",
    patch: int = 16,
    tubelet: int = 2,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """The tokens that a masking recipe hides of each clip: bool [B, S, R, C], True where hidden.

    As `relevance`; and recipe, mask_ratio, options: as `masking.*` of a run (docs/RECIPES.md). seed: of what is drawn;
    clip i of any batch has the same mask at the same seed. Only recipes that follow a caption need one. motion_guided
    is not to be had: frames do not bring the codec's motion.

    Raises ValueError as `relevance`, and for a recipe, ratio or options that do not go together."""
    place = device_of(device)
    video = checked(video).to(place)
    with _told():
        grid = _grid(video, tubelet, patch)
        masker = build_masker(recipe, grid, mask_ratio=_ratio(mask_ratio), **_known(options))
        if "motion" in masker.needs:
            raise ValueError(f"recipe={recipe}: needs the codec's motion, which a tensor of frames does not have")
        if "relevance" in masker.needs and caption is None:
            raise ValueError(f"recipe={recipe}: follows a caption: give one")
        found = _models(os.fspath(towers), scorer, frozenset(masker.needs), place)
    maps = {name: look(video, grid) for name, look in found.maps.items()}
    if "relevance" in masker.needs and caption is not None:
        maps["relevance"] = _relevance(found, video, _captions(caption, len(video)), grid)
    seeds_B = torch.tensor([seeding.key(seed, "masks", clip) for clip in range(len(video))], device=place)
    return masker.hidden(seeds_B, **maps)


def _grid(video: Tensor, tubelet: int, patch: int) -> Grid:
    whole_number("tubelet", tubelet)
    whole_number("patch", patch)
    return Grid.of(video.shape[2], video.shape[3], tubelet, patch)


def _ratio(mask_ratio: float) -> float:
    if not isinstance(mask_ratio, (int, float)):
        raise ValueError(f"mask_ratio={mask_ratio!r}: wanted a share above 0 and below 1")
    return mask_ratio


def _known(options: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(options or {}, Mapping):
        raise ValueError(f"options={options!r}: wanted values by name, such as {{'temperature': 1.0}}")
    names = [one.name for one in fields(Recipe)]
    for name in options or {}:
        if name not in names:
            raise ValueError(f"options.{name}: unknown; known: {', '.join(names)}")
    return dict(options or {})


def _relevance(found: Towers, video: Tensor, captions: list[str], grid: Grid) -> Tensor:
    assert found.text is not None and found.relevance is not None
    return found.relevance(video, found.text.encode(captions), grid)


@lru_cache(_KEPT)
def _models(towers: str, scorer: str, needs: frozenset[str], device: torch.device) -> Towers:
    if scorer not in SCORERS:
        raise ValueError(f"scorer={scorer!r}: wanted one of {', '.join(SCORERS)}")
    guidance = GuidanceConfig(towers=towers).model_copy(update={"scorer": scorer})
    return load_towers(guidance, set(needs), contrastive=False, device=device)


def _captions(caption: Captions, clips: int) -> list[str]:
    if not isinstance(caption, (str, Sequence)):
        raise ValueError(f"caption: wanted text, or a list of texts, found {caption!r}")
    found = [caption] * clips if isinstance(caption, str) else list(caption)
    if len(found) != clips:
        raise ValueError(f"caption: {len(found)} for {clips} clips: wanted one, or one for each")
    for one in found:
        if not isinstance(one, str) or not one.strip():
            raise ValueError(f"caption: wanted text, found {one!r}")
    return found


@contextmanager
def _told() -> Iterator[None]:
    """Mistakes in the words of these functions, which have no sections of a configuration."""
    with ExitStack() as stack:
        for key, name in {"guidance.": "", "masking.": "", "data.frames": "frames", "data.size": "size"}.items():
            stack.enter_context(reported_as(key, name))
        yield
