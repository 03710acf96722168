"""The packaged CLIP knows synthetic clips alone: a run on others by it is told so before its first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from launch import run
from short_run import arguments

from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.training.introduction import warn_of_small_towers

KNOWS = "warning: guidance.towers=small is the CLIP that comes with the package. It has seen synthetic shapes"
SHORT = ["guidance.towers=small", "train.steps=1"]
TEXT_GUIDED = ["masking.recipe=text_guided", "guidance.scorer=raw"]


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        (TEXT_GUIDED, True),
        (["masking.recipe=tube", "objective.contrastive_weight=1"], True),
        (["masking.recipe=attention"], True),
        (["masking.recipe=tube"], False),  # the tower has no say
    ],
)
def test_clips_that_are_not_synthetic(config: Path, given: list[str], warned: bool) -> None:
    assert (KNOWS in run(1, arguments(config, *SHORT, *given)).stdout) == warned


def test_synthetic_clips_are_what_it_knows(config: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "shapes", 16, SyntheticSpec(mode="one_mover"))
    assert KNOWS not in run(1, arguments(config, f"data.shards={tmp_path}/shapes", *SHORT, *TEXT_GUIDED)).stdout


def test_maps_that_it_made_before(config: Path, shards: Path, tmp_path: Path) -> None:
    cache = ["shards", "cache", "--towers", "small", "--scorer", "raw", "--output", str(tmp_path / "cached")]
    subprocess.run([sys.executable, "-m", "tgm_scale", *cache, "--shards", str(shards)], check=True)
    given = [*TEXT_GUIDED, "guidance.cached=true", f"data.shards={tmp_path}/cached"]
    assert KNOWS in run(1, arguments(config, *SHORT, *given)).stdout


@pytest.mark.parametrize(
    ("json", "warned"),
    [({"caption": "a", "truth": "checked by hand"}, True), (b'{"broken', False)],
)
def test_what_a_json_tells_of_its_clip(
    json: dict | bytes, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key called truth is not a synthetic clip's; a json that cannot be read says nothing."""
    make_corpus(tmp_path / "shapes", 16, SyntheticSpec(mode="one_mover"))
    with ShardWriter(tmp_path / "other") as writer:
        writer.write("one", {"mp4": b"not read here", "json": json})
    warn_of_small_towers([open_corpus(tmp_path / "shapes"), open_corpus(tmp_path / "other")], "small")
    assert (KNOWS in capsys.readouterr().out) == warned
