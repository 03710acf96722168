"""Memory and arithmetic that the frozen towers of a run take of each GPU."""

from __future__ import annotations

from dataclasses import dataclass

from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.assembly.tower_sizes import tower_sizes
from tgm_scale.assembly.towers import online_maps
from tgm_scale.config.sections import Config
from tgm_scale.guidance.towers import tower_folder
from tgm_scale.models.pretraining import block_macs
from tgm_scale.objectives.term import CAPTIONS


@dataclass(frozen=True)
class TowerCost:
    """Cost of the frozen towers. bytes: weights in bf16. macs: multiply-accumulates of a clip. said: which towers."""

    bytes: float = 0.0
    macs: float = 0.0
    said: str = "none"


def tower_cost(config: Config, plan: RunPlan) -> TowerCost:
    """Return the cost of the folder's towers where it exists, else of CLIP ViT-B/32's."""
    guidance = config.guidance
    assert plan.masker is not None
    online = online_maps(guidance, plan.needs)
    embeds = CAPTIONS in plan.terms or "relevance" in online
    if guidance.towers is None or not (embeds or online):
        return TowerCost()
    vision, text, said = tower_sizes(tower_folder(guidance.towers))
    parameters = macs = 0.0
    if embeds:
        tokens, width = text["max_position_embeddings"], text["hidden_size"]
        mlp, depth = text["intermediate_size"], text["num_hidden_layers"]
        parameters += depth * (4 * width**2 + 2 * width * mlp) + width * (text["vocab_size"] + tokens)
        macs += depth * block_macs(tokens, width, mlp)
    if online:
        width, patch, depth = vision["hidden_size"], vision["patch_size"], vision["num_hidden_layers"]
        tokens = ((guidance.resolution or vision["image_size"]) // patch) ** 2 + 1
        frames = plan.shape.frames if guidance.frames_per_tubelet == "all" else plan.shape.grid.slots
        mlp = vision["intermediate_size"]
        parameters += depth * (4 * width**2 + 2 * width * mlp) + 3 * patch**2 * width
        macs += frames * (depth * block_macs(tokens, width, mlp) + tokens * 3 * patch**2 * width)
        said += f", {frames} frames a clip"
    return TowerCost(2 * parameters, macs, said)
