"""The command that makes a synthetic corpus: what it writes, and what it says to a mistake."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.decode import decode_clip
from tgm_scale.demo.corpus.make import SyntheticSpec, render_clip
from tgm_scale.demo.corpus.truth import read_truth

main = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_synthetic.py"))["main"]
SMALL = ["--clips", "5", "--size", "32", "--frames", "4", "--clips-per-shard", "3"]


def test_the_corpus_is_the_one_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "movers"
    assert main(["--output", str(folder), *SMALL, "--mode", "one_mover", "--seed", "3", "--workers", "1"]) == 0
    assert "5 clips" in capsys.readouterr().out
    corpus = open_corpus(str(folder))
    assert corpus.counts.tolist() == [3, 2]
    read = corpus.read(corpus.sample(1, 1), ["mp4", "json"])
    clip = render_clip(4, SyntheticSpec(size=32, frames=4, seed=3, mode="one_mover"))
    assert (read_truth(read["json"]).named.visible == clip.truth.named.visible).all()
    decoded = decode_clip(read["mp4"], 4, 1, 0.0).video
    assert abs(decoded.astype(float) - clip.frames).mean() < 20, "the same picture, but for H.264"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--difficulty", "2"], "difficulty=2.0"),
        (["--size", "33"], "size=33"),
        (["--mode", "sideways"], "mode=sideways"),
        (["--workers", "0"], "workers=0"),
        (["--fps", "0"], "fps=0.0"),
        (["--clips-per-shard", "0"], "clips_per_shard=0"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], names: str
) -> None:
    assert main(["--output", str(tmp_path / "x"), *SMALL, *options]) == 2
    assert names in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_shards_that_are_there_are_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--output", str(tmp_path / "x"), *SMALL, "--workers", "1"]
    assert main(command) == 0
    before = [(file.name, file.read_bytes()) for file in sorted((tmp_path / "x").iterdir())]
    assert main(command) == 2
    assert "holds shards already" in capsys.readouterr().err
    assert [(file.name, file.read_bytes()) for file in sorted((tmp_path / "x").iterdir())] == before
