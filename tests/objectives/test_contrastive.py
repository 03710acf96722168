"""The contrastive term against its definition in plain loops, and its cached gradients against direct ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tgm_scale.models.vit import SIZES
from tgm_scale.objectives.contrastive import (
    INITIAL_SCALE,
    MAX_SCALE,
    MIN_SCALE,
    Contrast,
    InfoNCE,
    caption_ids,
    info_nce,
)
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import EmbeddingPairs, TermSettings, gradients

WIDTH = 6


def initial_log_scale() -> Tensor:
    return torch.tensor(math.log(INITIAL_SCALE))


def contrastive_gradients(
    video: Tensor, text: Tensor, log_scale: Tensor, negatives: Negatives
) -> tuple[Contrast, Tensor, Tensor]:
    """The term's loss with its figures, and the gradients by embeddings and log scale."""
    found = gradients(InfoNCE(TermSettings(SIZES["tiny"])), EmbeddingPairs(video, text, negatives), log_scale)
    accuracy, scale = found.coupled.metrics["contrastive_accuracy"], info_nce(video, text, log_scale, negatives).scale
    return Contrast(found.coupled.loss, accuracy, scale), found.video_GE, found.learned_L


def embeddings(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, WIDTH, generator=generator), torch.randn(clips, WIDTH, generator=generator)


def by_definition(
    video: Tensor, text: Tensor, scale: float, weight: Tensor, captions: Tensor, clips: Tensor, group: int
) -> tuple[float, float]:
    """Loss and accuracy: for each clip the log of the share of its own pair among its negatives', both ways."""
    v, t = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (video, text))
    losses, right = [], []
    for i in range(len(v)):
        if weight[i] == 0:
            continue
        start = i // group * group
        negatives = [
            j
            for j in range(start, start + group)
            if j != i and weight[j] and captions[j] != captions[i] and clips[j] != clips[i]
        ]
        own = scale * v[i] @ t[i]
        to_text = [scale * v[i] @ t[j] for j in negatives]
        to_video = [scale * v[j] @ t[i] for j in negatives]
        losses.append(sum(np.log(np.exp(np.array([own, *row]) - own).sum()) for row in (to_text, to_video)) / 2)
        right.append(1.0 if all(own > other for other in to_text) else 0.0)  # no two are equal here
    return (float(np.mean(losses)), float(np.mean(right))) if losses else (0.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), groups=st.integers(1, 3), group=st.integers(1, 5), log_scale=st.floats(0, 4.5))
def test_loss_and_accuracy_by_their_definition(data: st.DataObject, groups: int, group: int, log_scale: float) -> None:
    count = groups * group
    weight = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 1.0, 1.0]), min_size=count, max_size=count)))
    captions, clips = (
        torch.tensor(data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))) for _ in range(2)
    )
    video, text = embeddings(count, seed=data.draw(st.integers(0, 99)))
    got = info_nce(video, text, torch.tensor(log_scale), Negatives(weight, captions, clips, group))
    loss, accuracy = by_definition(video, text, math.exp(log_scale), weight, captions, clips, group)
    assert got.loss.item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
    assert got.accuracy.item() == pytest.approx(accuracy, abs=1e-6)
    assert got.scale.item() == pytest.approx(math.exp(log_scale), rel=1e-5)


