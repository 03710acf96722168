"""Reconstructions: visible patches as they are, and nothing of the hidden pixels gets into the picture."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tgm_scale.assembly.joint_module import NormaliseBy
from tgm_scale.contracts import Grid, Mask
from tgm_scale.masking.recipes import build_masker
from tgm_scale.models.patches import gather_tokens, patchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions, ModelSize
from tgm_scale.report.reconstruct import DROPPED, nearby_statistics, reconstruct, seen_statistics

SIZE = ModelSize(24, 1, 2, 48, 16, 1, 2, 32, patch=8)
GRID = Grid.of(frames=4, size=32, tubelet=2, patch=8)


def clip(seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (2, 3, 4, 32, 32), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def mask(decode_ratio: float = 1.0) -> Mask:
    return build_masker("random", GRID, 0.6, decode_ratio=decode_ratio)(torch.tensor([3, 4]))


@pytest.fixture(scope="module", params=["self", "cross"])
def model(request: pytest.FixtureRequest) -> MaskedVideoAutoencoder:
    size = replace(SIZE, decoder_attention=request.param)
    return MaskedVideoAutoencoder(size, frames=4, image_size=32, options=ModelOptions("sdpa"), seed=1)


def hidden_pixels(mask: Mask) -> torch.Tensor:
    """bool [B, 3, T, H, W]"""
    token = torch.ones(2, GRID.tokens, dtype=torch.bool).scatter_(1, mask.visible, False)
    token = token.view(2, 1, GRID.slots, 1, GRID.rows, 1, GRID.columns, 1)
    return token.expand(2, 3, GRID.slots, 2, GRID.rows, 8, GRID.columns, 8).reshape(2, 3, 4, 32, 32)


@pytest.mark.parametrize("normalise_by", ["patch", "clip"])
def test_hidden_pixels_play_no_part(model: MaskedVideoAutoencoder, normalise_by: NormaliseBy) -> None:
    video, other = clip(), clip(seed=9)
    swapped = torch.where(hidden_pixels(mask()), other, video)
    assert not torch.equal(swapped, video)
    completed = reconstruct(model, video, mask(), normalise_by)
    assert torch.equal(completed, reconstruct(model, swapped, mask(), normalise_by))


def test_visible_patches_are_as_they_were(model: MaskedVideoAutoencoder) -> None:
    video = clip()
    shown = ~hidden_pixels(mask())
    assert torch.equal(reconstruct(model, video, mask())[shown], video[shown])


def test_what_is_neither_seen_nor_predicted_is_grey(model: MaskedVideoAutoencoder) -> None:
    half = mask(decode_ratio=0.5)
    dropped = patchify(hidden_pixels(half), 2, 8).all(-1)
    dropped.scatter_(1, half.target, False)
    picture = patchify(reconstruct(model, clip(), half), 2, 8)
    assert dropped.any() and (picture[dropped] == round(DROPPED)).all()


def test_statistics_are_the_weighted_means_of_their_definition() -> None:
    chosen = mask()
    patches = patchify(clip(), 2, 8)
    mean, std = nearby_statistics(patches, chosen.visible, chosen.target, GRID)
    place = [(s, r, c) for s in range(GRID.slots) for r in range(GRID.rows) for c in range(GRID.columns)]
    b, m, channel = 1, 5, 2
    target = place[int(chosen.target[b, m])]
    weights, means, stds = [], [], []
    for v, index in enumerate(chosen.visible[b].tolist()):
        weights.append(math.exp(-sum((x - y) ** 2 for x, y in zip(place[index], target)) / 2))
        values = gather_tokens(patches, chosen.visible)[b, v].double().view(3, -1)[channel]
        means.append(values.mean().item())
        stds.append(values.std().item())
    expected = [sum(w * x for w, x in zip(weights, values)) / sum(weights) for values in (means, stds)]
    assert mean[b, m, channel, 0].item() == pytest.approx(expected[0], rel=1e-5)
    assert std[b, m, channel, 0].item() == pytest.approx(expected[1], rel=1e-5)


def test_statistics_of_the_clip_are_those_of_all_that_is_seen() -> None:
    chosen = mask()
    patches = patchify(clip(), 2, 8)
    mean, std = seen_statistics(patches, chosen.visible)
    seen = gather_tokens(patches, chosen.visible)[1].double().view(-1, 3, 128)[:, 2]
    assert mean[1, 0, 2, 0].item() == pytest.approx(seen.mean().item(), rel=1e-5)
    assert std[1, 0, 2, 0].item() == pytest.approx(seen.std().item(), rel=1e-5)


@pytest.mark.parametrize("normalise_by", ["patch", "clip"])
def test_whatever_is_predicted_a_plain_clip_is_completed(
    model: MaskedVideoAutoencoder, normalise_by: NormaliseBy
) -> None:
    """In a clip of one colour every contrast is 0, so whatever is predicted the colour comes out."""
    video = torch.tensor([200, 30, 90], dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(2, 3, 4, 32, 32)
    assert torch.equal(reconstruct(model, video, mask(), normalise_by), video)
