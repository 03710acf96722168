"""Sizes, names and first values of the weights."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tgm_scale.models.pretraining import MaskedVideoAutoencoder, macs_per_clip
from tgm_scale.models.vit import SIZES, ModelOptions, initial_value, initialise
from tgm_scale.runtime import seeding

KEYS = Path(__file__).parent / "keys"


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every saved tensor, without allocating one."""
    with torch.device("meta"):
        model = MaskedVideoAutoencoder(SIZES[size], 16, 224, embedding_width=512)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def compact(table: dict[str, tuple[int, ...]]) -> str:
    """One line a name and shape, blocks folded into one with their number: "encoder.blocks.*.norm1.bias 768 (12)"."""
    folded = Counter(
        (re.sub(r"blocks\.\d+", "blocks.*", name), "x".join(map(str, shape))) for name, shape in table.items()
    )
    return "".join(f"{name} {shape} ({count})\n" for (name, shape), count in folded.items())


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_of_the_weights_are_frozen(size: str) -> None:
    """Names are an interface: checkpoints hold them. A new size or a deliberate change writes the file anew."""
    assert compact(shapes(size)) == (KEYS / f"{size}.txt").read_text()


def test_base_has_the_tensors_of_a_published_videomae_file() -> None:
    table = {name: shape for name, shape in shapes("B").items() if not name.startswith("projection.")}
    assert len(table) == 218
    assert sum(torch.Size(shape).numel() for shape in table.values()) == 94_210_944
    assert table["encoder.patch_embed.proj.weight"] == (768, 3, 2, 16, 16)
    assert table["encoder.blocks.11.attn.qkv.weight"] == (2304, 768)
    assert table["encoder.blocks.0.attn.q_bias"] == table["encoder.blocks.0.attn.v_bias"] == (768,)
    assert table["encoder_to_decoder.weight"] == (384, 768)
    assert table["mask_token"] == (1, 1, 384)
    assert table["decoder.head.weight"] == (1536, 384)
    assert not [name for name in table if "pos_embed" in name or name.endswith("qkv.bias")]


@pytest.mark.parametrize(
    ("size", "visible", "targets", "published"),
    [
        ("B", 160, 1408, 35.44),  # tube 0.9
        ("B", 632, 936, 82.28),  # text-guided 0.6
        ("L", 160, 1408, 83.03),
        ("H", 160, 1408, 150.77),
        ("g", 208, 1840, 263.96),
    ],
)
def test_macs_are_the_published_ones_less_the_embedding_of_hidden_patches(
    size: str, visible: int, targets: int, published: float
) -> None:
    dimensions = SIZES[size]
    embedding_hidden = targets * dimensions.patch_values * dimensions.width
    macs = macs_per_clip(dimensions, 16, 224, visible, targets)
    assert (macs + embedding_hidden) / 1e9 == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("decoder_attention", ["self", "cross"])
def test_macs_are_what_torch_counts(decoder_attention: Any) -> None:
    size, visible, targets = replace(SIZES["tiny"], decoder_attention=decoder_attention), 40, 60
    model = MaskedVideoAutoencoder(size, 8, 64, options=ModelOptions("sdpa"))
    index = torch.arange(visible + targets)[None]
    plain_products = sdpa_kernel(SDPBackend.MATH)  # the counter does not know the CPU's fused kernel
    with FlopCounterMode(display=False) as counter, plain_products, torch.no_grad():
        model(torch.zeros(1, 3, 8, 64, 64, dtype=torch.uint8), index[:, :visible], index[:, visible:])
    assert counter.get_total_flops() == 2 * macs_per_clip(size, 8, 64, visible, targets)


def test_first_values_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    first = MaskedVideoAutoencoder(SIZES["tiny"], 8, 64, embedding_width=16, seed=5)
    torch.manual_seed(2)
    second = MaskedVideoAutoencoder(SIZES["tiny"], 16, 32, seed=5)
    other = MaskedVideoAutoencoder(SIZES["tiny"], 8, 64, seed=6)
    for name, value in second.named_parameters():
        assert torch.equal(value, first.get_parameter(name)), name
        assert torch.equal(value, initial_value(name, tuple(value.shape), 5)), name
    assert not torch.equal(first.mask_token, other.mask_token)
    assert not torch.equal(first.encoder.blocks[0].mlp.fc1.weight, first.encoder.blocks[1].mlp.fc1.weight)


def test_first_values_after_meta_are_those_of_direct_construction() -> None:
    with torch.device("meta"):
        model = MaskedVideoAutoencoder(SIZES["tiny"], 8, 64, seed=5)
    model.to_empty(device="cpu")
    initialise(model, 5)
    direct = MaskedVideoAutoencoder(SIZES["tiny"], 8, 64, seed=5)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in direct.state_dict().items())
    assert torch.equal(model.decoder_positions.value, direct.decoder_positions.value)


def test_distributions_of_first_values() -> None:
    model = MaskedVideoAutoencoder(SIZES["tiny"], 8, 64)
    for name, value in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            assert (value == 1).all(), name
        elif name.endswith("bias"):
            assert (value == 0).all(), name
        else:
            expected = nn.Parameter(torch.zeros(value.shape))
            if name == "mask_token":
                expected = nn.init.trunc_normal_(expected, std=0.02, a=-0.02, b=0.02)
            elif "patch_embed" in name or "encoder_to_decoder" in name:
                expected = nn.init.kaiming_uniform_(expected, a=5**0.5)  # torch's default for linear and convolution
            else:
                expected = nn.init.xavier_uniform_(expected)
            assert abs(value).max() <= abs(expected).max() * 1.1, name
            assert value.std().item() == pytest.approx(
                expected.std().item(), rel=0.25 if value.numel() < 100 else 0.05
            )


def test_first_values_use_the_keyed_generator() -> None:
    expected = torch.rand(4, 6, generator=seeding.generator(3, "init", "projection.weight")) * 2 - 1
    bound = (6 / (4 + 6)) ** 0.5
    torch.testing.assert_close(initial_value("projection.weight", (4, 6), 3), expected * bound)
