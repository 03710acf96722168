"""`tgm-scale shards check`: what it finds in shards whose faults are known."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import write_tar

from tgm_scale import cli
from tgm_scale.corpora.inspector import SampleInspector, SampleStats
from tgm_scale.corpora.tally import Tally
from tgm_scale.data.shards.inventory import corpus_inventory
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video


def main(arguments: Sequence[str]) -> int:
    """By one worker, unless the arguments say another number: each takes 2 s of a core to import torch."""
    return cli.main(["shards", "check", "--workers", "1", *arguments])


def video(number: int, frames: int) -> bytes:
    pictures = np.full((frames, 16, 32, 3), 40 + 20 * number, np.uint8)
    return encode_video(pictures, fps=10)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Eight samples in three shards: one cut short, one double, one without caption, one with a broken json, one that
    a download left without its video."""
    with ShardWriter(tmp_path / "shards", clips_per_shard=3) as writer:
        for number in range(8):
            members: dict = {
                "mp4": video(number, 10 + number),
                "json": {"captions": ["a grey field", f"field {number}"]},
            }
            if number == 2:
                members["mp4"] = members["mp4"][: len(members["mp4"]) // 2]
            elif number == 3:
                members["json"] = {}
            elif number == 4:
                members |= {"json": b"{half", "txt": "from the text"}
            elif number == 5:
                members["mp4"] = video(1, 11)
            elif number == 6:
                del members["mp4"]
            writer.write(f"c{number}", members)
    return tmp_path / "shards"


def test_known_faults_are_found(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, sheet = tmp_path / "report.json", tmp_path / "sheet.png"
    written = ["--report", str(report), "--sheet", str(sheet)]
    assert main(["--shards", str(shards), *written, "--max-broken", "0.2", "--workers", "2"]) == 0
    found = json.loads(report.read_text())
    assert (found["samples"], found["shards"], found["looked_at"]) == (7, 3, 7)
    assert found["left_out"] == {"no_video": 1}
    assert {reason: [name for name, _ in names] for reason, names in found["broken"].items()} == {
        "not_a_video": ["00000/c2"]
    }
    assert found["broken_share"] == pytest.approx(1 / 7)
    assert found["seconds"] == [1.0, 1.05, 1.2, 1.55, 1.7] and found["hours"] == pytest.approx(7.6 / 3600)
    assert found["short_side"] == [16] * 5
    assert found["captions_a_sample"] == {"0": 1, "1": 1, "2": 5}
    assert found["without_caption"] == ["00001/c3"] and found["broken_json"] == ["00001/c4"]
    assert found["doubles"] == [["00000/c1", "00001/c5"]]
    assert found["commonest_captions"][0] == ["a grey field", 5]
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (112, 896, 3)
    assert [abs(int(pixels[28, 112 * k + 50, 0]) - shade) < 8 for k, shade in enumerate((40, 60, 100, 120, 60, 180))]
    said = capsys.readouterr().out
    for words in ("7 samples in 3 shards", "no_video: 1", "not_a_video: 1", "00000/c2", "same video: 1"):
        assert words in said


def test_a_part_is_drawn_and_too_many_broken_ones_are_told(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shards", str(shards), "--max-broken", "0.1"]) == 1
    assert "too many broken samples: 14.3%" in capsys.readouterr().out
    main(["--shards", str(shards), "--samples", "3", "--max-broken", "1"])
    assert "looked at 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("notes.md", "no shards"),
        ("clip.mp4", "one video; name the folder of it"),
        ("photos.tar", "1 shard_unreadable"),
    ],
)
def test_a_mistyped_file_is_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    (tmp_path / name).write_bytes(b"no shard at all " * 100)
    assert main(["--shards", str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shards", "{}/nowhere"], "no shards"),
        (["--shards", "{}", "--frames", "0"], "--frames"),
        (["--shards", "{}", "--sheet", "x.bmp"], "--sheet x.bmp"),
    ],
)
def test_a_mistake_is_one_message(
    shards: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main([option.format(shards) for option in options]) == 2
    assert words in capsys.readouterr().err


def test_captions_that_cannot_be_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write("whole", {"mp4": video(1, 4), "json": {"caption": "a field"}})
        writer.write("cut", {"mp4": video(2, 4), "json": b'{"caption": "cut emoji \\ud83d"}'})
    report = tmp_path / "report.json"
    assert main(["--shards", str(tmp_path / "shards"), "--report", str(report)]) == 0
    assert json.loads(report.read_text())["unfit_captions"][0][0] == "00000/cut"
    assert "captions that cannot be used: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "shard_unreadable"),
        (b"<!DOCTYPE html><html>not found</html>" * 30, "a web page, not the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a git LFS pointer, not the"),
        (b"\0" * 10240, "shard_empty"),
        (gzip.compress(b"a tar", mtime=0), "compressed (gzip): unpack it first, such as with gunzip"),
        (None, "shard_cut"),
    ],
)
def test_a_bad_shard_among_good_ones_is_told(
    shards: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, reason: str
) -> None:
    shard = shards / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:-11_000] if content is None else content)
    assert main(["--shards", str(shards), "--max-broken", "1"]) == 1
    assert reason in capsys.readouterr().out


