"""Preflight of a finetuning run: what it will use is tried, and what would fail is named."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import finished
from torch import Tensor

from tgm_scale import cli
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.evaluation.settings import load_finetune
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.preflight.command import SETUP_MISTAKE
from tgm_scale.preflight.task_checks import FinetuningChecks
from tgm_scale.runtime.distributed import ProcessInfo

ALONE = ProcessInfo(0, 1, 0, torch.device("cpu"))
CONFIG = """
run: {{dir: {folder}/run}}
data: {{train: {folder}/shards, test: {folder}/shards, frames: 4, stride: 2, size: 32, workers: 2}}
finetune: {{ema: 0.9}}
model: {{size: tiny}}
train: {{steps: 4, global_batch_size: 8, micro_batch_size: 4}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of a configuration, and eight clips of two classes; every second one is no video."""
    video = encode_video(np.zeros((8, 32, 32, 3), np.uint8), 8)
    with ShardWriter(tmp_path / "shards") as writer:
        for k in range(8):
            writer.write(f"c{k}", {"mp4": b"<html>" if k % 4 == 1 else video, "json": {"label": f"kind {k % 2}"}})
    found = tmp_path / "finetune.yaml"
    found.write_text(CONFIG.format(folder=tmp_path))
    return found


def preflight(file: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return finished(["-m", "tgm_scale", "preflight", "--config", str(file), *overrides])


def test_a_clip_its_label_the_weights_and_a_step_are_tried(file: Path) -> None:
    """Nothing is left behind."""
    ended = preflight(file)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    clip, label, weights, step, last = ended.stdout.strip().splitlines()
    assert clip.startswith("tried a clip, 00000/c") and clip.endswith(": 4x32x32 pixels")
    assert label.startswith("tried its label 'kind ")
    assert label.endswith(": one of 2 classes") and weights == "tried fresh weights: nothing pretrained"
    assert step.startswith("tried a step of the model, 4 clips in fp32: ")
    assert last.startswith("preflight: processes: 1 on CPU")
    assert sorted(path.name for path in file.parent.iterdir()) == ["finetune.yaml", "shards"]


def test_the_norm_before_the_head_is_tried_with_the_statistics_of_its_clips(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    forward = VideoClassifier.forward

    def recorded(model: VideoClassifier, video: Tensor, seeds: Tensor, norm: Tensor | None = None) -> Any:
        norms.append(norm)
        return forward(model, video, seeds, norm)

    monkeypatch.setattr(VideoClassifier, "forward", recorded)
    lines = FinetuningChecks(load_finetune(str(file), ["finetune.head_norm=batch"])).try_run(ALONE)
    assert any(line.startswith("a step of the model, 4 clips in fp32: ") for line in lines)
    none_2D, of_clips_2D = norms
    assert torch.equal(none_2D, torch.tensor([[0.0], [1.0]]).expand_as(none_2D))
    assert of_clips_2D[0].abs().min() > 0 and not (of_clips_2D[1] == 1).any(), "a mean and a deviation of their own"


def test_a_mistake_ends_with_its_code(file: Path) -> None:
    ended = preflight(file, "data.label=verb")
    assert ended.returncode == SETUP_MISTAKE and "no sample's json has a value at 'verb'" in ended.stdout


def test_weights_of_another_model_are_named(file: Path) -> None:
    other = file.parent / "other.pth"
    torch.save({"something": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match=r"other.pth: "):
        FinetuningChecks(load_finetune(str(file), [f"train.init_from={other}"])).try_run(ALONE)


def test_videos_of_which_none_can_be_decoded_are_named(file: Path) -> None:
    with ShardWriter(file.parent / "broken") as writer:
        for k in range(8):
            writer.write(f"c{k}", {"mp4": b"<html>", "json": {"label": f"kind {k % 2}"}})
    config = load_finetune(str(file), [f"data.train={file.parent}/broken"])
    with pytest.raises(ValueError, match=r"data.train: none of the first 8 clips of rank 0 .* not_a_video"):
        FinetuningChecks(config).try_run(ALONE)


def test_the_disk_and_the_combination_of_keys_are_looked_at(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["preflight", "--config", str(file)]
    assert cli.main([*given, "deepspeed.stage=3"]) == SETUP_MISTAKE
    assert "finetune.ema averages whole weights" in capsys.readouterr().out
    large = ["model.size=g", "model.patch=8", "checkpoint.keep=100000", "train.steps=50000000"]
    assert cli.main([*given, *large]) == SETUP_MISTAKE
    assert "its checkpoints take" in capsys.readouterr().out


def test_a_configuration_that_trains_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "probe.yaml"
    file.write_text(f"run: {{dir: {tmp_path}/run}}\ndata: {{train: a, test: a}}\nencoder: {{checkpoint: random}}\n")
    assert cli.main(["preflight", "--config", str(file)]) == 2
    assert "of frozen features" in capsys.readouterr().err
