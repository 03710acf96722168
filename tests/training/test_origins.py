"""What a run reads beside its data is known by content: it may move, and it may not become another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from launch import run
from safetensors.torch import load_file, save_file

from tgm_scale import cli
from tgm_scale.checkpoints.folders import MANIFEST, folder_of
from tgm_scale.config import Config, from_tree
from tgm_scale.runs import origins, run_folder
from tgm_scale.runs.metrics import read_metrics

CONFIG = """
run: {{dir: {folder}/run}}
data: {{shards: {shards}, frames: 4, stride: 2, size: 32, workers: 0, max_skipped_share: 0.2}}
guidance: {{towers: {folder}/towers}}
masking: {{recipe: text_guided, mask_ratio: 0.6}}
model: {{size: tiny}}
train: {{steps: 4, global_batch_size: 4, micro_batch_size: 4}}
checkpoint: {{every: 2}}
log: {{every: 1, tensorboard: false}}
"""


def retouched(folder: Path) -> None:
    """Another model of the same size and shape, at the same path."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["text_projection.weight"] += 1.0
    size = file.stat().st_size
    save_file(weights, file, metadata={"format": "pt"})
    assert file.stat().st_size == size


def test_a_run_goes_on_after_its_tower_was_moved_and_not_with_another(
    tmp_path: Path, shards: Path, towers: Path
) -> None:
    shutil.copytree(towers, tmp_path / "towers")
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.format(folder=tmp_path, shards=shards))
    command = ["-m", "tgm_scale", "pretrain", "--config", str(file)]
    run(1, [*command, f"run.dir={tmp_path / 'whole'}"], 0)
    run(1, [*command, "train.max_minutes=1e-9"], 85)
    assert len(read_metrics(tmp_path / "run")) < 4

    (tmp_path / "towers").rename(tmp_path / "moved")
    moved = f"guidance.towers={tmp_path / 'moved'}"
    shutil.copytree(tmp_path / "moved", tmp_path / "other")
    retouched(tmp_path / "other")
    message = run(1, [*command, f"guidance.towers={tmp_path / 'other'}"], 2).stderr
    assert "guidance.towers: '" in message and "with another model.safetensors" in message
    run(1, [*command, moved], 0)
    rows, whole = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "whole")
    assert [(row["data_digest"], row["loss"]) for row in rows] == [(row["data_digest"], row["loss"]) for row in whole]

    retouched(tmp_path / "moved")
    message = run(1, [*command, moved], 2).stderr
    assert "has another model.safetensors than the run was started with" in message


def configured(folder: Path, **origin: str | int | None) -> Config:
    tree: dict = {
        "run": {"dir": str(folder / "run")},
        "data": {"shards": "data/x"},
        "objective": {"contrastive_weight": 0},
        "guidance": {},
        "train": {"steps": 10},
    }
    for name, value in origin.items():
        section, _, key = name.partition("_")
        tree[section][key] = value
    return from_tree(tree)


def start(config: Config, step: int = 0) -> None:
    run_folder.write_start(run_folder.open_folder(config), config, [], {}, step)


def refused(config: Config, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        start(config, step=5)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_run_that_is_to_last_longer_is_told_how(tmp_path: Path) -> None:
    start(configured(tmp_path))
    onward = f"to a new folder (there, train.init_from={tmp_path / 'run'} goes on from these weights"
    for saved in (False, True):
        for more, there in ({"train_steps": 20}, saved), ({"train_steps": 20, "train_global_batch_size": 8}, False):
            with pytest.raises(ValueError, match=r"train.steps: 10 there, 20 here") as caught:
                start(configured(tmp_path, **more))
            assert (onward in str(caught.value)) == there
        folder = folder_of(tmp_path / "run" / "checkpoints", 10)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).touch()


def test_a_folder_of_before_goes_by_the_path_and_says_so(tmp_path: Path, towers: Path) -> None:
    start(configured(tmp_path, guidance_towers=str(towers)))
    (tmp_path / "run" / origins.FILE).unlink()
    moved = tmp_path / "moved"
    shutil.copytree(towers, moved)
    refused(configured(tmp_path, guidance_towers=str(moved)), "origins.json does not say what was there")
    start(configured(tmp_path, guidance_towers=str(towers)), step=5)
    start(configured(tmp_path, guidance_towers=str(moved)), step=5)  # the start before has noted it


@pytest.mark.parametrize("content", ["", "[]", '{"guidance.towers": 5}', "\udcff", '{"a": {"b": {}}}'])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, towers: Path, content: str) -> None:
    start(configured(tmp_path, guidance_towers=str(towers)))
    file = tmp_path / "run" / origins.FILE
    file.write_bytes(content.encode(errors="surrogateescape"))
    refused(configured(tmp_path, guidance_towers=str(towers)), str(file), "remove it")
    file.unlink()
    start(configured(tmp_path, guidance_towers=str(towers)), step=5)


def test_what_is_read_once_may_be_gone_later(tmp_path: Path) -> None:
    first, other, gone = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "c.pth"
    torch.save({"x": torch.zeros(3)}, first)
    torch.save({"x": torch.ones(3)}, other)
    start(configured(tmp_path, train_init_from=str(first)))
    first.rename(gone)
    start(configured(tmp_path, train_init_from=str(first)), step=5)
    start(configured(tmp_path, train_init_from=str(gone)), step=5)
    refused(configured(tmp_path, train_init_from=str(other)), "train.init_from", "with other weights")
    refused(configured(tmp_path, train_init_from=str(tmp_path / "d")), "train.init_from", "no weights are found")
    refused(configured(tmp_path), "train.init_from", "None here")


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_weights_to_begin_from_that_are_not_there_are_told_before_a_folder_is_made(
    tmp_path: Path, command: str, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = f"train.init_from={tmp_path / 'gone'}"
    given = ["--config", "configs/debug.yaml", f"data.shards={shards}"]
    if command == "finetune":
        given = ["--config", "configs/finetune_few_clips.yaml", f"data.train={shards}", f"data.test={shards}"]
    assert cli.main([command, *given, gone, f"run.dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.endswith(f"tgm-scale {command}: {gone}: no such file or folder\n")
    assert not (tmp_path / "run").exists()


def test_the_flows_weights_are_known_by_content(tmp_path: Path) -> None:
    raft, moved = tmp_path / "raft.pth", tmp_path / "raft2.pth"
    torch.save({"x": torch.zeros(3)}, raft)
    start(configured(tmp_path, guidance_flow=str(raft)))
    raft.rename(moved)
    start(configured(tmp_path, guidance_flow=str(moved)), step=5)
    refused(configured(tmp_path, guidance_flow="dis"), "guidance.flow", "'dis' here")
    torch.save({"x": torch.ones(3)}, moved)
    refused(configured(tmp_path, guidance_flow=str(moved)), "guidance.flow", "has other weights")


def test_a_start_reads_only_what_has_changed(tmp_path: Path, towers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower of 3.5 GB takes seconds to read, on every rank."""
    config = configured(tmp_path, guidance_towers=str(towers))
    start(config)
    read = []
    digest = origins.hashlib.file_digest
    monkeypatch.setattr(origins.hashlib, "file_digest", lambda s, name: read.append(s.name) or digest(s, name))
    start(config, step=5)
    assert not read
    os.utime(towers / "config.json")
    start(config, step=5)
    assert {Path(name).name for name in read} == {"config.json"}
