"""Sizes of the frozen towers, from their folder's config.json, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgm_scale.guidance.folder_files import read_json
from tgm_scale.guidance.sentence_folder import ENCODERS

# CLIP ViT-B/32 (arXiv 2103.00020, table 20), which is also what transformers takes for a key that is not there
_VISION = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "image_size": 224, "patch_size": 32}
_VISION |= {"num_attention_heads": 12}
_TEXT = {"hidden_size": 512, "num_hidden_layers": 12, "intermediate_size": 2048, "vocab_size": 49408}
_TEXT |= {"max_position_embeddings": 77}
_ENCODER_TOKENS = 32  # of a caption: a text encoder takes the smallest of 16, 32, 64, ... that holds the caption
_DISTILBERT = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "intermediate_size": "hidden_dim"}


def tower_sizes(folder: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the sizes of image and text tower, and their description; the folder's own where it can be read."""
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
