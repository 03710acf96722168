"""Heads that start as shifts look where they are said to look."""

from __future__ import annotations

import pytest
import torch

from tgm_scale.models.local_start import neighbours, start_locally
from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD, channel_last
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import SIZES


@pytest.mark.parametrize("block", [0, 1])
def test_every_head_looks_at_its_neighbour(block: int) -> None:
    model = MaskedVideoAutoencoder(SIZES["tiny"], 8, 64)
    start_locally(model)
    attention = model.encoder.blocks[block].attn
    patches_BNP = model._patchify(torch.randint(0, 256, (2, 3, 8, 64, 64), dtype=torch.uint8))
    x = model.encoder.patch_embed(patches_BNP)
    x_BND = model.encoder.blocks[block].norm1(model.encoder.positions(x, None, dtype=torch.float32))
    q, k, _ = (attention.qkv.weight @ x_BND.transpose(1, 2)).unflatten(1, (3, 4, -1)).unbind(1)
    score_BHNN = (q.transpose(-1, -2) @ k)[..., 80:176, :]  # tokens that have all their neighbours
    here_N = torch.arange(80, 176)
    for head in range(4):
        offset = neighbours(model.grid)[(4 * block + head) % 6]
        far_BN = score_BHNN[:, head].argmax(-1) - (here_N + offset)
        assert (far_BN.abs() <= 1).float().mean() > 0.9, (block, head, offset)


def test_the_same_seed_starts_alike_and_values_stay_of_the_usual_size() -> None:
    usual, local, again = (MaskedVideoAutoencoder(SIZES["tiny"], 8, 64, seed=3) for _ in range(3))
    start_locally(local)
    start_locally(again)
    own, same, other = local.state_dict(), again.state_dict(), usual.state_dict()
    assert all(torch.equal(own[name], same[name]) for name in own)
    changed = {name for name in own if not torch.equal(own[name], other[name])}
    blocks = [f"{part}.blocks.{i}" for part, depth in (("encoder", 4), ("decoder", 2)) for i in range(depth)]
    heads = {f"{block}.attn.{layer}.weight" for block in blocks for layer in ("qkv", "proj")}
    assert changed == heads | {"encoder.patch_embed.proj.weight", "encoder_to_decoder.weight", "decoder.head.weight"}


def test_attention_carries_content_on_unmixed() -> None:
    """Values, then projection: much more of a vector comes out where it was than of random matrices."""
    usual, local = (MaskedVideoAutoencoder(SIZES["tiny"], 8, 64) for _ in range(2))
    start_locally(local)
    share = []
    for model in (usual, local):
        attention = model.decoder.blocks[0].attn
        through = attention.proj.weight @ attention.qkv.weight[2 * len(attention.proj.weight) :]
        share.append((through.diagonal().mean() / through.norm() * len(through) ** 0.5).item())
    assert abs(share[0]) < 0.1 and share[1] > 0.2, share


def test_the_head_turns_an_embedded_patch_back_into_its_pixels() -> None:
    """Up to a factor, as far as the decoder's narrower width holds them: most of a smooth patch."""
    model = MaskedVideoAutoencoder(SIZES["tiny"], 8, 64)
    start_locally(model)
    coarse = torch.rand(16, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    video = torch.nn.functional.interpolate(coarse, (8, 64, 64), mode="trilinear")
    patches_BNP = model._patchify((255 * video).to(torch.uint8))
    mean, std = (torch.tensor(x).repeat_interleave(patches_BNP.shape[-1] // 3) for x in (IMAGENET_MEAN, IMAGENET_STD))
    embedded = model.encoder.patch_embed(patches_BNP) - model.encoder.patch_embed.proj.bias
    pixels_BNP = (model.encoder_to_decoder(embedded) @ model.decoder.head.weight.T).detach()
    wanted_BNP = channel_last((patches_BNP / 255 - mean) / std)
    both = torch.stack([pixels_BNP.flatten(), wanted_BNP.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.85  # 0.91 here; 0.4 for the pseudo-inverse, which knows no smoothness
