"""How a run ended is said by its last line and by `tgm-scale status`, and the way on; tiny corpora are named."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT, environment, run
from short_run import arguments, moving_texture, start, wait_for_checkpoint, wait_for_steps
from starts import Started

from tgm_scale.assembly.corpora import MADE_BY, make_synthetic, refuse_one_clip
from tgm_scale.config import Config, load
from tgm_scale.config.sections import ObjectiveConfig
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.runs.status import status
from tgm_scale.training.introduction import few_clips, other_synthetic
from tgm_scale.training.preemption import REQUEUE_EXIT_CODE


def field(folder: Path, name: str) -> str | None:
    """A line of the run's status."""
    return next(line.split(None, 1)[1] for line in status(str(folder)).splitlines() if line.strip().startswith(name))


def test_a_finished_run_says_where_it_is_and_what_comes_next(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = run(1, arguments(config, "train.steps=2", "guidance.cached=true")).stdout
    last = said.splitlines()[-1]
    assert "not used by masks of random and 1 pixels" in said and "guidance.cached" in said
    assert last.startswith("done: made 2 steps in 0:00:") and "loss " in last and f"The run is in {folder};" in last
    assert f"tgm-scale probe run.dir={folder}-probe encoder.checkpoint={folder} data.train=" in last
    assert field(folder, "state") == "finished" and "resume" not in status(str(folder))
    again = run(1, arguments(config, "train.steps=2", "guidance.cached=true")).stdout.splitlines()
    assert again[-1].startswith("done: no step was left to make.")
    shutil.rmtree(folder / "checkpoints" / "step-00000002")  # as where it could not be written
    assert str(field(folder, "state")).startswith("not running: ") and "resume" in status(str(folder))


def test_of_too_few_clips_for_a_probe_nearest_neighbours_are_named(config: Path, tmp_path: Path) -> None:
    few = f"data.shards={clips(tmp_path / 'few', 9)}"
    last = run(1, arguments(config, "train.steps=1", few)).stdout.splitlines()[-1]
    assert f"tgm-scale knn run.dir={tmp_path}/run-knn encoder.checkpoint=" in last


def test_a_command_leaves_no_folder_of_its_workers(config: Path, tmp_path: Path) -> None:
    """It ends without the interpreter's own end, which would remove it."""
    (there := tmp_path / "temporary").mkdir()
    given = arguments(config, "train.steps=1", "data.workers=1")
    subprocess.run([sys.executable, *given], env={**environment(), "TMPDIR": str(there)}, cwd=ROOT, check=True)
    assert {file.name.partition("_")[0] for file in there.iterdir()} <= {"torchinductor"}, "torch's cache, which stays"


def test_a_run_that_was_killed_or_stopped_says_so_and_goes_on_by_the_command_that_is_said(
    config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    killed = start(config, 1)
    wait_for_steps(folder, 7)
    wait_for_checkpoint(folder, 5)
    assert str(field(folder, "state")).startswith("running, last heartbeat ")
    killed.kill()
    killed.communicate()
    state = f"not running: its process (pid {killed.pid}) was killed, last heartbeat 0:00:"
    assert str(field(folder, "state")).startswith(state)
    assert str(field(folder, "checkpoint")).startswith("step-0000")
    words = shlex.split(str(field(folder, "resume")).partition("or: ")[2])
    assert words[0] == "tgm-scale"
    again = Started(["-m", "tgm_scale", *words[1:]], environment(), ROOT)
    wait_for_steps(folder, 12)
    again.send_signal(signal.SIGTERM)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == REQUEUE_EXIT_CODE and "resuming from step 5" in said
    assert str(field(folder, "state")).startswith("not running: stopped by SIGTERM 0:00:")


def clips(folder: Path, count: int) -> Path:
    with ShardWriter(folder) as writer:
        for i in range(count):
            members = {"mp4": encode_video(moving_texture(i), 12), "json": {"captions": [f"texture {i}"]}}
            writer.write(f"clip{i}", members)
    return folder


def joint(config: Path, *overrides: str) -> Config:
    return load(config, ["guidance.towers=small", "objective.contrastive_weight=1", *overrides])


def test_one_clip_has_no_other_to_be_told_from(config: Path, tmp_path: Path) -> None:
    one, two = clips(tmp_path / "one", 1), clips(tmp_path / "two", 2)
    with pytest.raises(ValueError, match=r"objective\.contrastive_weight=1 tells clips .* /.*/one has one clip: give"):
        refuse_one_clip([open_corpus(str(one))], ObjectiveConfig())
    refuse_one_clip([open_corpus(str(two))], ObjectiveConfig())
    refuse_one_clip([open_corpus(str(one))], ObjectiveConfig(contrastive_weight=0.0))
    for of in ("train.global_batch_size=1", "objective.contrastive_batch=2"):
        size = ["train.micro_batch_size=1"] if "train" in of else ["data.repeated_augmentation=2"]
        with pytest.raises(ValueError, match=rf"{of} is one clip .* set objective\.contrastive_weight=0"):
            joint(config, of, *size)
    load(config, ["train.global_batch_size=1", "train.micro_batch_size=1"])


def test_a_batch_of_more_than_all_clips_is_said() -> None:
    assert few_clips(8, 8, 1) == []
    assert few_clips(3, 8, 1) == [
        "warning: a batch of 8 clips (train.global_batch_size) from 3: each step has some of them more than once"
    ]


def test_a_corpus_that_was_made_otherwise_is_said(config: Path, tmp_path: Path) -> None:
    shards = tmp_path / "made"

    def told(*overrides: str) -> list[str]:
        found = load(config, [f"data.shards={shards}", "data.synthetic.clips=2", *overrides])
        make_synthetic(found.data)
        return other_synthetic(found.data, open_corpus(str(shards)))

    assert not told()
    for key, value, words in (("clips", 5, "clips 2, not 5"), ("seed", 1, "seed 0, not 1")):
        [line] = told(f"data.synthetic.{key}={value}")
        assert f"made is there, made with {words}: data.synthetic makes none" in line
    [line] = told("data.synthetic.mode=one_mover", "data.synthetic.seed=1")
    assert "mode named, not one_mover, seed 0, not 1" in line
    (shards / MADE_BY).unlink()  # as corpora of before
    assert not told("data.synthetic.seed=1") and "clips 2, not 5" in told("data.synthetic.clips=5")[0]
    assert not other_synthetic(load(config, [f"data.shards={shards}"]).data, open_corpus(str(shards)))