def test_without_exclusions_it_is_two_way_cross_entropy() -> None:
    video, text = embeddings(8, seed=0)
    logits = initial_log_scale().exp() * F.normalize(video) @ F.normalize(text).T
    label = torch.arange(8)
    expected = (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2
    torch.testing.assert_close(
        info_nce(video, text, initial_log_scale(), Negatives(torch.ones(8), label, label, 8)).loss, expected
    )
    assert initial_log_scale().exp().item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("alive", [0, 1])
def test_a_group_of_broken_clips_is_finite_and_moves_nothing(alive: int) -> None:
    video, text = embeddings(4, seed=0)
    video[3] = 0.0  # a broken clip may embed to nothing
    weight = torch.zeros(4)
    weight[:alive] = 1.0
    ids = torch.arange(4)
    contrast, by_video, by_scale = contrastive_gradients(
        video, text, initial_log_scale(), Negatives(weight, ids, ids, 4)
    )
    assert contrast.loss == 0 and contrast.accuracy == alive
    assert (by_video == 0).all() and by_scale == 0


def test_a_broken_clip_is_as_if_absent() -> None:
    video, text = embeddings(5, seed=1)
    ids = torch.arange(5)
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    with_it = contrastive_gradients(video, text, initial_log_scale(), Negatives(weight, ids, ids, 5))
    kept = ids[weight > 0]
    without = contrastive_gradients(
        video[kept], text[kept], initial_log_scale(), Negatives(torch.ones(4), ids[kept], ids[kept], 4)
    )
    torch.testing.assert_close(with_it[0], without[0])
    torch.testing.assert_close(with_it[1][kept], without[1])
    assert (with_it[1][2] == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_whatever_a_broken_clip_embeds_to_it_is_as_if_absent(value: float) -> None:
    video, text = embeddings(5, seed=1)
    ids, weight = torch.arange(5), torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    wanted = contrastive_gradients(video, text, initial_log_scale(), Negatives(weight, ids, ids, 5))
    video[2, 1] = text[2, 0] = value
    found = contrastive_gradients(video, text, initial_log_scale(), Negatives(weight, ids, ids, 5))
    assert all(torch.equal(a, b) for a, b in zip((*found[0], *found[1:]), (*wanted[0], *wanted[1:]), strict=True))


@pytest.mark.parametrize("videos_differ", [True, False])
def test_a_collapsed_batch_is_right_by_chance(videos_differ: bool) -> None:
    """All captions at one point, and the clips too or not: each clip picks one of eight alike."""
    video, text = (x[:1].expand(8, -1).clone() for x in embeddings(8, seed=4))
    video = embeddings(8, seed=4)[0] if videos_differ else video
    found = info_nce(video, text, initial_log_scale(), Negatives(torch.ones(8), torch.arange(8), torch.arange(8), 8))
    assert found.accuracy.item() == pytest.approx(1 / 8)
    assert found.loss.item() >= math.log(8) - 1e-5


def test_groups_do_not_see_one_another() -> None:
    video, text = embeddings(6, seed=2)
    ids = torch.arange(6)
    _, gradient, _ = contrastive_gradients(video, text, initial_log_scale(), Negatives(torch.ones(6), ids, ids, 3))
    text[3:] = torch.randn(3, WIDTH)
    _, changed, _ = contrastive_gradients(video, text, initial_log_scale(), Negatives(torch.ones(6), ids, ids, 3))
    assert torch.equal(gradient[:3], changed[:3]) and not torch.equal(gradient[3:], changed[3:])


@pytest.mark.parametrize(("micro", "group"), [(2, 12), (3, 12), (2, 6), (12, 12), (4, 4), (3, 4)])
def test_cached_gradients_are_the_direct_ones(micro: int, group: int) -> None:
    """A small encoder, trained through `(embedding * gradient).sum()` in micro batches and through the loss itself."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(9, 7), nn.GELU(), nn.Linear(7, WIDTH)).double()
    log_scale = nn.Parameter(initial_log_scale().reshape(1))
    clips, text = torch.randn(12, 9).double(), torch.randn(12, WIDTH)
    weight = torch.ones(12)
    weight[5] = 0
    captions, ids = torch.arange(12) // 2 % 5, torch.arange(12) % 7
    parameters = (*encoder.parameters(), log_scale)

    loss = info_nce(encoder(clips), text, log_scale, Negatives(weight, captions, ids, group)).loss
    direct = torch.autograd.grad(loss, parameters)

    with torch.no_grad():
        embedded = torch.cat([encoder(part) for part in clips.split(micro)])
        contrast, by_video, by_scale = contrastive_gradients(
            embedded, text, log_scale, Negatives(weight, captions, ids, group)
        )
    assert not contrast.loss.requires_grad and by_scale.shape == log_scale.shape
    total = (log_scale * by_scale).sum()
    for part, gradient in zip(clips.split(micro), by_video.split(micro), strict=True):
        total = total + (encoder(part) * gradient).sum()
    torch.testing.assert_close(contrast.loss, loss.detach())
    torch.testing.assert_close(torch.autograd.grad(total, parameters), direct, rtol=1e-4, atol=1e-6)


def test_autocast_and_bf16_embeddings_keep_float32_logits() -> None:
    video, text = embeddings(8, seed=3)
    ids = torch.arange(8)
    plain = info_nce(video, text, initial_log_scale(), Negatives(torch.ones(8), ids, ids, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            info_nce(video, text, initial_log_scale(), Negatives(torch.ones(8), ids, ids, 8)).loss, plain.loss
        )
    rounded = video.bfloat16()
    expected = info_nce(rounded.float(), text, initial_log_scale(), Negatives(torch.ones(8), ids, ids, 8))
    assert torch.equal(
        info_nce(rounded, text, initial_log_scale(), Negatives(torch.ones(8), ids, ids, 8)).loss, expected.loss
    )


def test_the_scale_is_bounded_and_comes_back_from_beyond() -> None:
    ids = torch.arange(4)
    text = 1 + 0.15 * torch.eye(4)  # near one another, so that no pair is certain at the bound
    beyond = torch.tensor(math.log(MAX_SCALE) + 0.5)

    def gradient(video: Tensor, log_scale: Tensor) -> Tensor:
        contrast, _, by_scale = contrastive_gradients(video, text, log_scale, Negatives(torch.ones(4), ids, ids, 4))
        assert contrast.scale.item() == pytest.approx(min(max(log_scale.exp().item(), MIN_SCALE), MAX_SCALE))
        return by_scale

    wrong_pairs = text.roll(1, 0)
    assert gradient(wrong_pairs, beyond) > 0  # descent lowers it
    assert gradient(text, initial_log_scale()) < 0  # right pairs raise it
    assert gradient(text, beyond) == 0  # but no further than the bound
    assert gradient(wrong_pairs, torch.tensor(-0.5)) == 0 and gradient(text, torch.tensor(-0.5)) < 0  # the lower one


def test_captions_are_equal_but_for_case_and_white_space() -> None:
    ids = caption_ids(["A dog runs", "a  dog runs ", "a dog", "", "a dogruns"])
    assert ids.dtype == torch.int64
    assert ids[0] == ids[1] and len(set(ids.tolist())) == 4
