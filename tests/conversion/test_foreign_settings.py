"""What others' files say beside their tensors: read, or refused in words where it makes another model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_weights import made
from safetensors.torch import save_file

from tgm_scale.contracts import MAX_FRAMES
from tgm_scale.conversion import huggingface
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import outputs, without_extras


def folder_with(changes: dict[str, Any], folder: Path, file: str = "config.json") -> Path:
    """A transformers folder of a pretraining model of 3 blocks, with these settings in one of its files."""
    huggingface.write(without_extras(made("pretraining")), folder)
    said = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(said | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_eps": 0.1}, "layer_norm_eps: found 0.1, input should be less than or equal to 0.00001"),
        ({"layer_norm_eps": -1e-6}, "layer_norm_eps: found -1e-06, "),
        ({"num_channels": 4}, "num_channels: found 4, input should be 3"),
        ({"qv_bias": False}, "qv_bias: found False, input should be True"),
        ({"qkv_bias": False}, "qkv_bias: found False, input should be True"),
        ({"num_hidden_layers": 2}, "num_hidden_layers: found 2, and weights of 3 blocks"),
        ({"decoder_num_hidden_layers": 1}, "decoder_num_hidden_layers: found 1, and weights of 2 blocks"),
        ({"use_mean_pooling": True}, "use_mean_pooling: found true, and weights with a norm after their blocks"),
    ],
)
def test_settings_that_make_another_model_are_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        read(folder_with(changes, tmp_path))


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-5])
def test_the_eps_of_published_models_is_near_enough(eps: float, tmp_path: Path) -> None:
    weights = read(folder_with({"layer_norm_eps": eps, "hidden_dropout_prob": 0.5}, tmp_path))
    torch.testing.assert_close(outputs(weights), huggingface.outputs(tmp_path, weights), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tgm_scale": [1]}, r"tgm_scale: found \[1\], input should be a mapping"),
        ({"tgm_scale": "x"}, "tgm_scale: found x, input should be a mapping"),
        ({"tgm_scale": {"config": [1]}}, r"tgm_scale.config: found \[1\], "),
        ({"tgm_scale": {"config": {"objective": [1]}}}, r"tgm_scale.config.objective: found \[1\], "),
        ({"id2label": ["a"]}, r"id2label: found \['a'\], input should be a mapping"),
        ({"num_frames": None}, "num_frames: found None, "),
        ({"num_frames": 0}, "num_frames: found 0, input should be greater than or equal to 1"),
        ({"num_frames": -2}, "num_frames: found -2, "),
        ({"num_frames": 10**30}, f"num_frames: found 10+, input should be less than or equal to {MAX_FRAMES}"),
        ({"image_size": [32, 64]}, r"image_size: found \[32, 64\], "),
        ({"num_hidden_layers": "3"}, "num_hidden_layers: found 3, "),
        ({"decoder_num_attention_heads": "2"}, "decoder_num_attention_heads: found 2, "),
    ],
)
def test_settings_that_are_no_values_are_named_with_their_file(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        read(folder_with(changes, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_processor": [1]}, "wanted an object of settings, found list"),
        ({"image_processor": "x"}, "wanted an object of settings, found str"),
        ({"do_normalize": "false"}, "do_normalize: found 'false', wanted true or false"),
        ({"do_rescale": [0]}, r"do_rescale: found \[0\], wanted true or false"),
    ],
)
def test_a_preprocessing_that_is_none(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"preprocessing: {message}"):
        read(folder_with(changes, tmp_path, "preprocessor_config.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_config": [1]}, r"model_config: found \[1\], input should be a mapping"),
        ({"model_config": {"num_heads": "3"}}, "model_config.num_heads: found 3, "),
        ({"model_config": {"num_heads": 3, "all_frames": -8}}, "model_config.all_frames: found -8, "),
        ({"model_config": {"num_heads": 3, "layer_norm_eps": 0.1}}, "model_config.layer_norm_eps: found 0.1, "),
        ({"model_config": {"num_heads": 3, "qk_scale": 0.5}}, "model_config.qk_scale: found 0.5, "),
        ({"model_config": {"num_heads": 3, "depth": 2}}, "depth: found 2, and weights of 3 blocks"),
    ],
)
def test_settings_of_videomae_2s_own_code(changes: dict, message: str, tmp_path: Path) -> None:
    save_file(made("classifier").state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_Base"} | changes))
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_frames": -8}, "num_frames: found -8, input should be greater than or equal to 1"),
        ({"num_frames": True}, "num_frames: found True, "),
        ({"input_size": 0}, "input_size: found 0, "),
    ],
)
def test_arguments_that_are_no_values_are_named_with_their_file(given: dict, message: str, tmp_path: Path) -> None:
    torch.save({"model": made("pretraining").state, "args": argparse.Namespace(**given)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth: args\.{message}"):
        read(tmp_path / "a.pth")