def test_a_list_that_lost_its_files_is_told(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_bytes(video(number, 4))
    (tmp_path / "list.txt").write_text("".join(f"{number}.mp4 a field\n" for number in range(1004)))
    assert main(["--shards", str(tmp_path / "list.txt")]) == 1
    said = capsys.readouterr().out
    assert f"left out, 99.60%:\n    missing_video: 1,000 (4.mp4: {tmp_path}/list.txt line 5: not below" in said
    assert "too many samples left out: 99.6%, tolerated 10.0%" in said


def test_names_of_others_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Colours, titles, faked lines and turned text, in the names of a tar, of its file and in its json."""
    hostile = "c\x1b[31m\x1b]0;title\x07\n0 samples are broken\u202e"
    broken = {f"{hostile}.mp4": b"none", f"{hostile}2.json": b"{}", "d.mp4": video(1, 4), "d.json": b"{half"}
    write_tar(tmp_path / "a\x1b[31m.tar", broken.items())
    assert main(["--shards", str(tmp_path), "--max-broken", "1"]) == 0
    assert main(["--shards", str(tmp_path / f"no\x1b[31m{hostile}")]) == 2
    out, err = capsys.readouterr()
    assert "c\\x1b[31m\\x1b]0;title\\x07\\x0a0 samples are broken\\u202e" in out
    assert "\n0 samples" not in out and not set("\x1b\x07\u202e") & set(out + err)


def test_memory_is_that_of_a_digest_and_a_few_numbers_a_clip(shards: Path) -> None:
    """10 million clips are looked at in one run."""
    corpus = open_corpus(str(shards))
    tally, count, grown = Tally(corpus), 20_000, []
    tracemalloc.start()
    try:
        for part in range(2):
            for number in range(part * count, (part + 1) * count):
                digest, captions = f"{number:032x}", [f"the caption of clip {number}, such as a person who waves"]
                tally.add(
                    0, 0, SampleStats(f"clip {number}", digest, captions, seconds=number / 7, frames=number % 99)
                )
            grown.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert (grown[1] - grown[0]) / count < 100


@pytest.mark.parametrize("gone", [False, True])
def test_a_shard_replaced_or_removed_at_the_end_costs_no_report(shards: Path, gone: bool) -> None:
    corpus = open_corpus(str(shards))
    opened, tally, inspect = corpus_inventory(corpus.name, corpus), Tally(corpus), SampleInspector(corpus, 1)
    for row in (0, 0, 1):
        tally.add(0, row, inspect(0, row, False))
    tar = shards / "00000.tar"
    if gone:
        tar.unlink()
    else:
        write_tar(tar, [("x.mp4", b"another")])
    found = tally.report(opened)
    assert found["looked_at"] == 3
    assert found["doubles"] == [["00000/c0"] * 2] or found["doubles"] == [[f"{tar}, sample 1"] * 2]
    if not gone:  # one that was removed is open still
        assert all("could not be read again" in text for text, _ in found["commonest_captions"])


def test_a_shard_that_changes_at_the_end_costs_no_report(shards: Path) -> None:
    corpus = open_corpus(str(shards))
    tally, inspect = Tally(corpus), SampleInspector(corpus, 1)
    for row in range(3):
        tally.add(0, row, inspect(0, row, False))
    tar = shards / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"a grey field", b"a gray field"))
    found = tally.report(corpus_inventory(corpus.name, corpus))
    assert found["looked_at"] == 3 and found["doubles"] == []
    texts = [text for text, _ in found["commonest_captions"]]
    assert texts[0] == "(one of 00000/c0, which could not be read again)"
