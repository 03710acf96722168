"""A file that a command is to write is looked at before the work."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from tgm_scale.cli import main
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.runtime.files import check_folder, check_output

CASES = [
    ("own.csv", "file,caption\n", "there is a file that is no {kind}: name another"),
    ("folder", None, "a folder; wanted a file's name"),
    ("nowhere/x", "", "no folder"),
]


@pytest.mark.parametrize("kind", ["HTML page", "JSON file", "picture"])
@pytest.mark.parametrize(("name", "content", "said"), CASES)
def test_what_is_no_place_for_a_result_is_refused_and_stays(
    tmp_path: Path, kind: str, name: str, content: str | None, said: str
) -> None:
    file = tmp_path / name
    if content is None:
        file.mkdir()
    elif content:
        file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"--output {file}: {said.format(kind=kind)}")):
        check_output("--output", file, kind)
    assert not content or file.read_text() == content


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("HTML page", b"\n<!DOCTYPE html>"),
        ("JSON file", b" [1]"),
        ("picture", b"\x89PNG\r\n"),
        ("picture", b"\xff\xd8\xff"),
        ("JSON file", b""),
    ],
)
def test_its_own_kind_is_written_over(tmp_path: Path, kind: str, content: bytes) -> None:
    check_output("--output", tmp_path / "new", kind)
    (tmp_path / "old").write_bytes(content)
    check_output("--output", tmp_path / "old", kind)
    check_output("--json", Path("/dev/stdout"), "JSON file")


def test_shared_memory_is_a_place_like_any_other() -> None:
    with tempfile.NamedTemporaryFile("w", dir="/dev/shm") as file:
        file.write("my notes")
        file.flush()
        with pytest.raises(ValueError, match="no JSON file"):
            check_output("--json", Path(file.name), "JSON file")


@pytest.mark.parametrize("option", ["--report", "--sheet"])
def test_shards_check_says_so_before_it_opens_anything(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.png").write_text("mine")
    assert main(["shards", "check", "--shards", str(tmp_path / "none"), option, str(tmp_path / "own.png")]) == 2
    assert f"{option} {tmp_path}/own.png: there is a file that is no" in capsys.readouterr().err
    assert (tmp_path / "own.png").read_text() == "mine"


def test_a_benchmark_says_so_before_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "memory", "--json", str(tmp_path / "no" / "x.json")]) == 2
    said = capsys.readouterr()
    assert "its folder is not there" in said.err and said.out == ""


@pytest.fixture
def dangling(tmp_path: Path) -> Path:
    link = tmp_path / "dang"
    link.symlink_to(tmp_path / "nowhere")
    return link


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_link_to_nothing_is_no_place_for_a_folder(dangling: Path, below: str) -> None:
    said = f"--output {dangling}: a link to nothing: {dangling.parent}/nowhere is not there: make it, or name another"
    with pytest.raises(ValueError, match=re.escape(said)):
        check_folder("--output", dangling / below)


def test_a_link_to_itself_is_one_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="loop: a link to nothing: loop is not there"):
        check_folder("--output", tmp_path / "loop")


def test_a_folder_is_looked_at_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--output .*file: found a file where a folder is wanted: name another"):
        check_folder("--output", tmp_path / "file" / "x")
    with pytest.raises(ValueError, match=r"--output /proc/x/y: cannot be made \(No such file or directory\)"):
        check_folder("--output", Path("/proc/x/y"))
    check_folder("--output", tmp_path / "new" / "one")
    (tmp_path / "linked").symlink_to(tmp_path / "there")
    (tmp_path / "there").mkdir()
    check_folder("--output", tmp_path / "linked" / "x")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "linked", "there"]
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("kind", ["HTML page", "JSON file", "picture"])
def test_a_file_is_not_written_through_a_link_to_nothing(dangling: Path, kind: str) -> None:
    for file in (dangling, dangling / "x"):
        with pytest.raises(ValueError, match=f"--json .*{dangling}: a link to nothing"):
            check_output("--json", file, kind)
    with pytest.raises(ValueError, match=r"--json .*cannot be written"):
        check_output("--json", Path("/proc/x.json"), kind)
    assert not (dangling.parent / "nowhere").exists()


@pytest.mark.parametrize(
    "given",
    [
        ["benchmark", "growth", "--size", "tiny", "--output", "OUT"],
        ["benchmark", "footprint", "--dir", "OUT"],
        ["benchmark", "checkpoint", "--folder", "OUT"],
        ["shards", "cache", "--shards", "SHARDS", "--towers", "nowhere", "--output", "OUT"],
        ["shards", "caption", "--shards", "SHARDS", "--classes", "label", "--output", "OUT"],
        ["shards", "make", "--annotations", "nowhere", "--videos", "SHARDS", "--output", "OUT"],
        ["masks", "evaluate", "--videos", "SHARDS", "--output", "OUT"],
        ["tune", "--config", "debug", "--dir", "OUT"],
        ["pretrain", "--config", "debug", "run.dir=OUT"],
        ["study", "--config", "study/terms", "run.dir=OUT", "--tables"],
    ],
)
@pytest.mark.parametrize("place", ["dang", "dang/x", "/proc/x"])
def test_a_command_says_so_before_its_work(
    dangling: Path, given: list[str], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus(dangling.parent / "shards", 2, SyntheticSpec())
    out = str(dangling.parent / place)
    words = [word.replace("OUT", out).replace("SHARDS", str(dangling.parent / "shards")) for word in given]
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Errno" not in said and "resumes" not in said
    assert f"{out}: cannot be" in said if place == "/proc/x" else f"{dangling}: a link to nothing" in said
    assert not (dangling.parent / "nowhere").exists()
