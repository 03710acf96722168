"""Learned masks outside of a run: their maps, computed with the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tgm_scale.assembly.towers import Map, load_towers
from tgm_scale.checkpoints.checkpoint import Reader
from tgm_scale.checkpoints.folders import latest
from tgm_scale.config.sections import GuidanceConfig
from tgm_scale.contracts import Grid
from tgm_scale.conversion.key_maps import MASKS
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import build
from tgm_scale.masking.recipes import RECIPES
from tgm_scale.models.generator import Generator
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.sampler import Sampler


class LearnedMap:
    """Logits of a learned mask for clips. heads: map that they are made from, in place of the model's embeddings."""

    def __init__(self, model: MaskedVideoAutoencoder, learned: nn.Module, heads: Map | None = None):
        self.model, self.learned, self.heads = model, learned, heads

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """Return logits, float32 [B, S, R, C], on the video's device. Raises ValueError for clips of another shape."""
        device = video_BCTHW.device
        learned = self.learned.to(device)
        if self.heads is None:
            inputs = self.model.to(device).embedded(video_BCTHW)
        else:
            inputs = self.heads(video_BCTHW, grid).to(device)
        found: Tensor = learned(inputs)
        return found


def load_learned(checkpoint: str | Path, option: str = "") -> dict[str, Map]:
    """Load the map of the mask that a run has learned, by the name of its source; with the run's own frozen tower,
    where the map is computed from its attention. checkpoint: a run folder or checkpoint of this project, given by a
    command's option.

    Raises ValueError where it has no learned mask."""
    path = Path(checkpoint)
    folder = path if (path / "manifest.json").is_file() else latest(path / "checkpoints")
    try:
        weights = read(path)
        model = build(weights)
    except ValueError as mistake:
        raise ValueError(f"{option}{mistake}") from None
    learned = {} if folder is None else Reader(folder).weights()
    state = {name.removeprefix(MASKS): value for name, value in learned.items() if name.startswith(MASKS)}
    if not state or not isinstance(model, MaskedVideoAutoencoder):
        wanted = "wanted a run with masking.recipe=adamae or automae, or its checkpoint"
        raise ValueError(f"{option}{checkpoint}: has no learned mask: {wanted}")
    source = next(iter(state)).partition(".")[0]
    heads: Map | None = None
    module: nn.Module = Sampler(model)
    if source == "generator":
        guidance = GuidanceConfig(**{**(weights.config or {})["guidance"], "compile": False})
        towers = load_towers(guidance, {"heads"}, embed_captions=False, device=torch.device("cpu"))
        heads, module = towers.maps["heads"], Generator(towers.heads)
    module.load_state_dict({name.removeprefix(f"{source}."): value for name, value in state.items()})
    return {source: LearnedMap(model, module.eval(), heads)}


def needs_checkpoint(recipe: str, runs: Mapping[str, str | Path] | None = None) -> str:
    """Return the message for a learned recipe that is asked for without a run that learned it. runs: those that were
    given, by the source that each has learned."""
    said = f"masking.recipe={recipe} is learned: give --checkpoint with a run that learned it, or its checkpoint"
    others = [
        f"{run} learned {name}, not {recipe}"
        for source, run in (runs or {}).items()
        for name, of_table in RECIPES.items()
        if source in of_table.sources
    ]
    return "; ".join([said, *others])
