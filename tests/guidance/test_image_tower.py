"""The image towers: preprocessing, and each scorer against a computation of its own from transformers' parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor

from tgm_scale.guidance.image import SCORERS
from tgm_scale.guidance.preprocessing import Preprocessing
from tgm_scale.guidance.towers import load_image_tower

GREY_LEVEL = 1 / 255 / 0.26  # one grey level after normalisation with the smallest deviation
Frames = Callable[..., Tensor]


def picture(file: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None]


def test_pictures_are_preprocessed_as_the_original_does(real: Path) -> None:
    """The original resizes with PIL. Ours: at most one grey level off, in less than one value of a thousand."""
    config = json.loads((real / "clip" / "preprocessor_config.json").read_text())
    pixels = Preprocessing.read(config).pictures(picture(real / "clip" / "franz-kafka.jpg"))
    expected = torch.from_numpy(np.load(real / "clip" / "expected_preprocessed_image.npy"))
    assert pixels.shape == expected.shape
    difference = (pixels - expected).abs()
    assert difference.max() < 1.001 * GREY_LEVEL
    assert (difference > 1e-5).float().mean() < 1e-3


@pytest.mark.parametrize("family", ["clip_source", "siglip_source"])
@pytest.mark.parametrize("size", [(48, 48), (61, 97), (64, 60), (30, 40)])
def test_preprocessing_against_pil(
    family: str, size: tuple[int, int], request: pytest.FixtureRequest, frames: Frames
) -> None:
    preprocessing = load_image_tower(request.getfixturevalue(family)).preprocessing
    x = frames(1, 3, *size)
    image = Image.fromarray(x[0].permute(1, 2, 0).numpy())
    if family == "siglip_source":
        image = image.resize((48, 48), Image.Resampling.BICUBIC)
    else:
        height, width = (int(48 * side / min(size)) for side in size)
        top, left = (height - 48) // 2, (width - 48) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 48, top + 48))
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
    assert (preprocessing.pictures(x)[0] - expected).abs().max() < 1.001 * GREY_LEVEL


def test_frames_are_seen_whole_at_any_side(clip_source: Path) -> None:
    """No crop: a token grid over the clip must lie over the tower's grid."""
    preprocessing = load_image_tower(clip_source).preprocessing
    x = torch.zeros(1, 3, 40, 80, dtype=torch.uint8)
    x[..., :10], x[..., -10:] = 255, 255
    pixels = preprocessing.frames(x, 32)
    assert pixels.shape == (1, 3, 32, 32)
    assert (pixels[..., 0] > 1.5).all() and (pixels[..., -1] > 1.5).all() and (pixels[..., 16] < -1).all()


def test_pooled_embeddings_are_those_of_transformers(clip_source: Path, siglip_source: Path, frames: Frames) -> None:
    x = frames(3, 3, 48, 48)
    for folder, whole in ((clip_source, transformers.CLIPModel), (siglip_source, transformers.SiglipModel)):
        tower = load_image_tower(folder)
        with torch.no_grad():
            pixels = tower.preprocessing.pictures(x)
            expected = whole.from_pretrained(folder).eval().get_image_features(pixel_values=pixels).pooler_output
        torch.testing.assert_close(tower.embed(x), F.normalize(expected, dim=-1), rtol=0, atol=2e-6)


def clip_last_tokens(folder: Path, x: Tensor, side: int) -> tuple[transformers.CLIPModel, tuple[Tensor, ...]]:
    """The model in float64 and the hidden states of its vision tower: each block's input, the last one's output."""
    model = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float64).eval()
    pixels = load_image_tower(folder).preprocessing.frames(x, side).double()
    out = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    return model, out.hidden_states


