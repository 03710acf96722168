"""The frozen models of a run, loaded as the objective and the masking recipe need them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tgm_scale.config.sections import GuidanceConfig
from tgm_scale.contracts import Grid
from tgm_scale.guidance.flow import FlowToBase
from tgm_scale.guidance.maps import ClassAttention, HeadAttention, Parts, Relevance, TokenFeatures
from tgm_scale.guidance.tower_folder import has_image_tower
from tgm_scale.guidance.towers import TextTower, load_image_tower, load_text_tower, tower_folder

Map = Callable[[Tensor, Grid], Tensor]  # of (video, grid): float32 [B, S, R, C], or of each head [B, A, S, R, C]
# image tower's outputs that a masker, or (features) a term of the objective, may need
IMAGE_MAPS = {"relevance", "attention", "heads", "parts", "features"}


def online_maps(guidance: GuidanceConfig, needs: set[str]) -> set[str]:
    """Return those of the needs that the image tower computes during the run."""
    return needs & IMAGE_MAPS - ({"relevance"} if guidance.cached else set())


def sees_images(guidance: GuidanceConfig) -> bool:
    """Return whether the towers of a run include an image tower: not if none are named, or for a text encoder. Raises
    ValueError for a folder that is no tower."""
    return guidance.towers is not None and has_image_tower(tower_folder(guidance.towers))


@dataclass
class Towers:
    """Frozen models of a run, outside the engine: not sharded, not optimised, not saved."""

    text: TextTower | None = None
    relevance: Relevance | None = None
    features: TokenFeatures | None = None
    maps: dict[str, Map] = field(default_factory=dict)  # computed from pixels alone

    @property
    def heads(self) -> int:
        """Number of heads whose attention a learned mask reads; 0 where none does."""
        found = self.maps.get("heads")
        return found.heads if isinstance(found, HeadAttention) else 0


def load_towers(guidance: GuidanceConfig, needs: set[str], embed_captions: bool, device: torch.device) -> Towers:
    """Load the frozen models. needs: of the masker and the objective. embed_captions: whether the objective reads
    embeddings of captions."""
    found = Towers()
    if "flow" in needs:
        found.maps["flow"] = FlowToBase(guidance.flow, device)
    if guidance.towers is None or not (needs & IMAGE_MAPS or embed_captions):
        return found
    folder = tower_folder(guidance.towers)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    online = online_maps(guidance, needs)
    if "relevance" in online or embed_captions:
        found.text = load_text_tower(folder, device=device, dtype=dtype)
    if not online:
        return found
    image = load_image_tower(folder, device=device, dtype=dtype, compiled=guidance.compile)
    view = (guidance.frames_per_tubelet, guidance.resolution)
    if "relevance" in online:
        found.relevance = Relevance(image, guidance.scorer, *view)
    if "features" in online:
        found.features = TokenFeatures(image, guidance.scorer, *view)
    if "attention" in online:
        found.maps["attention"] = ClassAttention(image, *view)
    if "heads" in online:
        found.maps["heads"] = HeadAttention(image, *view)
    if "parts" in online:
        found.maps["parts"] = Parts(image, guidance.scorer, *view)
    return found
