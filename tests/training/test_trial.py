"""Preflight tries what a run will use, and names what would fail."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import ROOT, environment, finished

from tgm_scale import config as configuration
from tgm_scale.assembly import disk
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.config import Config
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.engine.extensions import BUILD_SECONDS
from tgm_scale.evaluation.settings import load_finetune
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.preflight import node_checks
from tgm_scale.preflight.task_checks import PretrainingChecks
from tgm_scale.preflight.verdict import TESTED, untested
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training import opening

ALONE = ProcessInfo(0, 1, 0, torch.device("cpu"))


def config(folder: Path, *overrides: str) -> Config:
    given = [f"run.dir={folder}/run", f"data.shards={folder}/shards", "data.synthetic.clips=64", *overrides]
    return configuration.load(ROOT / "configs/debug.yaml", given)


def preflight(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = [f"run.dir={folder}/run", f"data.shards={folder}/shards", "data.synthetic.clips=64", *arguments]
    return finished(["-m", "tgm_scale", "preflight", "--config", "debug", *given], environment() | variables)


def test_a_clip_its_caption_its_mask_and_a_step_are_tried(tmp_path: Path) -> None:
    """Before the synthetic corpus is made; nothing is left behind."""
    ended = preflight(tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    clip, caption, mask, step, last = ended.stdout.strip().splitlines()
    assert clip.startswith("tried a clip, ") and clip.endswith(": 8x64x64 pixels")
    assert caption.startswith("tried its caption '") and caption.endswith(": an embedding of 128")
    assert mask == "tried its mask: 104 tokens seen, 152 painted"
    assert step.startswith("tried a step of the model, 1 clips in fp32: ")
    assert last.startswith("preflight: processes: 1 on CPU")
    assert not (tmp_path / "shards").exists()


def test_what_another_package_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of another version takes other arguments."""
    from tgm_scale.data.video import decode

    monkeypatch.setattr(decode, "any_metadata", lambda version: {"an_argument_of_tomorrow": True})
    with pytest.raises(RuntimeError, match=r"TypeError: .*an_argument_of_tomorrow"):
        PretrainingChecks(config(tmp_path)).try_run(ALONE)


def test_a_corpus_of_which_nothing_can_be_decoded_is_named(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards") as writer:
        for k in range(4):
            writer.write(f"c{k}", {"mp4": b"<html>", "json": {"captions": ["a"]}})
    with pytest.raises(ValueError, match=r"none of the first 8 clips of rank 0 can be used \(\d+ not_a_video\)"):
        PretrainingChecks(config(tmp_path, "data.synthetic=null")).try_run(ALONE)


def test_a_broken_clip_among_good_ones_is_passed_over(tmp_path: Path) -> None:
    video = encode_video(np.zeros((8, 64, 64, 3), np.uint8), 8)
    with ShardWriter(tmp_path / "shards") as writer:
        for k in range(6):
            writer.write(f"c{k}", {"mp4": b"<html>" if k % 2 else video, "json": {"captions": ["a"]}})
    assert PretrainingChecks(config(tmp_path, "data.synthetic=null")).try_run(ALONE)


def test_a_step_that_takes_long_on_a_cpu_is_left_out_and_said(tmp_path: Path) -> None:
    large = config(tmp_path, "model.size=B", "data.size=224", "data.frames=16")
    assert "no step of the model: it would take long on a CPU" in PretrainingChecks(large).try_run(ALONE)


def test_cards_that_nccl_cannot_use_are_named(tmp_path: Path) -> None:
    node_checks.check_infiniband(tmp_path / "absent", "libnowhere.so.1")
    node_checks.check_infiniband(tmp_path, "libnowhere.so.1")
    (tmp_path / "mlx5_0").mkdir()
    node_checks.check_infiniband(tmp_path, "libc.so.6")
    with pytest.raises(ValueError, match=r"cards mlx5_0, but libnowhere\.so\.1 cannot be loaded: .*libibverbs1"):
        node_checks.check_infiniband(tmp_path, "libnowhere.so.1")


def test_checkpoints_that_cannot_be_written_end_a_start_at_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    given = [f"run.dir={tmp_path}/run", f"data.shards={tmp_path}/shards", "data.synthetic.clips=64"]
    ended = finished(["-m", "tgm_scale", "pretrain", "--config", "debug", *given])
    assert ended.returncode == 2 and "checkpoints: something else has the name of a run's file" in ended.stderr
    assert not (tmp_path / "shards").exists()


def check_room(found: Config) -> None:
    opening.check_room(found, plan_pretraining(found, ALONE), Path(found.run.dir))


def test_checkpoints_that_have_no_room_are_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    check_room(config(tmp_path))
    with pytest.raises(ValueError, match=r"GB free, its checkpoints take .* GB: make room"):
        check_room(config(tmp_path, "model.size=g", "model.patch=8", "checkpoint.keep=100000", "train.steps=2000000"))


def test_what_a_checkpoint_takes_is_that_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*overrides: str) -> int:
        found = config(tmp_path, *overrides)
        return opening.checkpoint_bytes(found, plan_pretraining(found, ALONE))

    plan = plan_pretraining(config(tmp_path), ALONE)
    model = MaskedVideoAutoencoder(plan.shape.size, plan.shape.frames, plan.shape.image_size)
    assert taken() == pytest.approx(12 * sum(value.numel() for value in model.parameters()), rel=0.1)
    assert taken("optim.name=lion") == pytest.approx(taken() * 2 / 3)
    assert taken("masking.recipe=adamae", "masking.options={}") > 1.1 * taken(), "a block more"
    averaged, plain = (load_finetune("finetune_few_clips", [f"finetune.ema={value}"]) for value in ("0.99", "null"))
    assert opening.checkpoint_bytes(averaged, plan) == pytest.approx(opening.checkpoint_bytes(plain, plan) * 4 / 3)

    found = config(tmp_path, "train.steps=1000")
    needed = 1000 * disk._more(found.checkpoint, 1000, [])
    for free, enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        with contextlib.nullcontext() if enough else pytest.raises(ValueError, match="make room"):
            disk.check_room(tmp_path, found.checkpoint, 1000, 1000)


