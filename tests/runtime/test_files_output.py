"""A file that a command is to write is looked at before the work."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from tgm_scale.cli import main
from tgm_scale.runtime.files import check_output

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
