"""Pretraining on frames of whole clips (data.sampling=segments): what is drawn, and that a reader takes them alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launch import run

import tgm_scale
from tgm_scale import cli
from tgm_scale.config import load
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.evaluation.views import Views, decode_views
from tgm_scale.planning.run_plan import shape_of
from tgm_scale.preview.clips import sampling_of
from tgm_scale.runs.metrics import read_metrics

CONFIG = """
run: {{dir: {run}}}
data: {{shards: {shards}, sampling: segments, frames: 4, size: 32, workers: 0, max_skipped_share: 0.2}}
masking: {{recipe: random, mask_ratio: 0.75}}
objective: {{terms: {{pixels: 1}}}}
model: {{size: tiny}}
train: {{steps: 6, global_batch_size: 8, micro_batch_size: 4}}
checkpoint: {{every: 3, keep: 2}}
"""


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder)]


@pytest.fixture
def config(tmp_path: Path, shards: str) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.format(run=tmp_path / "run", shards=shards))
    return str(file)


def pretrain(config: str, *more: str, world_size: int = 1) -> None:
    run(world_size, ["-m", "tgm_scale", "pretrain", "--config", config, *more])


def test_whole_clips_are_the_same_by_workers_and_ranks_and_no_windows(config: str, tmp_path: Path) -> None:
    pretrain(config)
    pretrain(config, f"run.dir={tmp_path}/two", "data.workers=1", world_size=2)
    pretrain(config, f"run.dir={tmp_path}/windows", "data.sampling=dense", "data.stride=1")
    whole = losses(tmp_path / "run")
    assert losses(tmp_path / "two") == pytest.approx(whole, rel=1e-5) and len(whole) == 6
    assert losses(tmp_path / "windows") != pytest.approx(whole, rel=1e-3)


def test_a_reader_takes_whole_clips_or_says_that_it_does_not(
    config: str, tmp_path: Path, shards: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pretrain(config)
    sample = next(iter(tgm_scale.open_corpus(shards)))
    encoder = tgm_scale.load_encoder(tmp_path / "run")
    assert torch.equal(encoder.read(sample.video), decode_views(sample.video, Views(4, 32, 1, sampling="segments")))
    exported = tmp_path / "exported"
    assert cli.main(["convert", str(tmp_path / "run"), str(exported), "--to", "huggingface"]) == 0
    assert torch.equal(tgm_scale.load_encoder(exported).read(sample.video), encoder.read(sample.video))
    said = f"warning: {tmp_path}/run was trained on frames of whole clips, and here they are 4 apart"
    knn = ["knn", f"encoder.checkpoint={tmp_path}/run", f"data.train={shards}", f"data.test={shards}"]
    knn += ["data.label=truth.objects.0.shape", "data.workers=0"]
    for number, (given, warned) in enumerate((("dense", True), ("segments", False))):
        capfd.readouterr()
        assert cli.main([*knn, f"run.dir={tmp_path}/{number}", f"data.sampling={given}"]) == 0
        assert (said in capfd.readouterr().out) == warned
    views = [json.loads((tmp_path / f"{number}/results.json").read_text())["views"] for number in range(2)]
    assert "4 apart" in views[0] and "one of each 4th of the video" in views[1]


def test_a_preview_draws_as_the_run_does(config: str) -> None:
    found = load(config)
    drawn = sampling_of(found, set(), speaks=False)
    assert drawn == Sampling(4, 4, 32, shape_of(found).grid, seed=0, captions=False, segments=True)
