"""Attention of the pooling token, and parts: against transformers' own figures and against definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.guidance.maps import PARTS, ClassAttention, HeadAttention, Parts, _clusters
from tgm_scale.guidance.towers import load_image_tower
from tgm_scale.masking.recipes import build_masker

Frames = Callable[..., Tensor]
GRID = Grid(2, 6, 6)  # the small towers' own grid


def test_attention_is_that_of_transformers_clip(clip_source: Path, frames: Frames) -> None:
    tower, images = load_image_tower(clip_source), frames(2, 3, 48, 48)
    model = transformers.CLIPVisionModel.from_pretrained(clip_source, attn_implementation="eager")
    with torch.no_grad():
        output = model(pixel_values=tower.preprocessing.frames(images, 48), output_attentions=True)
    of_heads_NAL = output.attentions[-1][:, :, 0, 1:]
    assert torch.allclose(tower.attention(images), of_heads_NAL.mean(1).unflatten(1, (6, 6)), atol=1e-6)
    own_NhwA = tower.attention(images, of_heads=True)
    assert own_NhwA.shape[-1] == tower.trunk.heads == 4
    assert torch.allclose(own_NhwA.flatten(1, 2).transpose(1, 2), of_heads_NAL, atol=1e-6)


def test_attention_is_that_of_siglips_pooling(siglip_source: Path, frames: Frames) -> None:
    tower, images = load_image_tower(siglip_source), frames(2, 3, 48, 48)
    model = transformers.SiglipVisionModel.from_pretrained(siglip_source)
    seen = {}

    def keep(module: object, arguments: tuple, output: tuple) -> None:
        probe, tokens = arguments[:2]
        width = tokens.shape[-1] // 4
        query, key = (
            torch.nn.functional.linear(x, w, b).unflatten(-1, (4, width)).transpose(1, 2)
            for x, w, b in zip((probe, tokens), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3))
        )
        seen["attention"] = (query @ key.transpose(2, 3) / width**0.5).softmax(-1)[:, :, 0]

    attention = next(m for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention))
    attention.register_forward_hook(keep)
    with torch.no_grad():
        model(pixel_values=tower.preprocessing.frames(images, 48))
    assert torch.allclose(tower.attention(images), seen["attention"].mean(1).unflatten(1, (6, 6)), atol=1e-6)
    own_NhwA = tower.attention(images, of_heads=True)
    assert own_NhwA.shape[-1] == tower.trunk.heads == 4
    assert torch.allclose(own_NhwA.flatten(1, 2).transpose(1, 2), seen["attention"], atol=1e-6)


@pytest.mark.parametrize("kind", [ClassAttention, HeadAttention, Parts])
def test_a_clips_map_does_not_depend_on_the_batch(kind: type, clip_source: Path, frames: Frames) -> None:
    look = kind(load_image_tower(clip_source))
    clips = frames(5, 3, 4, 48, 48)
    whole = look(clips, GRID)
    assert whole.shape == ((5, 4, 2, 6, 6) if kind is HeadAttention else (5, 2, 6, 6))
    assert torch.equal(look(clips[3:], GRID), whole[3:])


def test_attention_of_a_slot_is_the_mean_over_its_frames(clip_source: Path, frames: Frames) -> None:
    tower, clips = load_image_tower(clip_source), frames(1, 3, 4, 48, 48)
    maps = ClassAttention(tower)(clips, GRID)[0]
    each = tower.attention(clips[0].transpose(0, 1))
    assert torch.allclose(maps[1], each[2:].mean(0))
    assert torch.allclose(HeadAttention(tower)(clips, GRID)[0].mean(0), maps, atol=1e-7)
    middle = ClassAttention(tower, frames_per_tubelet="one")(clips, GRID)[0]
    assert torch.allclose(middle[1], each[3])


def test_tokens_are_left_visible_in_proportion_to_their_attention() -> None:
    """Unmasked Teacher draws the visible tokens from the class attention; one of six here."""
    attention = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05, 0.0]).view(1, 1, 2, 3)
    masker = build_masker("attention", Grid(1, 2, 3), 5 / 6)
    hidden = masker.hidden(torch.arange(20_000), attention=attention.expand(20_000, -1, -1, -1))
    share = (~hidden).float().mean(0)
    assert (share - attention[0]).abs().max() < 0.015
    assert share[0, 1, 2] == 0


def test_clusters_are_the_groups_that_are_there() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(PARTS, 16, generator=generator), dim=-1)
    truth = torch.randint(0, PARTS, (200,), generator=generator)
    points = centres[truth] + 0.05 * torch.randn(200, 16, generator=generator)
    label = _clusters(torch.nn.functional.normalize(points, dim=-1)[None])[0]
    pairs = set(zip(truth.tolist(), label.tolist()))
    assert len(pairs) == PARTS and len({b for _, b in pairs}) == PARTS


def test_parts_are_numbers_that_hold_for_the_whole_clip(clip_source: Path) -> None:
    """A still picture of four colours: every slot has the same parts, and the colours are told apart."""
    picture = torch.zeros(3, 48, 48, dtype=torch.uint8)
    picture[0, :24, :24], picture[1, :24, 24:], picture[2, 24:, :24] = 255, 255, 255
    clip = picture[None, :, None].expand(1, 3, 4, 48, 48)
    label = Parts(load_image_tower(clip_source), scorer="value")(clip, GRID)[0]
    assert torch.equal(label[0], label[1])
    assert label.min() >= 0 and label.max() < PARTS
    assert len({float(label[0, row, column]) for row in (1, 4) for column in (1, 4)}) > 1
