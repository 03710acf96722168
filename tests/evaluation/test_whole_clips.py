"""Pretraining on frames of whole clips (data.sampling=segments): what is drawn, and that a reader takes them alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import run

import tgm_scale
from tgm_scale import cli
from tgm_scale.assembly.run_plan import shape_of
from tgm_scale.config import load
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.evaluation.views import Views, decode_views
from tgm_scale.preview.clips import sampling_of
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.compat import prepare_torchvision

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


def pretrain(config: str, *more: str, world_size: int = 1) -> str:
    """What it prints."""
    return run(world_size, ["-m", "tgm_scale", "pretrain", "--config", config, *more]).stdout


def test_whole_clips_are_the_same_by_workers_and_ranks_and_no_windows(config: str, tmp_path: Path) -> None:
    pretrain(config)
    unlike = {"jitter": "data.time_jitter=0.5", "standard": "data.standardise=true"}
    for name, given in unlike.items():
        pretrain(config, f"run.dir={tmp_path}/{name}", given)
    pretrain(config, f"run.dir={tmp_path}/one", *unlike.values())
    pretrain(config, f"run.dir={tmp_path}/both", *unlike.values(), "data.workers=1", world_size=2)
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    found = [losses(tmp_path / name) for name in ("run", *unlike, "one")]
    assert len({tuple(round(loss, 4) for loss in of_run) for of_run in found}) == 4
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


def test_a_reader_brings_clips_to_the_brightness_and_contrast_of_the_training(
    config: str, tmp_path: Path, shards: str, capfd: pytest.CaptureFixture[str]
) -> None:
    printed = pretrain(config, "data.standardise=true")
    assert f"encoder.checkpoint={tmp_path}/run data.sampling=segments data.train=" in printed
    on = [f"train.init_from={tmp_path}/run", "data.sampling=dense", "data.stride=1", "train.steps=1"]
    printed = pretrain(config, f"run.dir={tmp_path}/on", *on)
    warned = [line for line in printed.splitlines() if line.startswith("warning: trained before")]
    assert len(warned) == 2 and "whole clips, and here they are 1 apart" in warned[0]
    assert "data.standardise=true, and here with false" in warned[1]
    video = next(iter(tgm_scale.open_corpus(shards))).video
    encoder, exported = tgm_scale.load_encoder(tmp_path / "run"), tmp_path / "exported"
    wanted, filmed = (decode_views(video, Views(4, 32, 1, "segments", standardise=given)) for given in (True, False))
    assert torch.equal(encoder.read(video), wanted) and not torch.equal(wanted, filmed)
    assert (encoder.sampling, encoder.standardise) == ("segments", True)
    assert repr(encoder) == "VideoEncoder(frames=4, size=32, sampling='segments', width=128, standardise=True)"
    capfd.readouterr()
    assert cli.main(["convert", str(tmp_path / "run"), str(exported), "--to", "huggingface"]) == 0
    told = "trained on clips of a frame of each of 4 equal parts of a video (data.sampling=segments), of mean 116 and"
    assert f"note     {told} deviation 57 (data.standardise): the format has no place" in capfd.readouterr().out
    card = (exported / "README.md").read_text()
    assert f"The model was {told}" in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    frames = filmed[0].permute(1, 2, 3, 0).numpy()
    given, count = re.subn(r"list\(np.zeros\(.*?\)\)", "list(FILMED)", code)
    prepare_torchvision()
    found: dict[str, Any] = {"FILMED": frames}
    exec(given.replace('folder = "."', f"folder = {str(exported)!r}"), found)
    assert count == 1 and torch.allclose(found["feature"], encoder(video), atol=0.02)
    assert not torch.allclose(found["feature"], encoder(filmed), atol=0.02)
    assert torch.equal(tgm_scale.load_encoder(exported).read(video), wanted)
    knn = ["knn", f"encoder.checkpoint={tmp_path}/run", f"data.train={shards}", f"data.test={shards}"]
    knn += ["data.label=truth.objects.0.shape", "data.workers=0", "data.sampling=segments"]
    capfd.readouterr()
    for number, (given, said) in enumerate(
        (([], True), (["data.standardise=false"], False), (["encoder.checkpoint=random", *_RANDOM], False))
    ):
        assert cli.main([*knn, f"run.dir={tmp_path}/{number}", *given]) == 0
        assert ("standardised" in json.loads((tmp_path / f"{number}/results.json").read_text())["views"]) == said
    for number, given in enumerate((["data.standardise=false"], [])):  # another reading is no going on
        assert cli.main([*knn, f"run.dir={tmp_path}/{number}", *given]) == 2
        assert "data.standardise" in capfd.readouterr().err


_RANDOM = ["encoder.size=tiny", "encoder.frames=4", "encoder.image_size=32"]


def test_a_preview_draws_as_the_run_does(config: str) -> None:
    for given, of_clips in (([], {}), (["data.time_jitter=0.2", "data.standardise=true"], JITTERED)):
        found = load(config, given)
        drawn = sampling_of(found, set(), speaks=False)
        assert drawn == Sampling(4, 4, 32, shape_of(found).grid, 0, captions=False, segments=True, **of_clips)


JITTERED: dict[str, Any] = {"time_jitter": 0.2, "standardise": True}


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_windows_have_no_time_jitter(command: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [] if command == "pretrain" else ["--config", "configs/finetune_few_clips.yaml"]
    given = given or ["--config", config]
    assert cli.main([command, *given, "data.sampling=dense", "data.time_jitter=0.1"]) == 2
    said = capsys.readouterr().err
    assert "data.time_jitter=0.1: it is of frames of whole clips; set data.sampling=segments" in said