def joint(model: transformers.CLIPModel, tokens: Tensor, side: int) -> Tensor:
    patches = tokens[:, 1:]
    normed = model.vision_model.post_layernorm(patches)
    return (normed @ model.visual_projection.weight.T).reshape(len(tokens), side // 8, side // 8, -1)


def attention(block: torch.nn.Module, x: Tensor, kind: str) -> Tensor:
    """A block's attention from its weights alone, head by head: softmax(a b^T / sqrt(d)) v, or v itself."""
    layer = block.self_attn
    y = F.layer_norm(x, x.shape[-1:], block.layer_norm1.weight, block.layer_norm1.bias, block.layer_norm1.eps)
    q, k, v = (y @ p.weight.T + p.bias for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    width = q.shape[-1] // layer.num_heads
    heads = []
    for h in range(layer.num_heads):
        part = slice(h * width, (h + 1) * width)
        a, b = (q, k) if kind == "qk" else (v, v)
        weights = ((a[..., part] @ b[..., part].transpose(1, 2)) / width**0.5).softmax(dim=-1)
        heads.append(v[..., part] if kind == "value" else weights @ v[..., part])
    return torch.cat(heads, dim=-1) @ layer.out_proj.weight.T + layer.out_proj.bias


def mlp(block: torch.nn.Module, x: Tensor) -> Tensor:
    return block.mlp(block.layer_norm2(x))


@pytest.mark.parametrize("side", [48, 80])
@torch.no_grad()
def test_clip_scorers_against_their_definitions(clip_source: Path, frames: Frames, side: int) -> None:
    x = frames(2, 3, 48, 48)
    tower = load_image_tower(clip_source)
    model, states = clip_last_tokens(clip_source, x, side)
    blocks = model.vision_model.encoder.layers
    assert len(blocks) == 4 and len(states) == 5

    after = states[3] + attention(blocks[3], states[3], "qk")
    torch.testing.assert_close(after + mlp(blocks[3], after), states[4])  # `attention` is the model's own

    value = states[3] + attention(blocks[3], states[3], "value")
    expected = {
        "raw": states[4],
        "value": value + mlp(blocks[3], value),
        # the last half of four blocks: attention among values is added up, the blocks' own path goes on beside it
        "vv": states[2] + attention(blocks[2], states[2], "vv") + attention(blocks[3], states[3], "vv"),
    }
    for scorer, tokens in expected.items():
        features = tower.patch_tokens(x, scorer, side)
        assert features.shape == (2, side // 8, side // 8, 24) and features.dtype == torch.float32
        torch.testing.assert_close(features.double(), joint(model, tokens, side), rtol=1e-4, atol=1e-4)
    values = [joint(model, tokens, side) for tokens in expected.values()]
    assert all((a - b).abs().mean() > 0.1 for a, b in [values[:2], values[1:], values[::2]])


@torch.no_grad()
def test_the_class_token_projects_to_the_pictures_embedding(clip_source: Path, frames: Frames) -> None:
    """What `raw` does to patch tokens is what the model does to its class token."""
    x = frames(2, 3, 48, 48)
    model, states = clip_last_tokens(clip_source, x, 48)
    projected = model.visual_projection(model.vision_model.post_layernorm(states[-1][:, 0]))
    embedded = load_image_tower(clip_source).embed(x)
    torch.testing.assert_close(embedded.double(), F.normalize(projected, dim=-1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_siglip_scorers_against_their_definitions(siglip_source: Path, frames: Frames) -> None:
    x = frames(2, 3, 48, 48)
    tower = load_image_tower(siglip_source)
    model = transformers.SiglipVisionModel.from_pretrained(siglip_source, dtype=torch.float64).eval()
    pixels = tower.preprocessing.frames(x, 48).double()
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    blocks = model.encoder.layers
    value = states[2] + attention(blocks[2], states[2], "value")
    expected = {
        "raw": states[3],
        "value": value + mlp(blocks[2], value),
        "vv": states[2] + attention(blocks[2], states[2], "vv"),  # the last of three
    }
    for scorer, tokens in expected.items():
        normed = model.post_layernorm(tokens)
        alone = torch.stack([model.head(normed[:, place : place + 1]) for place in range(36)], dim=1)
        features = tower.patch_tokens(x, scorer)
        torch.testing.assert_close(features.double().flatten(1, 2), alone, rtol=1e-4, atol=1e-4)


def test_bfloat16_towers_answer_in_float32(clip_source: Path, frames: Frames) -> None:
    x = frames(1, 3, 48, 48)
    low = load_image_tower(clip_source, dtype=torch.bfloat16).patch_tokens(x, "value")
    assert low.dtype == torch.float32
    full = load_image_tower(clip_source).patch_tokens(x, "value")
    assert F.cosine_similarity(low.flatten(), full.flatten(), dim=0) > 0.99


@pytest.mark.slow
def test_a_compiled_tower_answers_the_same(clip_source: Path, frames: Frames) -> None:
    x = frames(2, 3, 48, 48)
    plain, compiled = load_image_tower(clip_source), load_image_tower(clip_source, compiled=True)
    torch.testing.assert_close(compiled.patch_tokens(x, "value"), plain.patch_tokens(x, "value"), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled.attention(x), plain.attention(x), rtol=1e-4, atol=1e-5)


def test_the_tower_is_frozen(clip_source: Path, frames: Frames) -> None:
    features = load_image_tower(clip_source).patch_tokens(frames(1, 3, 48, 48), "raw")
    assert not features.requires_grad and torch.is_grad_enabled()


@pytest.mark.parametrize("family", ["clip_source", "siglip_source"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_a_tower_is_one_graph(family: str, scorer: str, frames: Frames, request: pytest.FixtureRequest) -> None:
    tower = load_image_tower(request.getfixturevalue(family))
    pixels = tower.preprocessing.frames(frames(2, 3, 48, 48), 48)
    for function, inputs in ((tower._joint_tokens, (pixels, scorer)), (tower._pooling_attention, (pixels,))):
        whole = torch.compile(function, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(*inputs), function(*inputs))
