"""Learned masks outside of a run: their maps, by the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tgm_scale.checkpoints.checkpoint import Reader, latest
from tgm_scale.contracts import Grid
from tgm_scale.conversion.key_maps import MASKS
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import build
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.sampler import Sampler
from tgm_scale.planning.towers import Map

SAMPLER = "sampler"


class SamplerMap:
    """Logits of AdaMAE's sampler: the higher, the rather a token is seen."""

    def __init__(self, model: MaskedVideoAutoencoder, sampler: Sampler):
        self.model, self.sampler = model, sampler

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """float32 [B, S, R, C], on the device of the video. Raises ValueError for clips of another shape than the
        model's."""
        device = video_BCTHW.device
        found: Tensor = self.sampler.to(device)(self.model.to(device).embedded(video_BCTHW))
        return found


def load_learned(checkpoint: str | Path, option: str = "") -> dict[str, Map]:
    """The map of the mask that a run has learned, by name. checkpoint: a run folder or checkpoint of this project,
    given by a command's option.

    Raises ValueError where it has none."""
    path, prefix = Path(checkpoint), f"{MASKS}{SAMPLER}."
    folder = path if (path / "manifest.json").is_file() else latest(path / "checkpoints")
    try:
        model = build(read(path))
    except ValueError as mistake:
        raise ValueError(f"{option}{mistake}") from None
    learned = {} if folder is None else Reader(folder).weights()
    state = {name.removeprefix(prefix): value for name, value in learned.items() if name.startswith(prefix)}
    if not state or not isinstance(model, MaskedVideoAutoencoder):
        wanted = "wanted a run with masking.recipe=adamae, or its checkpoint"
        raise ValueError(f"{option}{checkpoint}: has no learned mask: {wanted}")
    sampler = Sampler(model)
    sampler.load_state_dict(state)
    return {SAMPLER: SamplerMap(model, sampler.eval())}


def needs_checkpoint(recipe: str) -> str:
    """What to say where a learned recipe is asked for without one."""
    return f"masking.recipe={recipe} is learned: give --checkpoint with a run that learned it, or its checkpoint"