@pytest.mark.parametrize(
    ("there", "overrides", "more"),
    [
        ([], [], 4),
        ([10], [], 3),
        ([10, 20, 30], [], 1),
        ([10, 20, 30], ["checkpoint.keep_every=20"], 2),
        ([20 * n for n in range(1, 9)], ["checkpoint.keep_every=20"], 3),
        ([970, 980, 990], [], 1),
        ([980], ["checkpoint.every=500"], 1),
        ([1000], [], 0),
    ],
)
def test_room_is_asked_for_what_is_still_to_be_written(
    tmp_path: Path, there: list[int], overrides: list[str], more: int
) -> None:
    given = ["train.steps=1000", "checkpoint.keep=3", "checkpoint.every=10", *overrides]
    found = config(tmp_path, *given)
    assert disk._more(found.checkpoint, found.train.steps, there) == more


def test_a_lock_is_cleared_where_it_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    plan = PretrainingChecks(config(tmp_path)).plan(ALONE)
    assert node_checks.try_extensions(plan, ALONE, clear=True) == [] and lock.exists(), "it may be another's"
    old = time.time() - BUILD_SECONDS - 1
    os.utime(lock, (old, old))
    assert node_checks.try_extensions(plan, ALONE, clear=False) == [] and lock.exists()
    assert node_checks.try_extensions(plan, ALONE, clear=True) == [f"{lock}: removed"]
    assert not lock.exists()


def test_versions_that_were_never_tried_are_said() -> None:
    newest = {name: newest for name, (_, newest) in TESTED.items()}
    assert untested(newest | {"torch": TESTED["torch"][1] + "+cpu", "webdataset": "9", "av": None}) == []
    for version in ("2.7.1", "9.0.0rc1"):
        [line] = untested(newest | {"torch": version})
        assert line.startswith(f"warning: torch {version} was never tried")


def test_the_lowest_that_were_tried_are_the_bounds() -> None:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    bounds = dict(line.split(",")[0].split(">=") for line in parser["options"]["install_requires"].split() if line)
    for name, (lowest, _) in TESTED.items():
        assert f"{bounds[name]}.0.0".startswith(lowest) or bounds[name] == lowest, name
