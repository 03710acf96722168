"""Figures against the formulas that other people's code has under the same name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tgm_scale.evaluation import results
from tgm_scale.evaluation.ranking import dual_softmax, first_right, ranks
from tgm_scale.runs.figures import in_words


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("queries", [2, 7, 40])
def test_ranks_as_clip4clip_counts_them(queries: int) -> None:
    """Its code sorts each row, finds the diagonal's place, and takes numpy's median and mean of the places."""
    scores = drawn(queries, queries)
    recalls, facts = ranks("x", scores, torch.eye(queries, dtype=torch.bool), torch.arange(queries))
    order = np.argsort(-scores.numpy(), axis=1)
    place = np.array([int(np.where(row == i)[0][0]) for i, row in enumerate(order)])
    assert facts.pop("x R@1 by chance") == pytest.approx(1 / queries)
    assert facts == {"x median rank": np.median(place) + 1, "x mean rank": place.mean() + 1}
    assert set(recalls) == {f"x R@{k}" for k in (1, 5, 10) if k < queries}
    for k in (1, 5, 10):
        if k < queries:
            assert recalls[f"x R@{k}"]["value"] == pytest.approx((place < k).mean())


def test_two_queries_at_places_0_and_10_have_a_median_rank_of_6() -> None:
    scores = -torch.arange(12.0).expand(2, 12)
    right = torch.zeros(2, 12, dtype=torch.bool)
    right[0, 0] = right[1, 10] = True
    facts = ranks("x", scores, right, torch.arange(2))[1]
    assert facts == {"x R@1 by chance": right.double().mean(), "x median rank": 6.0, "x mean rank": 6.0}


def test_dual_softmax_by_its_formula() -> None:
    """A video that is near every text is worth less to each of them."""
    cosines = (drawn(5, 6) / 10).double()
    scaled = 100 * cosines.numpy()
    prior = np.exp(scaled) / np.exp(scaled).sum(axis=0)
    np.testing.assert_allclose(dual_softmax(cosines).numpy(), scaled * prior, rtol=1e-9)
    hub = torch.tensor([[0.30, 0.29], [0.40, 0.10]])
    right = torch.tensor([[False, True], [True, False]])
    assert first_right(hub, right).tolist() == [1, 0] and first_right(dual_softmax(hub), right).tolist() == [0, 0]


def test_accuracies_by_their_formulas() -> None:
    """top-1, top-5, and the mean over classes, which is scikit-learn's balanced accuracy."""
    scores, classes = drawn(60, 7, seed=1), [str(n) for n in range(7)]
    truth = [min(6, int(abs(x) * 3)) for x in drawn(1, 60, seed=2)[0].tolist()]
    found = results.classification_metrics(scores, torch.tensor(truth), [classes[n] for n in truth])
    ranked = np.argsort(-scores.numpy(), axis=1)
    right = ranked[:, 0] == np.array(truth)
    assert found["top1"]["value"] == pytest.approx(right.mean())
    assert found["top5"]["value"] == pytest.approx(np.mean([t in row[:5] for t, row in zip(truth, ranked)]))
    by_class = [right[np.array(truth) == n].mean() for n in sorted(set(truth))]
    figure = found["mean class"]
    assert figure["value"] == pytest.approx(np.mean(by_class)) and figure["value"] != found["top1"]["value"]
    assert figure["low"] < figure["value"] < figure["high"]


@pytest.mark.parametrize(
    ("clips", "predicted", "said"),
    [
        (30, 2, {}),
        (30, 1, {"predictions": "all are 'b': "}),
        (29, 2, {"few test clips": "29, fewer than 30: one clip moves top1 by 0.0345, "}),
        (1, 1, {"predictions": "all are 'b': ", "few test clips": "1, fewer than 30: "}),
    ],
)
def test_figures_that_tell_little_are_said_to(clips: int, predicted: int, said: dict[str, str]) -> None:
    scores_MC = torch.eye(3)[[1 + clip % predicted for clip in range(clips)]]
    found = results.cautions(scores_MC, ["a", "b", "c"])
    assert found.keys() == said.keys() and all(found[name].startswith(text) for name, text in said.items())
    assert "predictions" not in results.cautions(scores_MC[:, 1:2], ["b"]), "there is only one"


def test_classes_that_training_lacks_count_each() -> None:
    found = results.classification_metrics(
        torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, -1, -1, 1]), ["a", "x", "y", "b"]
    )
    assert found["mean class"]["value"] == 0.5


def test_queries_of_one_caption_are_right_or_wrong_together() -> None:
    """Two captions of 32 clips each, one of which is right: one right of two, whatever the number of clips."""
    scores = torch.tensor([[1.0, 0.0]] * 64)
    right = torch.zeros(64, 2, dtype=torch.bool)
    right[:32, 0] = right[32:, 1] = True
    found = ranks("x", scores, right, torch.arange(64) // 32)[0]["x R@1"]
    assert found == {"value": 0.5, "low": 0.0, "high": 1.0, "clips": 64, "captions": 2}
    alone = ranks("x", scores, right, torch.arange(64))[0]["x R@1"]
    assert 0.3 < alone["low"] < alone["high"] < 0.7 and "captions" not in alone
    words = dict(
        in_words(
            {"figures": {"x R@1": found}, "facts": {"mean rank": 46.70499419, "of many": 12345.5, "penalty": 1e-7}}
        )
    )
    assert words == {"x R@1": "0.5000 [0.0000, 1.0000] (95 %, bootstrap over 2 captions)", "mean rank": "46.705"} | {
        "of many": "12345.5",
        "penalty": "1e-07",
    }
