"""Heads that start as shifts look where they are said to look."""

from __future__ import annotations

import pytest
import torch

from tgm_scale.models.local_start import neighbours, start_locally
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
    heads = {f"{part}.blocks.{i}.attn.qkv.weight" for part, n in (("encoder", 4), ("decoder", 2)) for i in range(n)}
    assert changed == heads | {"encoder.patch_embed.proj.weight", "encoder_to_decoder.weight", "decoder.head.weight"}
