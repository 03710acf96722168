"""Small CLIP models with random weights, and a vocabulary for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

transformers.logging.disable_progress_bar()

PREPROCESSING = {
    "size": {"shortest_edge": 48},
    "crop_size": {"height": 48, "width": 48},
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "CLIPImageProcessor",
}
SENTENCES = [
    "a red circle moves to the left over a striped field",
    "a blue square turns clockwise and grows",
    "the small yellow triangle bounces between two walls",
    "two people walk a dog along the beach at night",
]


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights far enough from their initial ones that no path through the model is close to the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)


def small_clip(vocabulary: int, text: dict[str, Any] | None = None) -> transformers.CLIPModel:
    config = transformers.CLIPConfig(
        text_config=dict(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            **(text or {}),
        ),
        vision_config=dict(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=48,
            patch_size=8,
        ),
        projection_dim=24,
    )
    model = transformers.CLIPModel(config).eval()
    randomise(model)
    return model


def write_byte_vocabulary(folder: Path) -> int:
    """CLIP's tokenizer without merges: one token for each byte, and one for each byte that ends a word."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(tokens)
