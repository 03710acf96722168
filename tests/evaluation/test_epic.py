"""EPIC's actions from verbs and nouns, against the product of probabilities written out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tgm_scale import cli
from tgm_scale.data.video.encode import encode_video
from tgm_scale.evaluation import epic, probe, run
from tgm_scale.evaluation.cache import Clips
from tgm_scale.evaluation.settings import load_frozen


def test_places_are_those_of_the_product_of_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    verb, noun = (torch.randn(70, width, generator=generator).double() for width in (4, 6))
    truth = torch.randint(-1, 4, (70,), generator=generator), torch.randint(-1, 6, (70,), generator=generator)
    places = epic.pair_places(verb.log_softmax(1), noun.log_softmax(1), *truth)
    for m in range(70):
        v, n = (int(of[m]) for of in truth)
        if min(v, n) < 0:
            assert places[m] == 24
            continue
        product = np.outer(verb[m].softmax(0), noun[m].softmax(0))
        assert places[m] == (product > product[v, n] * (1 + 1e-12)).sum()
    best = (verb.argmax(1) == truth[0]) & (noun.argmax(1) == truth[1])
    assert torch.equal(places == 0, best) and best.any()


def test_a_pair_that_training_lacks_can_be_right() -> None:
    """Verbs move one number, nouns another; the pair (1, 1) is in the test alone."""
    train = ["0,0", "0,1", "1,0"] * 8
    test = ["1,1", "0,0"]

    def features(labels: list[str]) -> torch.Tensor:
        return torch.tensor([[float(part) for part in label.split(",")] for label in labels])

    found = epic.by_verb_and_noun(
        lambda numbers: probe.probe(features(train), numbers, features(test)).scores_MC, train, test
    )
    assert {name: figure["value"] for name, figure in found.items()} == {
        "verb top1": 1.0, "noun top1": 1.0, "verb x noun top1": 1.0, "verb x noun top5": 1.0,
    }  # fmt: skip
    assert epic.are_actions(train) and not epic.are_actions(["0,0", "cut"])


@pytest.mark.parametrize(
    ("label", "method", "figures"),
    [
        ("action", "linear probe", 4),
        ("action", "attentive probe", 4),
        ("action", "nearest neighbours", 0),
        ("verb", "linear probe", 0),
    ],
)
def test_probes_of_actions_give_them(label: str, method: str, figures: int) -> None:
    labels = ["0,0", "0,1", "1,0", "1,1"] * 4
    clips = Clips([torch.randn(16, 3)], labels, [str(n) for n in range(16)], [])
    config = load_frozen(None, ["run.dir=x", "encoder.checkpoint=x", "data.test=x", f"data.label={label}"])

    def fit(train: Clips, labels_N: torch.Tensor, test: Clips) -> run.Scored:
        return run.Scored(probe.probe(train.features[0], labels_N, test.features[0]).scores_MC, {})

    of = run.Method(method, "mean", fit, lambda encoder, labels: None, is_probe="probe" in method)
    assert len(run._verb_and_noun(config, of, clips, clips)) == figures


def test_parts_that_cannot_be_judged_leave_the_main_figure(checkpoint: Path, tmp_path: Path) -> None:
    """Of one verb there is nothing to fit."""
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
        (tmp_path / f"P01_01_{number}.mp4").write_bytes(encode_video(noise, fps=25))
    rows = [f"P01_01_{n},0,{n % 2}\n" for n in range(12)]
    (tmp_path / "a.csv").write_text("".join(["narration_id,verb_class,noun_class\n", *rows]))
    command = ["probe", f"run.dir={tmp_path}/run", f"encoder.checkpoint={checkpoint}", "data.workers=0"]
    command += [f"data.train={tmp_path}/a.csv", f"data.test={tmp_path}/a.csv", "data.label=action"]
    assert cli.main(command) == 0
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert "top1" in found["figures"] and "verb top1" not in found["figures"]
    assert "verb: " in found["facts"]["verb and noun"]
