"""When the share of broken samples ends a run: at once where none is whole, and in the last step at the latest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from launch import run
from short_run import arguments, moving_texture

from tgm_scale.checkpoints.checkpoint import Reader
from tgm_scale.contracts import Problem
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runs.status import status
from tgm_scale.training.introduction import few_clips
from tgm_scale.training.reporting import count_problems


def broken(count: int) -> list[Problem]:
    return [Problem(f"a/{i}", "damaged", "cut short") for i in range(count)]


@pytest.mark.parametrize(
    ("so_far", "now", "seen", "last", "stops"),
    [
        (0, 4, 4, False, True),  # none is whole
        (2, 2, 4, False, True),
        (0, 3, 3, False, False),  # too few to say
        (0, 4, 5, False, False),
        (0, 7, 64, False, True),
        (0, 6, 64, False, False),
        (0, 2, 8, True, True),
        (2, 0, 8, True, True),  # none of them in the last step
        (0, 1, 10, True, False),
    ],
)
def test_the_share_is_judged_early_and_at_the_end(so_far: int, now: int, seen: int, last: bool, stops: bool) -> None:
    skipped = {"damaged": so_far} if so_far else {}
    if not stops:
        assert count_problems(skipped, broken(now), seen, 0.1, last) == {"damaged": so_far + now}
        return
    with pytest.raises(ValueError, match=rf"{so_far + now} of {seen} samples were broken \(damaged {so_far + now}\)"):
        count_problems(skipped, broken(now), seen, 0.1, last)
    assert count_problems(skipped, broken(now), seen, 1.0, last), "a limit of 1 tolerates all"


def test_what_a_rollback_leaves_out_is_not_broken() -> None:
    left_out = [Problem(f"b/{i}", "skip_list") for i in range(50)]
    assert count_problems({}, left_out, 100, 0.1, True) == {"skip_list": 50}
    with pytest.raises(ValueError, match=r"11 of 100 samples were broken \(damaged 11\).*; such as a/0: damaged"):
        count_problems({"skip_list": 3}, [*left_out, *broken(11)], 100, 0.1, False)


@pytest.mark.parametrize("whole", [0, 3])
def test_a_small_corpus_of_broken_clips_ends_the_run_and_names_them(config: Path, tmp_path: Path, whole: int) -> None:
    """All four broken: in the first step. One of four: in the last, before 64 clips were seen."""
    video = encode_video(moving_texture(1), 12)
    with ShardWriter(tmp_path / "own", clips_per_shard=4) as writer:
        for i in range(4):
            writer.write(f"clip{i}", {"mp4": video if i < whole else b"no video at all\n" * 20, "json": {}})
    given = [f"data.shards={tmp_path / 'own'}", "data.max_skipped_share=0.1", "train.steps=3"]
    done = run(1, arguments(config, *given), code=2)
    step = 1 if whole == 0 else 3
    assert "Traceback" not in done.stderr and f"not_a_video {2 * step if whole else 8}" in done.stderr
    assert "clip3: not_a_video:" in done.stderr or not whole
    named = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert "warning: a batch of 8 clips (train.global_batch_size) from 4" in done.stdout
    said = status(str(tmp_path / "run"))
    assert "not running: failed" in said
    assert not whole or re.search(r"samples  \d+ videos read, \d of them skipped", said)
    assert named[-1]["step"] == step and all(row["reason"] == "not_a_video" for row in named)


def test_a_batch_of_repeats_is_told_in_clips_and_videos() -> None:
    assert few_clips(4, 8, 2) == [] and few_clips(8, 8, 1) == []
    [said] = few_clips(3, 8, 2)
    assert "a batch of 8 clips (train.global_batch_size), 2 of each video (data.repeated_augmentation), from 3" in said


FINETUNE = """
run: {{dir: {folder}/run}}
data: {{train: {folder}/own, test: {folder}/whole, label: kind, frames: 4, stride: 2, size: 32, workers: 0,
  max_skipped_share: 1}}
finetune: {{rand_augment: null, ema: 0.5, test_temporal_views: 1, test_spatial_views: 1}}
model: {{size: tiny}}
train: {{steps: 4, global_batch_size: 4, micro_batch_size: 4}}
checkpoint: {{every: 1, keep: 9}}
log: {{tensorboard: false, every: 1}}
"""


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_a_step_without_a_usable_clip_makes_no_update_and_has_no_loss(config: Path, tmp_path: Path, task: str) -> None:
    """Two of 16 clips are whole, two clips make a step; weight decay and momentum move nothing either."""
    for name, count in (("own", 16), ("whole", 2)):
        with ShardWriter(tmp_path / name, clips_per_shard=8) as writer:
            for i in range(count):
                video = encode_video(moving_texture(i), 12) if i % 8 == 0 or name == "whole" else b"no video\n" * 20
                writer.write(f"clip{i}", {"mp4": video, "json": {"kind": f"kind {i % 2}"}})
    (tmp_path / "finetune.yaml").write_text(FINETUNE.format(folder=tmp_path))
    small = ["train.steps=8", "train.global_batch_size=2", "train.micro_batch_size=2", "checkpoint.every=1"]
    given = arguments(config, f"data.shards={tmp_path}/own", "data.max_skipped_share=1", *small, "checkpoint.keep=9")
    if task == "finetune":
        given = ["-m", "tgm_scale", "finetune", "--config", str(tmp_path / "finetune.yaml"), "train.steps=8"]
    done = run(1, given)
    rows = read_metrics(tmp_path / "run")
    empty = [row["step"] for row in rows if row["loss"] is None]
    assert 6 <= len(empty) < 8 and not any("not_finite" in row or row["update_refused"] for row in rows)
    assert all(row["loss"] > 0 for row in rows if row["step"] not in empty)
    assert all(row["loss_reconstruction"] is None for row in rows if row["step"] in empty)
    assert all(int(row["data_digest"].partition("-")[2], 16) for row in rows), "clips are read, usable or not"
    made = [Reader(tmp_path / f"run/checkpoints/step-{step:08d}").progress.updates for step in range(1, 9)]
    assert made == [sum(other not in empty for other in range(1, step + 1)) for step in range(1, 9)]

    def weights(step: int) -> dict[str, torch.Tensor]:
        return Reader(tmp_path / f"run/checkpoints/step-{step:08d}").weights()

    for step in range(2, 9):
        same = all(torch.equal(value, weights(step - 1)[name]) for name, value in weights(step).items())
        assert same == (step in empty), step
        assert (f"warning: step {step}: none of its clips can be used" in done.stderr) == (step in empty)


def test_what_the_start_of_a_finetuning_judged_is_not_broken() -> None:
    unlabelled = [Problem(f"{number}", "no_label") for number in range(32)]
    assert count_problems({}, unlabelled, 64, 0.1, True) == {"no_label": 32}
    with pytest.raises(ValueError, match=r"7 of 64 samples were broken \(damaged 7\)"):
        count_problems({"no_label": 32}, broken(7), 64, 0.1, True)
