"""Videos of a list that are others at the next start: said by name, never refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tars import make_corpus

from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.video_list import FILE, SAMPLED
from tgm_scale.training.introduction import introduce


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "v").mkdir()
    for number in range(5):
        (tmp_path / "v" / f"{number}.mp4").write_bytes(b"video")
    (tmp_path / "list.txt").write_text("".join(f"v/{number}.mp4 a cat\n" for number in range(5)))
    return tmp_path


def start(run: Path, *specs: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The warnings of a start."""
    introduce(run, [open_corpus(str(spec)) for spec in specs])
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]


def test_replaced_files_are_said_at_the_next_start(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, both = videos / "run", (videos / "list.txt", videos / "v")
    assert start(run, *both, capsys=capsys) == [] == start(run, *both, capsys=capsys)
    noted = (run / FILE).read_bytes()
    (videos / "v" / "1.mp4").write_bytes(b"another video")
    os.utime(videos / "v" / "3.mp4", ns=(1, 1))
    told = start(run, *both, capsys=capsys)
    assert told == start(run, *both, capsys=capsys), "it is said until the run ends"
    assert len(told) == 2 and (run / FILE).read_bytes() == noted
    assert told[0] == (
        "warning: list.txt: 2 of 5 files that were looked at have another size or time than when the run began "
        "(v/1.mp4, v/3.mp4): it continues with them as they are now"
    )


def test_what_was_noted_may_be_damaged_or_gone(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = videos / "run"
    damaged = dict.fromkeys([b"[]", b"{", b"", b'{"0 list.txt": 3}'], 0)
    for content, lines in (damaged | {b'{"0 list.txt": {"v/1.mp4": 3}}': 1}).items():
        run.mkdir(exist_ok=True)
        (run / FILE).write_bytes(content)
        assert len(start(run, videos / "list.txt", capsys=capsys)) == lines
    (videos / "v" / "1.mp4").unlink()
    (run / FILE).unlink()
    assert start(run, videos / "list.txt", capsys=capsys) == []


def test_shards_need_no_note_and_of_a_long_list_a_part_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert start(run, make_corpus(tmp_path / "c", [2]), capsys=capsys) == [] and not (run / FILE).exists()
    (tmp_path / "v").mkdir()
    for number in range(SAMPLED + 500):
        (tmp_path / "v" / f"{number:04d}.mp4").touch()
    corpus = open_corpus(str(tmp_path / "v"))
    introduce(run, [corpus])
    looked_at = (run / FILE).read_text().count(".mp4")
    assert looked_at == SAMPLED and f"{0:04d}.mp4" in (run / FILE).read_text()
