"""The decoder with cross-attention against its definition: targets see the visible tokens and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tgm_scale.models.local_start import neighbours, start_locally
from tgm_scale.models.patches import gather_tokens, patchify, sine_cosine_table, unpatchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder, Output, macs_per_clip
from tgm_scale.models.vit import SIZES, ModelOptions
from tgm_scale.objectives.reconstruction import reconstruction_error

SMALL = replace(
    SIZES["tiny"],
    width=48,
    depth=2,
    heads=3,
    mlp=96,
    decoder_width=24,
    decoder_mlp=48,
    decoder_heads=2,
    decoder_attention="cross",
)
FRAMES, SIDE, TOKENS = 4, 24, 2 * 3 * 3


def build(decoder_attention: Any = "cross", **options: Any) -> MaskedVideoAutoencoder:
    size = replace(SMALL, decoder_attention=decoder_attention)
    model = MaskedVideoAutoencoder(size, FRAMES, SIDE, embedding_width=10, options=ModelOptions("sdpa", **options))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # biases and norms away from 0 and 1, so that a test can see them
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def video() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, FRAMES, SIDE, SIDE), dtype=torch.uint8, generator=generator)


@pytest.fixture
def order() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(2)])


def split(order: Tensor, visible: int, targets: int) -> tuple[Tensor, Tensor]:
    return order[:, :visible].sort(1).values, order[:, visible : visible + targets].sort(1).values


def by_definition(model: MaskedVideoAutoencoder, tokens: Tensor, visible: Tensor, target: Tensor) -> Tensor:
    """One target after another, one head after another: what the decoder is said to compute."""
    table, size, decoder = sine_cosine_table(TOKENS, 24), model.size, model.decoder
    context = decoder.context_norm(tokens @ model.encoder_to_decoder.weight.T + table[visible])
    clips = []
    for clip in range(len(target)):
        predictions = []
        for place in target[clip]:
            x = model.mask_token[0, 0] + table[place]
            for block in decoder.blocks:
                attention = block.attn
                query = attention.q(block.norm1(x)).chunk(size.decoder_heads)
                key = (context[clip] @ attention.k.weight.T).chunk(size.decoder_heads, -1)
                value = attention.v(context[clip]).chunk(size.decoder_heads, -1)
                seen = [(k @ q / len(q) ** 0.5).softmax(0) @ v for q, k, v in zip(query, key, value, strict=True)]
                x = x + attention.proj(torch.cat(seen))
                x = x + block.mlp(block.norm2(x))
            predictions.append(decoder.head(decoder.norm(x)))
        clips.append(torch.stack(predictions))
    return torch.stack(clips)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_each_kernel_gives_the_definition_in_float32(video: Tensor, order: Tensor, kernel: SDPBackend) -> None:
    model = build()
    visible, target = split(order, 5, 9)
    with sdpa_kernel(kernel):
        out = model(video, visible, target)
    assert torch.equal(out.target_BMP, gather_tokens(patchify(video, 2, 8), target))
    expected = by_definition(model, out.tokens_BVD, visible, target)
    torch.testing.assert_close(out.prediction_BMP, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("decoder_attention", ["cross", "self"])
def test_a_prediction_does_not_depend_on_what_else_is_decoded(
    video: Tensor, order: Tensor, decoder_attention: str
) -> None:
    """A part of the targets, as `decode_ratio` leaves it; self-attention mixes targets, so that the test can fail."""
    model = build(decoder_attention).double()
    visible, target = split(order, 5, 13)
    part = torch.tensor([[0, 3, 7, 12], [1, 2, 8, 11]])
    tokens = model(video, visible).tokens_BVD
    whole, fewer = (model.decode(tokens, visible, chosen) for chosen in (target, target.gather(1, part)))
    apart = (gather_tokens(whole, part) - fewer).abs().max()
    if decoder_attention == "cross":
        assert apart < 1e-6  # predictions are float32, whatever the model is
    else:
        assert apart > 1e-2


def test_only_targets_own_pixels_enter_the_loss(video: Tensor, order: Tensor) -> None:
    """With the encoder's output held fast, visible and dropped pixels change no bit of the loss; a target's do."""
    model = build()
    visible, target = split(order, 5, 9)
    tokens = model(video, visible).tokens_BVD
    model.encoder.register_forward_hook(lambda *_: tokens)
    other = torch.randint_like(video, 256)

    def loss(changed: Tensor) -> Tensor:
        """Of the clip with the pixels of these tokens exchanged."""
        picked = torch.zeros(2, TOKENS, 1, dtype=torch.bool).scatter(1, changed[..., None], True)
        mixed = torch.where(picked, patchify(other, 2, 8), patchify(video, 2, 8))
        out = model(unpatchify(mixed, model.grid, 2, 8), visible, target)
        return reconstruction_error(out.prediction_BMP, out.target_BMP)

    plain = loss(visible[:, :0])
    assert torch.equal(loss(visible), plain) and torch.equal(loss(order[:, 14:]), plain)
    assert (loss(target[:, :1]) != plain).all()


def gradients(model: MaskedVideoAutoencoder, video: Tensor, order: Tensor) -> tuple[Output, dict[str, Tensor]]:
    out = model(video, *split(order, 5, 13))
    loss = reconstruction_error(out.prediction_BMP, out.target_BMP).mean() + out.embedding_BE.square().mean()
    loss.backward()
    return out, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_activation_checkpointing_changes_no_bit(video: Tensor, order: Tensor) -> None:
    _, plain = gradients(build(), video, order)
    _, checkpointed = gradients(build(activation_checkpointing=True), video, order)
    assert all(value is not None and torch.equal(checkpointed[name], value) for name, value in plain.items())


@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bf16_runs_near_float32(video: Tensor, order: Tensor, way: str) -> None:
    exact, exact_gradients = gradients(build(), video, order)
    if way == "weights":
        out, got = gradients(build().bfloat16(), video, order)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            out, got = gradients(build(), video, order)
    assert out.prediction_BMP.dtype == torch.float32
    assert (out.prediction_BMP - exact.prediction_BMP).norm() < 0.02 * exact.prediction_BMP.norm()
    for name, value in exact_gradients.items():
        assert (got[name].float() - value).norm() < 0.1 * value.norm() + 1e-6, name


def test_names_tell_the_two_decoders_apart() -> None:
    """Names are an interface: checkpoints hold them."""
    cross, usual = (build(kind).state_dict() for kind in ("cross", "self"))
    new = cross.keys() - usual.keys()
    assert {name for name in new if "blocks.1" not in name} == {
        *("decoder.context_norm.weight", "decoder.context_norm.bias"),
        *(f"decoder.blocks.0.attn.{x}" for x in ("q.weight", "q.bias", "k.weight", "v.weight", "v.bias")),
    }
    assert usual.keys() - cross.keys() == {
        f"decoder.blocks.{i}.attn.{name}" for i in range(2) for name in ("qkv.weight", "q_bias", "v_bias")
    }


def test_multiply_accumulates_by_hand() -> None:
    """ViT-B at a mask of 0.6 with half of the hidden tokens decoded: 632 visible, 468 targets, 16 x 224 x 224."""
    encoder = 632 * 1536 * 768  # embedding
    encoder += 12 * 632 * (4 * 768**2 + 2 * 768 * 3072)  # q, k, v and projection; MLP
    encoder += 12 * 2 * 632**2 * 768  # scores and their sums
    decoder = 632 * 768 * 384 + 468 * 384 * 1536  # into the decoder's width; the head
    decoder += 4 * (2 * 468 * 384**2 + 2 * 632 * 384**2)  # q and projection of targets, k and v of visible ones
    decoder += 4 * (2 * 468 * 632 * 384 + 2 * 468 * 384 * 1536)  # scores and their sums; MLP
    size = replace(SIZES["B"], decoder_attention="cross")
    assert macs_per_clip(size, 16, 224, 632, 468) == encoder + decoder
    assert macs_per_clip(size, 16, 224, 632, 0) == encoder


@pytest.mark.parametrize("block", [0, 1])
@torch.no_grad()
def test_heads_of_a_local_start_look_at_their_neighbours_among_the_visible(block: int) -> None:
    size = replace(SIZES["tiny"], decoder_attention="cross")
    model = MaskedVideoAutoencoder(size, 8, 64)
    start_locally(model)
    attention = model.decoder.blocks[block].attn
    place_ND = sine_cosine_table(model.grid.tokens, size.decoder_width)
    query = attention.q(model.decoder.blocks[block].norm1(model.mask_token[0] + place_ND)).chunk(2, -1)
    key = attention.k(model.decoder.context_norm(place_ND)).chunk(2, -1)
    here_N = torch.arange(80, 176)  # tokens that have all their neighbours
    for head in range(2):
        found_N = (query[head] @ key[head].T)[80:176].argmax(-1)
        far_N = found_N - (here_N + neighbours(model.grid)[(2 * block + head) % 6])
        assert (far_N.abs() <= 1).float().mean() > 0.9, (block, head)
