"""What the frozen towers of a run take of each GPU: memory and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgm_scale.config.sections import Config
from tgm_scale.guidance.folder_files import read_json
from tgm_scale.guidance.sentence_folder import ENCODERS
from tgm_scale.guidance.towers import tower_folder
from tgm_scale.planning.run_plan import RunPlan
from tgm_scale.planning.towers import online_maps

# CLIP ViT-B/32 (arXiv 2103.00020, table 20), which is also what transformers takes for a key that is not there
_VISION = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "image_size": 224, "patch_size": 32}
_TEXT = {"hidden_size": 512, "num_hidden_layers": 12, "intermediate_size": 2048, "vocab_size": 49408}
_TEXT |= {"max_position_embeddings": 77}
_ENCODER_TOKENS = 32  # of a caption, for a text encoder: it takes the least of 16, 32, 64, ... that holds the caption
_DISTILBERT = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "intermediate_size": "hidden_dim"}


@dataclass(frozen=True)
class TowerCost:
    """bytes: weights in bf16. macs: multiply-accumulates of a clip. said: of what, in words."""

    bytes: float = 0.0
    macs: float = 0.0
    said: str = "none"


def tower_cost(config: Config, plan: RunPlan) -> TowerCost:
    """Of the folder where it is there, else of CLIP ViT-B/32."""
    guidance = config.guidance
    assert plan.masker is not None
    online = online_maps(guidance, plan.needs)
    if guidance.towers is None or not (plan.captions or online):
        return TowerCost()
    vision, text, said = _sizes(tower_folder(guidance.towers))
    parameters = macs = 0.0
    if plan.captions:
        tokens, width = text["max_position_embeddings"], text["hidden_size"]
        block = 4 * width**2 + 2 * width * text["intermediate_size"]
        parameters += text["num_hidden_layers"] * block + width * (text["vocab_size"] + tokens)
        macs += text["num_hidden_layers"] * (tokens * block + 2 * tokens**2 * width)
    if online:
        width, patch, depth = vision["hidden_size"], vision["patch_size"], vision["num_hidden_layers"]
        tokens = ((guidance.resolution or vision["image_size"]) // patch) ** 2 + 1
        frames = plan.shape.frames if guidance.frames_per_tubelet == "all" else plan.shape.grid.slots
        block = 4 * width**2 + 2 * width * vision["intermediate_size"]
        parameters += depth * block + 3 * patch**2 * width
        macs += frames * (depth * (tokens * block + 2 * tokens**2 * width) + tokens * 3 * patch**2 * width)
        said += f", {frames} frames a clip"
    return TowerCost(2 * parameters, macs, said)


def _sizes(folder: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Of the image and the text tower; the folder's own where it can be read."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        return _VISION, _TEXT, f"CLIP ViT-B/32 assumed ({folder} is not here)"
    tree = read_json(file)
    if tree.get("model_type") in ENCODERS:
        tokens, said = {"max_position_embeddings": _ENCODER_TOKENS}, f"{folder}, captions of {_ENCODER_TOKENS} tokens"
        plain = {key: tree.get(key, tree.get(other)) for key, other in _DISTILBERT.items()}
        return _VISION, _given(tree | plain | tokens, _TEXT), said
    parts = [tree.get(name) for name in ("vision_config", "text_config")]
    vision, text = (part if isinstance(part, dict) else {} for part in parts)
    return _given(vision, _VISION), _given(text, _TEXT), folder


def _given(tree: dict[str, Any], default: dict[str, int]) -> dict[str, int]:
    return {key: value if isinstance(value := tree.get(key), int) and value > 0 else default[key] for key in default}
