"""Towers that are damaged, or that make no numbers: refused once, when they are loaded, with folder and file named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_towers import PREPROCESSING

from tgm_scale.demo.clip.tokenizer import write_tokenizer
from tgm_scale.guidance.preprocessing import Preprocessing
from tgm_scale.guidance.towers import load_image_tower, load_text_tower

Spoil = Callable[[Path], object]


def refusal(load: Callable[[Path], object], folder: Path) -> str:
    with pytest.raises(ValueError, match=r"guidance\.towers=") as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith(f"guidance.towers={folder}") and "\n" not in text and len(text) < 600
    return text


def numbers(change: Callable[[str, int], object]) -> Spoil:
    """vocab.json with other numbers."""

    def spoil(folder: Path) -> None:
        file = folder / "vocab.json"
        tokens = json.loads(file.read_text())
        file.write_text(json.dumps({token: change(token, number) for token, number in tokens.items()}))

    return spoil


def written(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


VOCABULARIES = {
    "empty": ("vocab.json", written("vocab.json", b"")),
    "a list": ("vocab.json", written("vocab.json", b"[]")),
    "nested": ("vocab.json", written("vocab.json", b"[" * 100_000)),
    "nothing": ("vocab.json", written("vocab.json", b"{}")),
    "texts": ("vocab.json", numbers(lambda token, number: str(number))),
    "negative": ("vocab.json", numbers(lambda token, number: number - 1)),
    "all one": ("vocab.json", numbers(lambda token, number: 0)),
    "beyond the embedding": ("tokenizer", numbers(lambda token, number: number + 200 * (number > 500))),
    "no UTF-8": ("merges.txt", written("merges.txt", b"\xff\xfe\0")),
    "one letter": ("merges.txt", written("merges.txt", b"#version: 0.2\na\n")),
    "an unknown pair": ("merges.txt", written("merges.txt", b"#version: 0.2\nx y\n")),
    "settings nested": ("tokenizer_config.json", written("tokenizer_config.json", b"[" * 100_000)),
    "settings an answer": (
        "tokenizer_config.json is a server's error",
        written("tokenizer_config.json", b'{"error": 1}'),
    ),
    "settings a list": ("tokenizer_config.json", written("tokenizer_config.json", b"[]")),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_damaged_vocabulary_is_named(clip: Path, kind: str) -> None:
    name, spoil = VOCABULARIES[kind]
    spoil(clip)
    assert name in refusal(load_text_tower, clip)
    load_image_tower(clip)


def test_merges_that_were_cut_are_noticed(clip: Path) -> None:
    """They would be read, and give other tokens."""
    texts = ["a red circle moves to the left", "a red square moves to the right"] * 4
    write_tokenizer(texts, clip, 16)
    merges = (clip / "merges.txt").read_text().splitlines()
    assert len(merges) > 20
    (clip / "merges.txt").write_text("\n".join(merges[:-3]))
    assert "merges.txt: cut: no pair makes" in refusal(load_text_tower, clip)


CONFIGS: list[tuple[str | None, object]] = [
    ("vision_config", {"num_attention_heads": 0}),
    ("vision_config", {"layer_norm_eps": "x"}),
    ("vision_config", {"patch_size": 0}),
    ("vision_config", "x"),
    ("projection_dim", "x"),
    (None, "[" * 100_000),
    (None, "[]"),
]


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_a_damaged_config_is_named(clip: Path, number: int) -> None:
    (key, value), file = CONFIGS[number], clip / "config.json"
    tree = json.loads(file.read_text())
    if key is None:
        file.write_text(str(value))
    else:
        file.write_text(json.dumps(tree | {key: tree[key] | value if isinstance(value, dict) else value}))
    text = refusal(load_image_tower, clip)
    assert "config.json" in text or "weights cannot be loaded" in text


FIELDS = [
    {"image_std": [0, 1, 1]}, {"image_std": [1, -1, 1]}, {"image_std": list("abc")}, {"image_std": [1, 1]},
    {"image_std": [float("nan")] * 3}, {"image_mean": [1]}, {"image_mean": None}, {"size": {"shortest_edge": "48"}},
    {"size": {"shortest_edge": 10**9}}, {"size": 0}, {"size": 48.5}, {"crop_size": -1}, {"crop_size": "x"},
    {"rescale_factor": -1}, {"rescale_factor": 0}, {"resample": []},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FIELDS)))
def test_pixels_that_cannot_be_made_are_refused(clip: Path, number: int) -> None:
    Preprocessing.read(PREPROCESSING)
    (clip / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING | FIELDS[number]))
    assert "preprocessor_config.json" in refusal(load_image_tower, clip)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(clip: Path, value: float) -> None:
    whole = load_file(clip / "model.safetensors")
    for name, load in (
        ("text_model.encoder.layers.1.mlp.fc1.weight", load_text_tower),
        ("vision_model.encoder.layers.1.mlp.fc1.weight", load_image_tower),
    ):
        weights = {key: tensor.clone() for key, tensor in whole.items()}
        weights[name].view(-1)[7] = value
        save_file(weights, clip / "model.safetensors", {"format": "pt"})
        assert "mlp.fc1.weight is not finite" in refusal(load, clip)


def test_weights_that_overflow_are_refused(clip: Path) -> None:
    weights = load_file(clip / "model.safetensors")
    for name in list(weights):
        if name.endswith("mlp.fc2.weight"):
            weights[name] = torch.full_like(weights[name], 3e38)
    save_file(weights, clip / "model.safetensors", {"format": "pt"})
    assert "of a caption it makes numbers that are not finite" in refusal(load_text_tower, clip)
    assert "of a grey picture it makes numbers that are not finite" in refusal(load_image_tower, clip)
