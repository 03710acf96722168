"""tools/unnamed_captions.py: captions without the words that name their class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def called(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "unnamed_captions.py", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_words_of_the_class_go_and_all_else_stays(tmp_path: Path) -> None:
    source, output = tmp_path / "labels.csv", tmp_path / "unnamed.csv"
    source.write_text(
        "\ufefffile,label,group,caption\r\n"
        'a.mp4,swipe_left,1,"A person swipes, to the Left."\r\n'
        "b.mp4,bowling,2,a person bowls with the right hand\r\n"
        "c.mp4,circle_cw,1,a person draws a circle clockwise\r\n"
        '"d,1.mp4",wave,3,nothing of it\r\n'
        "e.mp4,box,3,Left-handed boxing!\r\n"
    )
    done = called(source, output, "--also", "Clockwise", "left-handed")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{output}: 5 rows, 4 captions without words of their class",
        "warning: 1 captions had no other words and are empty: with a contrast, their clips are left out",
    ]
    assert output.read_text() == (
        "file,label,group,caption\n"
        "a.mp4,swipe_left,1,A person to the\n"
        "b.mp4,bowling,2,a person with the right hand\n"
        "c.mp4,circle_cw,1,a person draws a\n"
        '"d,1.mp4",wave,3,nothing of it\n'
        "e.mp4,box,3,\n"
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"file,label\na.mp4,wave\n", "no column caption; its columns are file, label"),
        (b"label,caption\nwave,a person,waves\n", "row 1 has another number of columns than the first line, 2"),
        (b"label,caption\nwave\n", "row 1 has another number of columns"),
        (b"label,caption,caption\nwave,one,two\n", "two columns are named caption: rename one"),
        (b"label,caption\nwave,\xff\n", "no CSV in UTF-8"),
        (None, "No such file"),
    ],
)
def test_what_cannot_be_read_is_refused_and_nothing_written(tmp_path: Path, text: bytes | None, wanted: str) -> None:
    if text is not None:
        (tmp_path / "l.csv").write_bytes(text)
    done = called(tmp_path / "l.csv", tmp_path / "o.csv")
    assert done.returncode == 2 and wanted in done.stderr and not (tmp_path / "o.csv").exists()


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("label,caption\nwave,a person waves\n")
    done = called(tmp_path / "l.csv", tmp_path / "l.csv")
    assert done.returncode == 2 and "l.csv is there already" in done.stderr
    assert (tmp_path / "l.csv").read_text() == "label,caption\nwave,a person waves\n"
