"""Relevance: its sign and place on a tower made by hand, its way to the token grid, the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.guidance.image import SCORERS, ImageTower, clip_trunk
from tgm_scale.guidance.maps import Relevance, TokenFeatures
from tgm_scale.guidance.preprocessing import Preprocessing
from tgm_scale.guidance.towers import load_image_tower

RED, GREEN = (200, 30, 30), (30, 160, 60)


@pytest.fixture(scope="module")
def colour_tower() -> ImageTower:
    """A CLIP whose patch features are the patch's mean colour, by weights set by hand: its blocks add nothing."""
    model = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=3,
        )
    ).eval()
    vision = model.vision_model
    with torch.no_grad():
        for parameter in vision.encoder.parameters():
            parameter.zero_()
        vision.embeddings.position_embedding.weight.zero_()
        weight = vision.embeddings.patch_embedding.weight.zero_()
        for channel in range(3):  # colour and its opposite, so that the norms' mean is zero
            weight[channel, channel], weight[channel + 3, channel] = 1 / 64, -1 / 64
        model.visual_projection.weight.zero_()[range(3), range(3)] = 1.0
    model.requires_grad_(False)
    preprocessing = Preprocessing(32, True, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return ImageTower(clip_trunk(model), preprocessing, torch.device("cpu"))


def caption(colour: tuple[int, int, int]) -> Tensor:
    return F.normalize(torch.tensor([colour]) / 127.5 - 1, dim=-1)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("resolution", [None, 64])
def test_the_patch_that_the_caption_names_scores_highest_in_its_slot_and_place(
    colour_tower: ImageTower, scorer: str, resolution: int | None
) -> None:
    grid = Grid(3, 4, 4)
    video = torch.tensor(GREEN, dtype=torch.uint8).view(1, 3, 1, 1, 1).repeat(1, 1, 6, 64, 64)
    places = [(0, 1, 3), (1, 2, 0), (2, 3, 3)]
    for slot, row, column in places:
        token = video[0, :, 2 * slot :][:, :2, 16 * row :][:, :, :16, 16 * column :][..., :16]
        token[:] = torch.tensor(RED, dtype=torch.uint8).view(3, 1, 1, 1)
    relevance = Relevance(colour_tower, scorer, resolution=resolution)
    red, green = (relevance(video, caption(colour), grid)[0] for colour in (RED, GREEN))
    assert red.shape == (3, 4, 4) and red.dtype == torch.float32
    for slot, row, column in places:
        assert int(red[slot].argmax()) == int(green[slot].argmin()) == row * 4 + column
        assert red[slot, row, column] > 0.9 > 0 > red[slot].min()


def interpolated(x: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement of [h, w] to [size, size], pixel by pixel: centres at half-integers, edges repeated."""
    out = np.empty((size, size))
    for r in range(size):
        for c in range(size):
            y, z = ((i + 0.5) * n / size - 0.5 for i, n in ((r, x.shape[0]), (c, x.shape[1])))
            y, z = (min(max(v, 0), n - 1) for v, n in ((y, x.shape[0]), (z, x.shape[1])))
            top, left = int(y), int(z)
            low, right = min(top + 1, x.shape[0] - 1), min(left + 1, x.shape[1] - 1)
            a, b = y - top, z - left
            out[r, c] = (1 - a) * ((1 - b) * x[top, left] + b * x[top, right]) + a * (
                (1 - b) * x[low, left] + b * x[low, right]
            )
    return out


@pytest.mark.parametrize("frames_per_tubelet", ["all", "one"])
def test_cosines_are_averaged_over_the_tubelet_and_brought_to_the_grid(
    clip_source: Path, frames: Callable[..., Tensor], frames_per_tubelet: str
) -> None:
    tower = load_image_tower(clip_source)
    video, text = frames(2, 3, 6, 48, 48), F.normalize(torch.randn(2, 24), dim=-1)
    actual = Relevance(tower, "value", frames_per_tubelet)(video, text, Grid(2, 9, 9))
    for clip in range(2):
        features = tower.patch_tokens(video[clip].transpose(0, 1), "value").double().numpy()
        cosine = (features @ text[clip].double().numpy()) / np.linalg.norm(features, axis=-1)
        for slot in range(2):
            chosen = range(3 * slot, 3 * slot + 3) if frames_per_tubelet == "all" else [3 * slot + 1]
            expected = np.mean([interpolated(cosine[frame], 9) for frame in chosen], axis=0)
            np.testing.assert_allclose(actual[clip, slot].numpy(), expected, atol=2e-6)
    assert actual.abs().max() <= 1


def test_a_finer_tower_is_averaged_and_not_sampled(clip_source: Path, frames: Callable[..., Tensor]) -> None:
    """6 x 6 patches on 2 x 2 tokens: every patch has a say."""
    tower = load_image_tower(clip_source)
    video, text = frames(1, 3, 1, 48, 48), F.normalize(torch.randn(1, 24), dim=-1)
    fine = Relevance(tower)(video, text, Grid(1, 6, 6))
    coarse = Relevance(tower)(video, text, Grid(1, 2, 2))
    expected = [[fine[0, 0, r : r + 3, c : c + 3].mean() for c in (0, 3)] for r in (0, 3)]
    torch.testing.assert_close(coarse[0, 0], torch.tensor(expected))
    between = Relevance(tower)(video, text, Grid(1, 4, 4))
    assert abs(between.mean() - fine.mean()) < 0.05


@pytest.mark.parametrize("family", ["clip_source", "siglip_source"])
def test_a_clip_has_the_same_bits_in_any_company(
    family: str, request: pytest.FixtureRequest, frames: Callable[..., Tensor]
) -> None:
    tower = load_image_tower(request.getfixturevalue(family))
    relevance, grid = Relevance(tower), Grid(2, 5, 5)
    video, text = frames(5, 3, 4, 40, 40), F.normalize(torch.randn(5, tower.width), dim=-1)
    whole = relevance(video, text, grid)
    for chosen in ([3], [4, 0], [2, 3, 4, 1, 0]):
        assert torch.equal(relevance(video[chosen], text[chosen], grid), whole[chosen])
    stored_colour_last = video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    assert torch.equal(relevance(stored_colour_last, text, grid), whole)
    several = relevance.of_captions(video, torch.stack([text, text.roll(1, 0)], dim=1), grid)
    assert several.shape == (5, 2, 2, 5, 5)
    assert torch.equal(several[:, 0], whole)
    assert torch.equal(several[:, 1], relevance(video, text.roll(1, 0), grid))


def test_clips_of_a_pass_and_the_filling_of_the_last_do_not_change_the_maps(
    clip_source: Path, frames: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    relevance = Relevance(load_image_tower(clip_source))
    video, text = frames(5, 3, 4, 40, 40), F.normalize(torch.randn(5, 24), dim=-1)
    one = relevance(video, text, Grid(2, 5, 5))
    monkeypatch.setattr("tgm_scale.guidance.maps.clips_per_pass", lambda device, tokens: 3)
    three = relevance(video, text, Grid(2, 5, 5))
    assert not torch.equal(one, torch.zeros_like(one))
    torch.testing.assert_close(one, three, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_too_a_clip_has_the_same_bits_in_any_company(
    clip_source: Path, frames: Callable[..., Tensor]
) -> None:
    relevance = Relevance(load_image_tower(clip_source, "cuda", torch.bfloat16))
    video, text = frames(7, 3, 4, 48, 48).cuda(), F.normalize(torch.randn(7, 24), dim=-1).cuda()
    whole = relevance(video, text, Grid(2, 6, 6))
    for chosen in ([3], [6, 0, 5]):
        assert torch.equal(relevance(video[chosen], text[chosen], Grid(2, 6, 6)), whole[chosen])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scorer": "val"}, "guidance.scorer=val: wanted one of raw, value, vv"),
        ({"frames_per_tubelet": "two"}, "guidance.frames_per_tubelet=two: wanted 'all' or 'one'"),
        ({"resolution": 50}, "guidance.resolution=50 .* patch of 8 pixels: choose 48 or 56"),
        ({"resolution": 3}, "guidance.resolution=3 .* patch of 8 pixels: choose 8$"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(clip_source: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relevance(load_image_tower(clip_source), **arguments)


@pytest.mark.parametrize("size", [32, 48])
def test_relevance_and_features_of_one_pass_are_those_of_two(colour_tower: ImageTower, size: int) -> None:
    """To the bit, also where the tower's grid does not divide into the clip's; and a token's feature is its own."""
    video = torch.randint(256, (2, 3, 4, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    video[:, :, 2:, :8, 8:16] = torch.tensor(RED, dtype=torch.uint8)[:, None, None, None]
    grid, captions = Grid(2, size // 8, size // 8), torch.stack([caption(RED), caption(GREEN)], dim=1)
    captions = captions.expand(2, -1, -1)
    relevance = Relevance(colour_tower, "raw")
    both, features = relevance.with_features(video, captions, grid)
    assert torch.equal(both, relevance.of_captions(video, captions, grid))
    assert torch.equal(features, TokenFeatures(colour_tower, "raw")(video, grid)) and features.shape[2] == 3
    if size == 32:
        assert F.cosine_similarity(features[:, grid.per_slot + 1], caption(RED)).min() > 0.99
        assert F.cosine_similarity(features[:, 1], caption(RED)).max() < 0.99
