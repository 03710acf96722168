"""The attentive probe: it finds the token that matters, the sweep chooses, the same seed gives the same digits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tgm_scale.evaluation import attentive, probe
from tgm_scale.evaluation.settings import ProbeConfig

SETTINGS = ProbeConfig(heads=2, learning_rates=(1e-4, 1e-2), epochs=30, steps=1, batch_size=32, weight_decay=0.01)


def one_telling_token(clips: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise tokens and one, at a drawn place, that is marked and has the class: its mean over tokens is drowned."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(clips) % 3
    tokens = torch.randn(clips, 24, 8, generator=generator)
    place = torch.randint(24, (clips,), generator=generator)
    telling = torch.cat([F.one_hot(labels, 3) * 4.0, torch.full((clips, 1), 6.0), torch.zeros(clips, 4)], dim=1)
    tokens[torch.arange(clips), place] = telling
    return tokens.half(), labels


def test_it_finds_what_the_mean_token_has_lost() -> None:
    (train, labels), (test, truth) = one_telling_token(300, 0), one_telling_token(150, 1)
    found = attentive.probe(train, labels, test, SETTINGS)
    accuracy = (found.scores_MC.argmax(1) == truth).double().mean()
    mean = probe.probe(train.float().mean(1), labels, test.float().mean(1)).scores_MC.argmax(1)
    assert accuracy > 0.9 > (mean == truth).double().mean() + 0.1
    assert found.learning_rate == 1e-2
    assert found.validation_accuracies[1e-2] > found.validation_accuracies[1e-4]


def test_what_is_small_beside_what_all_clips_share_is_read() -> None:
    """As a few tokens of a person before a background that is the same in every clip."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    tokens = 3 * torch.randn(24, 8, generator=generator) + 0.02 * torch.randn(300, 24, 8, generator=generator)
    tokens[:, 5, :3] += 0.1 * F.one_hot(labels, 3)
    settings = SETTINGS.model_copy(update={"learning_rates": (1e-2,)})
    found = attentive.probe(tokens[:200], labels[:200], tokens[200:], settings)
    assert (found.scores_MC.argmax(1) == labels[200:]).double().mean() > 0.9


def test_the_same_seed_gives_the_same_digits_and_another_seed_others() -> None:
    (train, labels), (test, _) = one_telling_token(60, 0), one_telling_token(20, 1)
    settings = SETTINGS.model_copy(update={"epochs": 2})
    one, other = (attentive.probe(train, labels, test, settings, probe.Validation(3)) for _ in range(2))
    assert torch.equal(one.scores_MC, other.scores_MC) and one[1:] == other[1:]
    assert not torch.equal(
        one.scores_MC, attentive.probe(train, labels, test, settings, probe.Validation(4)).scores_MC
    )


def test_heads_swept_together_learn_as_one_alone() -> None:
    (train, labels), (test, _) = one_telling_token(60, 0), one_telling_token(20, 1)
    together = attentive.probe(train, labels, test, SETTINGS)
    only = SETTINGS.model_copy(update={"learning_rates": (together.learning_rate,)})
    alone = attentive.probe(train, labels, test, only)
    assert together.validation_accuracies[together.learning_rate] == alone.validation_accuracies[alone.learning_rate]
    torch.testing.assert_close(together.scores_MC, alone.scores_MC)


def test_attention_is_that_of_the_definition() -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    head = attentive.AttentiveHead(attentive.mean_and_scale(x, torch.arange(2)), 2, 3, seed=0)
    std_8, mean_8 = torch.std_mean(x.double(), dim=(0, 1), correction=0)
    normed = head.norm(((x - mean_8) / std_8).float())
    key, value = head.key_value(normed).split(8, dim=2)
    rows = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        share = ((key[..., part] @ head.query[part]) / 2).softmax(1)  # / sqrt(4)
        rows.append((share[..., None] * value[..., part]).sum(1))
    gathered = torch.cat(rows, 1)
    scaled = (gathered - gathered.mean(0)) / gathered.std(0, correction=0)
    torch.testing.assert_close(head(x), head.head(scaled), rtol=1e-3, atol=1e-4)
    # for a test by the averages of the batches seen, here of one with momentum 0.1
    averaged = (gathered - 0.1 * gathered.mean(0)) / (0.9 + 0.1 * gathered.var(0)).sqrt()
    torch.testing.assert_close(head.eval()(x), head.head(averaged), rtol=1e-3, atol=1e-4)


def test_heads_that_do_not_divide_the_width_are_a_mistake() -> None:
    train, labels = one_telling_token(30, 0)
    with pytest.raises(ValueError, match=r"probe.heads=3 does not divide the encoder's width of 8"):
        attentive.probe(train, labels, train, SETTINGS.model_copy(update={"heads": 3}))


@pytest.mark.parametrize(
    ("peak", "tried", "at_edge"),
    [
        (1e-3, [1e-4, 1e-3, 1e-2], False),
        (2e-2, [1e-4, 1e-3, 1e-2, 3e-2, 9e-2], False),
        (1e-9, [1e-4 / 81, 1e-4 / 27, 1e-4 / 9, 1e-4 / 3, 1e-4, 1e-3, 1e-2], True),
    ],
)
def test_the_sweep_goes_on_from_an_edge_while_it_gets_better(peak: float, tried: list[float], at_edge: bool) -> None:
    def accuracies_of(*rates: float) -> dict[float, float]:
        return {rate: -abs(math.log(rate / peak)) for rate in rates}

    best, found, last = attentive.choose(accuracies_of, (1e-4, 1e-3, 1e-2))
    assert sorted(found) == pytest.approx(tried) and last is at_edge
    assert best == max(found, key=found.__getitem__)
    assert attentive.choose(accuracies_of, (1e-4,)) == (1e-4, accuracies_of(1e-4), False), "one rate is no sweep"


def test_few_clips_get_more_passes_than_epochs_and_many_no_fewer() -> None:
    """60 clips, 48 of them kept: two batches of 32 an epoch."""
    (train, labels), (test, _) = one_telling_token(60, 0), one_telling_token(20, 1)
    rate = {"learning_rates": (1e-2,)}
    by_epochs, by_steps, fewer = (
        attentive.probe(train, labels, test, SETTINGS.model_copy(update={**rate, "epochs": epochs, "steps": steps}))
        for epochs, steps in ((5, 1), (1, 10), (5, 7))
    )
    assert torch.equal(by_steps.scores_MC, by_epochs.scores_MC) and torch.equal(fewer.scores_MC, by_epochs.scores_MC)
