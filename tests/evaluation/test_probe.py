"""The linear probe: its optimum, its choice of the penalty, and that it gives the same digits twice."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tgm_scale.evaluation import probe
from tgm_scale.runtime import seeding


def blobs(clips: int, classes: int, width: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian blobs about `classes` fixed centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(clips) % classes
    return centres[labels] + spread * torch.randn(clips, width, generator=generator), labels


@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_the_fit_is_the_minimum(penalty: float) -> None:
    """At the minimum of a convex loss the gradient is 0, computed here from the formula of softmax regression."""
    x, y = blobs(200, 3, 5, 1.0, seed=0)
    x, _ = probe.standardised(x, x)
    weight, bias = probe.fit(x, y, 3, penalty)
    residual = (x @ weight + bias).softmax(1) - F.one_hot(y, 3)
    assert (x.T @ residual / len(x) + penalty * weight).abs().max() < min(1e-5, 1e-2 * penalty)
    assert residual.mean(0).abs().max() < min(1e-5, 1e-2 * penalty)


@pytest.mark.parametrize(("penalty", "width"), [(1e-2, 5), (1e-5, 60)])
def test_where_the_fit_starts_plays_no_part(penalty: float, width: int) -> None:
    """Wide enough, the clips are told apart whole, and the objective at 1e-5 is nearly flat."""
    x, y = blobs(200, 3, width, 1.0, seed=0)
    x, _ = probe.standardised(x, x)
    straight = probe.fit(x, y, 3, penalty)
    by_way_of = probe.fit(x, y, 3, penalty, probe.fit(x, y, 3, 1e-1))
    assert torch.allclose(straight.weight, by_way_of.weight, atol=1e-4 if penalty == 1e-2 else 2e-3)

    def objective(found: probe._Linear) -> float:
        return (F.cross_entropy(found.scores(x), y) + 0.5 * penalty * found.weight.square().sum()).item()

    assert objective(straight) == pytest.approx(objective(by_way_of), rel=1e-5)


@pytest.mark.parametrize(
    ("best", "tried", "at_edge"),
    [
        (1e-3, 5, False),
        (1e-1, 6, False),
        (1e1, 8, False),
        (1e2, 8, True),
        (1e-5, 6, False),
        (1e-7, 8, False),
        (1e-8, 8, True),
    ],
)
def test_the_grid_goes_on_from_an_edge_while_it_gets_better(best: float, tried: int, at_edge: bool) -> None:
    asked = []

    def accuracy_of(penalty: float) -> float:
        asked.append(penalty)
        return 1 - abs(math.log10(penalty / best)) / 100

    assert probe.choose(accuracy_of) == (best, 1.0, at_edge)
    assert len(asked) == tried


@pytest.mark.parametrize(("clips", "penalty", "tried"), [(1_900, 1e-8, 8), (48_000, 1e-5, 6)])
def test_beyond_the_grid_a_clip_of_two_thousand_is_worth_a_fit(clips: int, penalty: float, tried: int) -> None:
    asked = []

    def accuracy_of(penalty: float) -> float:
        asked.append(penalty)
        return (1_000 + len(asked)) / clips

    assert probe.choose(accuracy_of)[0] == penalty and len(asked) == tried


def test_of_equal_penalties_the_strongest_of_the_grid() -> None:
    assert probe.choose(lambda penalty: 0.5) == (probe.PENALTIES[0], 0.5, False)


def test_blobs_are_told_apart_and_the_same_seed_gives_the_same_digits() -> None:
    train, labels = blobs(300, 4, 8, 0.5, seed=1)
    test, truth = blobs(200, 4, 8, 0.5, seed=2)
    one, other = (
        probe.probe(train, labels, test, probe.Validation(3)),
        probe.probe(train, labels, test, probe.Validation(3)),
    )
    assert torch.equal(one.scores_MC.argmax(1), other.scores_MC.argmax(1))
    assert one.validation_accuracy == other.validation_accuracy
    assert (one.scores_MC.argmax(1) == truth).double().mean() > 0.95


def test_noise_is_met_with_a_strong_penalty_and_signal_with_a_weak_one() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(120, 100, generator=generator)
    noisy = (x[:, 0] + 2 * torch.randn(120, generator=generator) > 0).long()
    wide = torch.randn(2000, 4, generator=generator)
    sharp = ((wide[:, 0] + 0.01 * wide[:, 1]) > 0).long()
    assert probe.probe(x, noisy, x).penalty >= 1e-2
    assert probe.probe(wide, sharp, wide).penalty <= 1e-3


def test_scale_and_offset_of_features_play_no_part_and_a_constant_one_is_harmless() -> None:
    train, labels = blobs(200, 3, 6, 1.0, seed=5)
    test, _ = blobs(100, 3, 6, 1.0, seed=6)
    plain = probe.probe(train, labels, test).scores_MC.argmax(1)
    scale = torch.tensor([1e-3, 1.0, 50.0, 1.0, 7.0, 1e3])
    constant = lambda x: torch.cat([x * scale + 5, torch.full((len(x), 1), 3.0)], 1)  # noqa: E731
    changed = probe.probe(constant(train), labels, constant(test)).scores_MC.argmax(1)
    assert (plain == changed).double().mean() >= 0.99


def test_the_choice_is_that_of_fits_one_by_one() -> None:
    """Bit for bit: each penalty from the solution of the one before, on the part that is kept; the best on all."""
    (train, labels), (test, _) = blobs(300, 4, 8, 1.5, seed=1), blobs(50, 4, 8, 1.5, seed=2)
    found = probe.probe(train, labels, test, probe.Validation(3), device=torch.device("cpu"))
    x, z = probe.turned(*probe.standardised(train, test))
    order = torch.from_numpy(seeding.permutation(seeding.key(3, "probe validation"), 300))
    held_out, kept = order[:60], order[60:]
    solution, right = None, []
    for penalty in probe.PENALTIES:
        solution = probe.fit(x[kept], labels[kept], 4, penalty, solution)
        right.append((solution.scores(x[held_out]).argmax(1) == labels[held_out]).sum().item())
    assert found.penalty == probe.PENALTIES[right.index(max(right))]
    assert found.validation_accuracy == max(right) / 60
    assert torch.equal(found.scores_MC, probe.fit(x, labels, 4, found.penalty).scores(z))


@pytest.mark.parametrize("width", [5, 150])
def test_turned_features_give_the_scores_of_plain_ones(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Fewer clips than features, and more; some features alike and some constant."""
    (train, labels), (test, _) = blobs(100, 4, width, 2.0, seed=1), blobs(50, 4, width, 2.0, seed=2)
    train, test = (torch.cat([x, x[:, :2], 3 * torch.ones(len(x), 2)], 1) for x in (train, test))
    x, z = probe.standardised(train, test)
    turned, _ = probe.turned(x, z)
    assert turned.shape == (100, min(100, width + 4))
    products = turned.T @ turned
    assert (products - products.diag().diag()).abs().max() < 1e-9 * products.max()
    found = probe.probe(train, labels, test)
    plain = probe.fit(x, labels, 4, found.penalty).scores(z)
    assert (found.scores_MC - plain).abs().max() < 1e-4 * plain.abs().max()
    monkeypatch.setattr(probe, "_WIDEST", 4)
    unturned = probe.probe(train, labels, test)
    assert unturned.penalty == found.penalty and (unturned.scores_MC - plain).abs().max() < 1e-4 * plain.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_gives_the_same_scores() -> None:
    (train, labels), (test, _) = blobs(300, 4, 8, 1.5, seed=1), blobs(50, 4, 8, 1.5, seed=2)
    here, there = probe.probe(train, labels, test), probe.probe(train, labels, test, device=torch.device("cuda"))
    assert there.scores_MC.device.type == "cpu" and there.penalty == here.penalty
    torch.testing.assert_close(there.scores_MC, here.scores_MC, rtol=1e-3, atol=1e-3)  # where the search stops
    assert torch.equal(there.scores_MC.argmax(1), here.scores_MC.argmax(1))


