"""CLIP folders with random weights for benchmarks: a tower's time does not depend on its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tgm_scale.runtime.compat import prepare_torchvision


@dataclass(frozen=True)
class Shape:
    """Shape of CLIP towers: patch and side of the image tower in pixels; width and layers of both towers."""

    patch: int
    side: int
    width: int
    layers: int
    text_width: int
    text_layers: int
    head: int = 64  # features


SHAPES = {
    "B/32": Shape(32, 224, 768, 12, 512, 12),
    "B/16": Shape(16, 224, 768, 12, 512, 12),
    "tiny": Shape(16, 32, 32, 2, 32, 2, 16),
}


def random_clip(name: str, folder: Path) -> Path:
    """Write a CLIP folder of the named size in the Hugging Face layout; every call gives the same weights."""
    prepare_torchvision()
    import torch
    import transformers

    from tgm_scale.demo.clip.tokenizer import write_tokenizer

    shape = SHAPES[name]
    vocabulary = write_tokenizer(["a caption"], folder, context=77)
    tokens = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text = {**tokens, "vocab_size": vocabulary, **_trunk(shape.text_width, shape.text_layers, shape.head)}
    vision = {**_trunk(shape.width, shape.layers, shape.head), "patch_size": shape.patch, "image_size": shape.side}
    torch.manual_seed(0)
    transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    side = {"height": shape.side, "width": shape.side}
    transformers.CLIPImageProcessor(size={"shortest_edge": shape.side}, crop_size=side).save_pretrained(folder)
    return folder


def _trunk(width: int, layers: int, head: int) -> dict[str, int]:
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // head}
    return {**shape, "num_hidden_layers": layers}
