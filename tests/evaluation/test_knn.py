"""Nearest neighbours against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tgm_scale.evaluation import knn


def by_definition(train, labels, test, k, temperature):
    predictions = []
    for x in test.tolist():
        cosines = [
            sum(a * b for a, b in zip(x, y)) / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))
            for y in train.tolist()
        ]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        votes = [0.0] * (max(labels) + 1)
        for i in nearest:
            votes[labels[i]] += math.exp(cosines[i] / temperature)
        predictions.append(max(range(len(votes)), key=votes.__getitem__))
    return predictions


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(1, 60), st.sampled_from([0.05, 0.07, 1.0]))
def test_predictions_are_those_of_the_definition(seed: int, classes: int, k: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(40, 6, generator=generator)
    test = torch.randn(9, 6, generator=generator)
    labels = torch.randint(classes, (40,), generator=generator)
    found = knn.votes(train, labels, test, k, temperature).argmax(1).tolist()
    assert found == by_definition(train.double(), labels.tolist(), test.double(), k, temperature)


def test_a_training_clip_finds_itself() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50)
    assert torch.equal(knn.votes(features, labels, features, k=5, temperature=0.01).argmax(1), labels)


def test_length_of_a_feature_plays_no_part() -> None:
    generator = torch.Generator().manual_seed(2)
    train, test = torch.randn(60, 8, generator=generator), torch.randn(20, 8, generator=generator)
    labels = torch.randint(4, (60,), generator=generator)
    stretched = test * torch.rand(20, 1, generator=generator).add(0.1)
    assert torch.equal(knn.votes(train, labels, test).argmax(1), knn.votes(train, labels, stretched).argmax(1))


def test_many_test_clips_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    train, test = torch.randn(60, 8, generator=generator), torch.randn(25, 8, generator=generator)
    labels = torch.randint(4, (60,), generator=generator)
    whole = knn.votes(train, labels, test).argmax(1)
    monkeypatch.setattr(knn, "_ROWS", 7)
    assert torch.equal(knn.votes(train, labels, test).argmax(1), whole)
    monkeypatch.setattr(knn, "_COSINES", 130)  # 2 test clips at a time
    assert torch.equal(knn.votes(train, labels, test).argmax(1), whole)
    monkeypatch.setattr(knn, "_COSINES", 1)  # never none
    assert torch.equal(knn.votes(train, labels, test).argmax(1), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_finds_the_same_neighbours() -> None:
    generator = torch.Generator().manual_seed(4)
    train, test = torch.randn(5000, 64, generator=generator), torch.randn(700, 64, generator=generator)
    labels = torch.randint(9, (5000,), generator=generator)
    there = knn.votes(train, labels, test, device=torch.device("cuda"))
    assert there.device.type == "cpu"
    torch.testing.assert_close(there, knn.votes(train, labels, test), rtol=1e-4, atol=0)