def test_one_class_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="needs 2 classes"):
        probe.probe(torch.randn(20, 3), torch.zeros(20, dtype=torch.int64), torch.randn(5, 3))


def test_groups_are_held_out_whole() -> None:
    """Ten groups of five clips, each with its own place in the features: clips of a group tell nothing of another."""
    groups = [str(number // 5) for number in range(50)]
    held_out, kept = probe.Validation(3, groups).rows(50)
    assert sorted([*held_out.tolist(), *kept.tolist()]) == list(range(50)) and len(held_out) == 10
    assert not {groups[row] for row in held_out} & {groups[row] for row in kept}
    assert held_out.tolist() != probe.Validation(4, groups).rows(50)[0].tolist()
    for none in (None, ["all"] * 50):
        assert torch.equal(probe.Validation(3, none).rows(50)[0], probe.Validation(3).rows(50)[0])
    x = F.one_hot(torch.tensor([int(group) for group in groups]), 10).double()
    labels = torch.tensor([0, 1] * 5).repeat_interleave(5)
    assert probe.probe(x, labels, x).validation_accuracy == 1.0
    of_one_class = probe.Validation(1, groups)  # groups 1 and 7: of those left, most are of the other class
    assert probe.probe(x, labels, x, of_one_class).validation_accuracy == 0.0


def alike(clips: int, width: int, own: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that are mixtures of six, but for a share `own`; classes by the first of the six."""
    generator = torch.Generator().manual_seed(7)
    few = torch.randn(clips, 6, generator=generator)
    x = few @ torch.randn(6, width, generator=generator) + own * torch.randn(clips, width, generator=generator)
    return x, (3 * few[:, 0]).long() % 7


@pytest.mark.parametrize(
    ("made", "classes"),
    [(blobs(900, 9, 40, 2.0, seed=8), 9), (blobs(200, 7, 300, 1.0, seed=9), 7), (alike(400, 128, 1e-3), 7)],
    ids=["mixed", "told apart whole", "alike"],
)
def test_of_large_problems_the_answer_is_that_of_float64(
    made: tuple[torch.Tensor, torch.Tensor], classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weak penalties, too, at which the curvature is too weak for float32."""
    x, y = made
    x, _ = probe.standardised(x, x)
    products: list[torch.dtype] = []
    around = probe._Objective.around

    def counted(self: probe._Objective, at_EC: torch.Tensor, dtype: torch.dtype):  # type: ignore[no-untyped-def]
        gradient_EC, scale_EC, curved = around(self, at_EC, dtype)
        return gradient_EC, scale_EC, lambda direction_EC: (products.append(dtype), curved(direction_EC))[1]

    monkeypatch.setattr(probe._Objective, "around", counted)
    for penalty in (1e-1, 1e-3, 1e-5, 1e-7):
        plain = probe.fit(x, y, classes, penalty)
        before, _ = len(products), products.clear()
        monkeypatch.setattr(probe, "_LARGE", 0)
        large = probe.fit(x, y, classes, penalty)
        monkeypatch.undo()
        monkeypatch.setattr(probe._Objective, "around", counted)
        assert products[0] == torch.float32, "the search began in float32"
        assert len(products) <= 2 * before + probe._SINGLE_CONJUGATE_STEPS * probe._SINGLE_NEWTON_STEPS
        objective = probe._Objective(x, y, classes, penalty)
        values = [objective.value(torch.cat([found.weight, found.bias[None]])) for found in (plain, large)]
        assert values[1] == pytest.approx(values[0], rel=1e-6)
        assert torch.equal(plain.scores(x).argmax(1), large.scores(x).argmax(1))
        products.clear()
