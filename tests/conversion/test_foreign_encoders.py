"""mae_st and image ViTs: their encoders compute here what they compute there, but for positions and class token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm.models.vision_transformer as timm_vit
import torch
from foreign_checkpoints import PlainEncoder, State, image_mae, mae_st
from safetensors.torch import save_file
from torch import Tensor, nn

from tgm_scale.conversion.key_maps import ModelMetadata
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import Weights, build
from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD, patchify, sine_cosine_table

WIDTH, DEPTH, HEADS, PATCH, FRAMES, SIDE = 32, 2, 4, 8, 4, 32
SLOTS, PLACES = 2, 16


def ours(weights: Weights, video: Tensor) -> Tensor:
    with torch.no_grad():
        return build(weights)["encoder"](patchify(video, weights.size.tubelet, PATCH), None)


def clip(still: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (1, 3, FRAMES, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return video[:, :, :1].repeat(1, 1, FRAMES, 1, 1) if still else video


def normalised(video: Tensor, of_mean: tuple = IMAGENET_MEAN, of_std: tuple = IMAGENET_STD) -> Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (of_mean, of_std))
    return (video / 255 - mean) / std


def load(state: State, folder: Path, **options: object) -> Weights:
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "file")
    return read(folder / "file", ModelMetadata(HEADS, frames=FRAMES, image_size=SIDE), **options)


@pytest.mark.parametrize("style", ["code", "released", "finetuned"])
def test_mae_st_computes_the_same_with_our_positions(style: str, tmp_path: Path) -> None:
    state = mae_st(style, WIDTH, DEPTH, SLOTS, PLACES, PATCH)
    with pytest.raises(ValueError, match=r"cls_token.*pos_embed_spatial.*--lossy"):
        load(state, tmp_path)
    weights = load(state, tmp_path, lossy=True)
    assert weights.kind == "encoder"
    video = clip(still=False)
    embed = {name: state[f"patch_embed.proj.{name}"] for name in ("weight", "bias")}
    pixels = normalised(video, (0.45,) * 3, (0.225,) * 3)  # as mae_st reads videos
    patches = nn.functional.conv3d(pixels, **embed, stride=(2, PATCH, PATCH)).flatten(2).transpose(1, 2)
    expected = PlainEncoder(state, HEADS)(patches + sine_cosine_table(SLOTS * PLACES, WIDTH))
    assert (ours(weights, video) - expected).abs().max() < 1e-5
    assert any("left out 2 k biases: exact" in note for note in weights.notes)
    lost = next(note for note in weights.notes if note.startswith("lost"))
    assert all(name in lost for name in ("cls_token", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"))
    assert {"code": "decoder_blocks", "released": "pred_head", "finetuned": "head"}[style] in lost


@pytest.mark.parametrize("cut", [lambda kernel: kernel[:, :1].clone(), lambda kernel: kernel[:, :, 0].clone()])
def test_mae_st_of_other_pixels_than_colours_in_tubelets_is_refused(cut: Any, tmp_path: Path) -> None:
    state = mae_st("code", WIDTH, DEPTH, SLOTS, PLACES, PATCH)
    kernel = "patch_embed.proj.weight"
    with pytest.raises(ValueError, match=r"patch_embed.*wanted \[width, 3, tubelet, patch, patch\], found \[32, "):
        load({**state, kernel: cut(state[kernel])}, tmp_path, lossy=True)


@pytest.mark.parametrize("tubelet", [1, 2, 4])
def test_an_image_vit_sees_in_a_still_clip_what_timms_model_sees_in_the_frame(tubelet: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = timm_vit.VisionTransformer(
        SIDE, PATCH, 3, 5, "avg", WIDTH, DEPTH, HEADS, class_token=False, fc_norm=False
    ).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)  # k biases too
    state = dict(vit.state_dict())
    weights = load(state, tmp_path, lossy=True, tubelet=tubelet)
    video = clip(still=True)[:, :, :tubelet]  # one slot: as many tokens as the image has
    weights = Weights.of("encoder", weights.state, ModelMetadata(HEADS, frames=tubelet, image_size=SIDE), [])
    assert weights.size.tubelet == tubelet
    with torch.no_grad():
        vit.pos_embed.copy_(sine_cosine_table(PLACES, WIDTH))
        expected = vit.forward_features(normalised(video)[:, :, 0])
    assert (ours(weights, video) - expected).abs().max() < 2e-5 * expected.abs().max()


def test_a_file_of_image_mae(tmp_path: Path) -> None:
    state = image_mae(WIDTH, DEPTH, PLACES, PATCH)
    torch.save({"model": state}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=r"cls_token.*decoder_blocks.*--lossy"):
        read(tmp_path / "mae.pth", ModelMetadata(HEADS))
    weights = read(tmp_path / "mae.pth", ModelMetadata(HEADS), lossy=True)
    assert "inflated the patch embedding over 2 frames" in weights.notes
    kernel = weights.state["encoder.patch_embed.proj.weight"]
    torch.testing.assert_close(kernel.sum(2), state["patch_embed.proj.weight"])
    for i in range(DEPTH):
        q, _, v = state[f"blocks.{i}.attn.qkv.bias"].chunk(3)
        assert torch.equal(weights.state[f"encoder.blocks.{i}.attn.q_bias"], q)
        assert torch.equal(weights.state[f"encoder.blocks.{i}.attn.v_bias"], v)
        qkv = weights.state[f"encoder.blocks.{i}.attn.qkv.weight"]
        assert torch.equal(qkv, state[f"blocks.{i}.attn.qkv.weight"])


def test_what_has_no_name_here_is_listed(tmp_path: Path) -> None:
    state = image_mae(WIDTH, DEPTH, PLACES, PATCH) | {"blocks.0.ls1.gamma": torch.ones(WIDTH)}
    del state["norm.bias"]
    with pytest.raises(ValueError, match=r"missing \['norm.bias'\], unknown \['blocks.0.ls1.gamma'\]"):
        load(state, tmp_path, lossy=True)
