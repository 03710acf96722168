"""When the share of broken samples ends a run: at once where none is whole, and in the last step at the latest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import run
from short_run import arguments, moving_texture

from tgm_scale.contracts import Problem
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.runs.status import status
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
    assert "nothing is at work: failed" in status(str(tmp_path / "run"))
    assert named[-1]["step"] == step and all(row["reason"] == "not_a_video" for row in named)
