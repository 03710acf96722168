"""kNN during pretraining: the figures are those of the evaluation, on one process or two, at any stage; and a
short unmasked tuning from a run's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import launch
import pytest

from tgm_scale import cli
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.evaluation import knn
from tgm_scale.evaluation.features import FrozenEncoder, extract
from tgm_scale.evaluation.run import is_right

LABEL = "truth.objects.0.shape"


def pretraining(folder: Path, shards: str, towers: Path, *more: str) -> list[str]:
    overrides = [
        *(f"run.dir={folder}", f"data.shards={shards}", "data.frames=4", "data.stride=2", "data.size=32"),
        *(f"guidance.towers={towers}", "masking.recipe=random", "train.steps=2", "log.tensorboard=false"),
        *("knn.every=2", f"knn.train={shards}", f"knn.test={shards}", f"knn.label={LABEL}", "knn.k=3"),
    ]
    return ["-m", "tgm_scale", "pretrain", "--config", "configs/debug.yaml", *overrides, *more]


def accuracies(folder: Path) -> list[float | None]:
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row).get("knn_accuracy") for row in rows]


def test_the_metrics_have_what_the_evaluation_says_and_an_unmasked_tuning_goes_on_from_there(
    shards: str, towers: Path, tmp_path: Path
) -> None:
    one, two, tuned = (tmp_path / name for name in ("one", "two", "tuned"))
    begun = launch.run(1, pretraining(one, shards, towers)).stdout
    assert "knn.test: 37 of 37 test clips are training clips, too" in begun
    launch.run(2, pretraining(two, shards, towers, "train.micro_batch_size=4", "deepspeed.stage=3"))
    corpus = open_corpus(shards)
    clips = extract([FrozenEncoder.load(one)], corpus, LABEL)
    right = is_right(lambda x, y, z: knn.votes(x, y, z, 3), clips, clips)
    assert accuracies(one) == [None, right.double().mean().item()] == pytest.approx([None, 1.0], abs=0.5)
    assert accuracies(two)[1] == pytest.approx(accuracies(one)[1], abs=2 / 37)  # ZeRO-3's layers round differently

    unmasked = ["masking.mask_ratio=0.04", "objective.reconstruction_weight=0", f"train.init_from={one}"]
    launch.run(1, pretraining(tuned, shards, towers, *unmasked))
    assert json.loads((tuned / "plan.json").read_text())["visible_tokens"] == 31  # of 32
    found = ["retrieve", f"run.dir={tmp_path / 'r'}", f"encoder.checkpoint={tuned}", f"data.test={shards}"]
    assert cli.main([*found, "data.workers=0"]) == 0  # the towers are those that the run says
    assert json.loads((tmp_path / "r/results.json").read_text())["facts"]["videos"] == 37


def test_a_labelled_set_is_asked_for(shards: str, towers: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = pretraining(tmp_path / "x", shards, towers)[2:]
    assert cli.main([word for word in command if not word.startswith("knn.test")]) == 2
    assert "knn.every needs a labelled set: give knn.train and knn.test" in capsys.readouterr().err
