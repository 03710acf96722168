"""Parity with transformers' VideoMAE on the same weights, video and mask; the maps; the exported folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tgm_scale.conversion.huggingface import configuration, export_pretraining, from_huggingface, names, to_huggingface
from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import NORM_EPS, SIZES, ModelSize
from tgm_scale.objectives.reconstruction import reconstruction_error

SMALL = replace(SIZES["tiny"], width=48, depth=3, heads=3, mlp=96, decoder_width=32, decoder_depth=2, decoder_mlp=80)
FRAMES, SIDE = 8, 32


def build(size: ModelSize = SMALL) -> MaskedVideoAutoencoder:
    """A model with no bias at 0 and no norm at 1, so that a swapped or lost one shows."""
    model = MaskedVideoAutoencoder(size, FRAMES, SIDE, embedding_width=8)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def theirs(model: MaskedVideoAutoencoder) -> Any:
    """The same model in transformers. Its decoder's last norm has eps 1e-5 whatever the configuration: set right."""
    from transformers import VideoMAEForPreTraining

    other = VideoMAEForPreTraining(configuration(model.size, FRAMES, SIDE))
    other.decoder.norm.eps = NORM_EPS
    other.load_state_dict(to_huggingface(model.state_dict(), model.size))
    return other


@pytest.fixture(scope="module")
def clip() -> dict[str, Tensor]:
    """Video, visible and target indices, and the same as transformers takes them."""
    generator = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (2, 3, FRAMES, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    order = torch.stack([torch.randperm(64, generator=generator) for _ in range(2)])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    target = order[:, 9:].sort(1).values
    return {
        "video": video,
        "visible": order[:, :9].sort(1).values,
        "target": target,
        "pixel_values": (video.transpose(1, 2) / 255 - mean) / std,
        "bool_masked_pos": torch.zeros(2, 64, dtype=torch.bool).scatter(1, target, True),
    }


def test_outputs_loss_and_gradients_are_those_of_transformers(clip: dict[str, Tensor]) -> None:
    ours = build()
    other = theirs(ours)
    out = ours(clip["video"], clip["visible"], clip["target"])
    loss = reconstruction_error(out.prediction_BMP, out.target_BMP).mean()
    expected = other(clip["pixel_values"], bool_masked_pos=clip["bool_masked_pos"])
    assert (out.prediction_BMP - expected.logits).abs().max() < 1e-5
    assert abs(loss.item() - expected.loss.item()) < 1e-6

    loss.backward()
    expected.loss.backward()
    gradients = {name: value.grad for name, value in other.named_parameters()}
    assert gradients.keys() == {other for others in names(SMALL).values() for other in others}
    for name, others in names(SMALL).items():
        wanted = torch.cat([gradients[other] for other in others])
        assert wanted.abs().max() > 1e-5, name
        assert (ours.get_parameter(name).grad - wanted).abs().max() < 1e-4 * wanted.abs().max(), name


def test_wrong_heads_load_and_shift_the_outputs(clip: dict[str, Tensor]) -> None:
    """Why both directions take the size: the weights alone do not tell."""
    ours = build()
    other = theirs(ours)
    wrong = MaskedVideoAutoencoder(replace(SMALL, heads=6), FRAMES, SIDE)
    wrong.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("projection.")})
    with torch.no_grad():
        expected = other(clip["pixel_values"], bool_masked_pos=clip["bool_masked_pos"]).logits
        got = wrong(clip["video"], clip["visible"], clip["target"]).prediction_BMP
    assert (got - expected).abs().max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_the_maps_cover_every_weight_of_every_size(size: str) -> None:
    from transformers import VideoMAEForPreTraining

    dimensions = SIZES[size]
    side = dimensions.patch * 4
    with torch.device("meta"):
        ours = MaskedVideoAutoencoder(dimensions, 16, side).state_dict()
        other = VideoMAEForPreTraining(configuration(dimensions, 16, side)).state_dict()
    got = to_huggingface(ours, dimensions)
    assert {name: value.shape for name, value in got.items()} == {name: value.shape for name, value in other.items()}


@pytest.mark.parametrize("version", [4, 5])
def test_there_and_back_changes_no_bit(version: int) -> None:
    state = build().state_dict()
    other = to_huggingface(state, SMALL)
    if version == 4:
        other = {
            name.replace("attention.query.bias", "attention.q_bias").replace(
                "attention.value.bias", "attention.v_bias"
            ): x
            for name, x in other.items()
        }
        assert sum(name.endswith(("q_bias", "v_bias")) for name in other) == 2 * (3 + 2)
    back = from_huggingface(other, SMALL)
    assert back.keys() == state.keys() - {"projection.weight"}
    assert all(torch.equal(back[name], state[name]) for name in back)


def test_missing_and_unknown_keys_are_listed() -> None:
    state = build().state_dict()
    state["encoder.blocks.0.attn.scale"] = state.pop("mask_token")
    with pytest.raises(ValueError, match=r"missing \['mask_token'\], unknown \['encoder.blocks.0.attn.scale'\]"):
        to_huggingface(state, SMALL)
    with pytest.raises(ValueError, match=r"missing \['decoder.decoder_layers.2.*unknown none"):
        from_huggingface(to_huggingface(build().state_dict(), SMALL), replace(SMALL, decoder_depth=3))


def test_an_exported_folder_loads_and_gives_our_outputs(tmp_path: Path) -> None:
    model = build()
    export = export_pretraining(model.state_dict(), SMALL, FRAMES, SIDE, tmp_path)
    assert export.left_out == ["projection.weight"]
    assert export.max_difference < 5e-5  # from the eps of the decoder's last norm, 1e-5 in transformers
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (
        saved["layer_norm_eps"] == 1e-6
        and saved["norm_pix_loss"]
        and saved["architectures"] == ["VideoMAEForPreTraining"]
    )
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == list(IMAGENET_MEAN) and processor["image_std"] == list(IMAGENET_STD)
    back = from_huggingface(load_file(tmp_path / "model.safetensors"), SMALL)
    assert all(torch.equal(back[name], model.state_dict()[name]) for name in back)


def test_a_bf16_state_exports_in_float32(tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in build().state_dict().items()}
    assert export_pretraining(state, SMALL, FRAMES, SIDE, tmp_path).max_difference < 5e-5
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / "model.safetensors").values())


def test_the_exported_processor_gives_the_pixels_of_training(tmp_path: Path, clip: dict[str, Tensor]) -> None:
    from transformers import VideoMAEImageProcessor

    export_pretraining(build().state_dict(), SMALL, FRAMES, SIDE, tmp_path)
    frames = [frame.permute(1, 2, 0).numpy() for frame in clip["video"][0].transpose(0, 1)]
    got = VideoMAEImageProcessor.from_pretrained(tmp_path)(frames, return_tensors="pt").pixel_values
    torch.testing.assert_close(got[0], clip["pixel_values"][0], rtol=1e-5, atol=1e-5)
