"""The masked autoencoder against its definition, part by part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tgm_scale.models.patches import gather_tokens, patchify, sine_cosine_table, unpatchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder, Output
from tgm_scale.models.vit import SIZES, ModelOptions
from tgm_scale.objectives.reconstruction import reconstruction_error

SMALL = replace(SIZES["tiny"], width=48, depth=2, heads=3, mlp=96, decoder_width=24, decoder_mlp=48)
FRAMES, SIDE, TOKENS = 4, 24, 2 * 3 * 3


def build(**options: Any) -> MaskedVideoAutoencoder:
    model = MaskedVideoAutoencoder(SMALL, FRAMES, SIDE, embedding_width=10, options=ModelOptions("sdpa", **options))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # biases and norms away from 0 and 1, so that a test can see them
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def video() -> Tensor:
    return torch.randint(
        0, 256, (2, 3, FRAMES, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture
def order() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(2)])


def split(order: Tensor, visible: int, targets: int) -> tuple[Tensor, Tensor]:
    return order[:, :visible].sort(1).values, order[:, visible : visible + targets].sort(1).values


@torch.no_grad()
def test_forward_by_its_definition_for_a_part_of_the_hidden_tokens(video: Tensor, order: Tensor) -> None:
    model = build()
    visible, target = split(order, 5, 9)  # 4 tokens are dropped
    out = model(video, visible, target)

    patches = patchify(video, 2, 8)
    everything = model.encoder.patch_embed(patches) + sine_cosine_table(TOKENS, 48)
    x = gather_tokens(everything, visible)
    for block in model.encoder.blocks:
        x = block(x)
    tokens = model.encoder.norm(x)
    torch.testing.assert_close(out.tokens_BVD, tokens, rtol=1e-5, atol=1e-5)

    table = sine_cosine_table(TOKENS, 24)
    seen = tokens @ model.encoder_to_decoder.weight.T + table[visible]
    x = torch.cat([seen, model.mask_token + table[target]], dim=1)
    for block in model.decoder.blocks:
        x = block(x)
    prediction = model.decoder.head(model.decoder.norm(x[:, 5:]))
    torch.testing.assert_close(out.prediction_BMP, prediction, rtol=1e-5, atol=1e-5)
    assert torch.equal(out.target_BMP, gather_tokens(patches, target))
    torch.testing.assert_close(out.embedding_BE, tokens.mean(1) @ model.projection.weight.T, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_is_dropped_or_hidden_does_not_reach_the_visible_tokens(video: Tensor, order: Tensor) -> None:
    model = build()
    visible, target = split(order, 5, 9)
    changed = torch.randint_like(video, 256)
    keep = torch.zeros(2, TOKENS, 1, dtype=torch.bool).scatter(1, visible[..., None], True)
    mixed = unpatchify(torch.where(keep, patchify(video, 2, 8), patchify(changed, 2, 8)), model.grid, 2, 8)
    a, b = model(video, visible, target), model(mixed, visible, target)
    assert torch.equal(a.prediction_BMP, b.prediction_BMP) and torch.equal(a.embedding_BE, b.embedding_BE)
    assert not torch.equal(a.target_BMP, b.target_BMP)


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_neighbours(video: Tensor, order: Tensor) -> None:
    model = build()
    visible, target = split(order, 5, 13)
    both, alone = model(video, visible, target), model(video[1:], visible[1:], target[1:])
    for x, y in zip(both, alone, strict=True):
        torch.testing.assert_close(x[1:], y, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_targets_only_encoder_and_projection_run(video: Tensor, order: Tensor) -> None:
    model = build()
    visible, target = split(order, 5, 13)
    full, first_pass = model(video, visible, target), model(video, visible)
    assert first_pass.prediction_BMP is None and first_pass.target_BMP is None
    assert torch.equal(full.embedding_BE, first_pass.embedding_BE)
    assert MaskedVideoAutoencoder(SMALL, FRAMES, SIDE)(video, visible).embedding_BE is None


@torch.no_grad()
def test_encode_sees_the_whole_clip_in_order(video: Tensor) -> None:
    model = build()
    everything = torch.arange(TOKENS).expand(2, -1)
    assert torch.equal(model.encode(video), model(video, everything).tokens_BVD)
    assert torch.equal(model.encode(video, everything[:, 3:7]), model(video, everything[:, 3:7]).tokens_BVD)


def gradients(model: MaskedVideoAutoencoder, video: Tensor, order: Tensor) -> tuple[Output, dict[str, Tensor]]:
    visible, target = split(order, 5, 13)
    out = model(video, visible, target)
    loss = reconstruction_error(out.prediction_BMP, out.target_BMP).mean() + out.embedding_BE.square().mean()
    loss.backward()
    return out, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_activation_checkpointing_changes_no_bit(video: Tensor, order: Tensor) -> None:
    _, plain = gradients(build(), video, order)
    _, checkpointed = gradients(build(activation_checkpointing=True), video, order)
    assert all(value is not None and torch.equal(checkpointed[name], value) for name, value in plain.items())


@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bf16_runs_near_float32_and_keeps_float32_where_it_matters(video: Tensor, order: Tensor, way: str) -> None:
    exact, exact_gradients = gradients(build(), video, order)
    if way == "weights":
        out, got = gradients(build().bfloat16(), video, order)
        assert out.tokens_BVD.dtype == torch.bfloat16
    else:
        with torch.autocast("cpu", torch.bfloat16):
            out, got = gradients(build(), video, order)
    assert out.prediction_BMP.dtype == out.embedding_BE.dtype == torch.float32
    for x, y in ((out.prediction_BMP, exact.prediction_BMP), (out.embedding_BE, exact.embedding_BE)):
        assert (x - y).norm() < 0.02 * y.norm()
    for name, value in exact_gradients.items():
        assert (got[name].float() - value).norm() < 0.1 * value.norm() + 1e-6, name


def test_a_clip_of_another_shape_is_refused(video: Tensor) -> None:
    with pytest.raises(ValueError, match=r"built for clips of .*\[3, 4, 24, 24\].*\[3, 2, 24, 24\]"):
        build().encode(video[:, :, :2])
    with pytest.raises(ValueError, match="multiple of the model's patch"):
        MaskedVideoAutoencoder(SMALL, FRAMES, 25)
