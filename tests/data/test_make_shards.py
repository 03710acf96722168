"""`tgm-scale shards make` as a user runs it: on real videos, on broken ones, killed, in parts, and by mistake."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from launch import environment

from tgm_scale import cli
from tgm_scale.data.building import shard_building
from tgm_scale.data.building.annotations import parse_time
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.encode import encode_video

COMMAND = [sys.executable, "-m", "tgm_scale", "shards", "make"]
BAD_FILES = ("corrupted", "truncated", "empty", "text_not_video")


def command(annotations, videos, output, *more):
    paths = ("--annotations", annotations, "--videos", videos, "--output", output)
    return [*COMMAND, *map(str, paths), "--workers", "2", *map(str, more)]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)


def row(video, start, end, caption="a caption", **scores):
    clock = "00:00:{:06.3f}".format
    span = {"Start_timestamp": clock(start), "End_timestamp": clock(end)}
    return json.dumps({"YoutubeID": video, **span, "Caption": caption, **scores}) + "\n"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "shards.catalogue.json"}


def samples(folder):
    corpus = open_corpus(folder)
    for shard, count in enumerate(corpus.counts):
        for number in range(count):
            ref = corpus.sample(shard, number)
            members = corpus.read(ref, list(ref.members))
            yield ref.key, json.loads(members["json"]), members["mp4"]


def main(arguments):
    """In this process; its workers are processes as ever."""
    return cli.main(["shards", "make", *arguments])


@pytest.fixture(scope="module")
def real_shards(real, tmp_path_factory):
    """Shards of all real rows, two spans with a second caption, a span outside its video, and four bad files."""
    folder = tmp_path_factory.mktemp("real")
    videos = folder / "videos"
    videos.mkdir()
    (videos / "good").symlink_to(real / "videos")
    for name in BAD_FILES:
        shutil.copy(real / "edge" / f"{name}.mp4", videos)
    rows = (real / "internvid.jsonl").read_text()
    rows += (
        rows.splitlines()[0].replace("a person in an office", "somebody").lower().replace("youtubeid", "YOUTUBEID")
        + "\n"
    )
    rows += "".join(row(name, 0, 5) for name in BAD_FILES)
    rows += row("cockatoo", 20, 25) + row("lion_roaring", 0.001, 0.002) + "half a line"
    (folder / "rows.jsonl").write_text(rows)
    done = run(folder / "rows.jsonl", videos, folder / "shards", "--short-side", 32, "--clips-per-shard", 20)
    assert done.returncode == 0, done.stderr
    return folder / "shards", done.stdout


def test_all_real_clips_are_made_and_the_rest_is_named_with_its_reason(real_shards):
    folder, printed = real_shards
    report = json.loads((folder / "report.json").read_text())
    assert report["rows"] == 68 and report["clips"] == 66 and report["made"] == 58 == len(open_corpus(folder))
    assert report["shards"] == {"finished": 4, "planned": 4}
    names = {reason: sorted(key for key, _ in one["names"]) for reason, one in report["skipped"].items()}
    assert names == {
        "missing_video": ["gone_0001_00003000_00009500", "gone_0002_00063000_00065250"],
        "not_decodable": sorted(f"{name}_00000000_00005000" for name in BAD_FILES),
        "span_outside": ["cockatoo_00020000_00025000"],
        "too_short": ["lion_roaring_00000001_00000002"],
        "broken_row": ["line 68"],
    }
    for name in ["58 of 66 clips made", "not_decodable: 4", *names["missing_video"], *names["not_decodable"]]:
        assert name in printed


def test_real_clips_have_their_captions_and_the_frames_of_their_spans(real, real_shards):
    rows = [json.loads(line) for line in (real / "internvid.jsonl").read_text().splitlines()]
    wanted = {(r["YoutubeID"], parse_time(r["Start_timestamp"]), parse_time(r["End_timestamp"])): r for r in rows}
    seen = Counter()
    for key, facts, video in samples(real_shards[0]):
        place = (facts["video"], round(facts["start_seconds"] * 1000), round(facts["end_seconds"] * 1000))
        assert key == "{}_{:08d}_{:08d}".format(*place)
        assert (
            facts["captions"][0] == wanted[place]["Caption"] and facts["umt_scores"][0] == wanted[place]["UMT_Score"]
        )
        assert facts["aesthetic_score"] == wanted[place].get("Aesthetic_Score")
        assert len(facts["captions"]) == (2 if facts["video"] == "asl_again" else 1)
        with av.open(io.BytesIO(video)) as container:
            stream = container.streams.video[0]
            assert min(stream.width, stream.height) == 32 and stream.width % 2 == stream.height % 2 == 0
            assert (stream.frames, stream.width, stream.height) == (facts["frames"], facts["width"], facts["height"])
            assert abs(stream.frames / facts["fps"] - (place[2] - place[1]) / 1000) < 0.2
        seen[place] += 1
    assert set(wanted) - set(seen) == {place for place in wanted if place[0].startswith("gone")}
    assert set(seen.values()) == {1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Forty clips of four videos: (annotations, videos, shards made in one go)."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "videos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (4, 100, 64, 64, 3), dtype=np.uint8)
    for i, video in enumerate(noise):
        (folder / "videos" / f"v{i}.mp4").write_bytes(encode_video(video, 10))
    rows = [row(f"v{i}", j, j + 1, f"clip {j} of {i}", UMT_Score=j / 10) for i in range(4) for j in range(10)]
    (folder / "rows.jsonl").write_text("".join(rows))
    arguments = (folder / "rows.jsonl", folder / "videos")
    assert (
        main(command(*arguments, folder / "shards", "--short-side", 64, "--clips-per-shard", 10)[len(COMMAND) :]) == 0
    )
    return *arguments, folder / "shards"


def test_killed_at_any_moment_it_ends_with_the_same_bytes(small, tmp_path, capsys):
    annotations, videos, undisturbed = small
    line = command(annotations, videos, tmp_path / "shards", "--short-side", 64, "--clips-per-shard", 10)
    for kills_at in ("00000.tar", "00002.tar.*.partial"):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not any((tmp_path / "shards").glob(kills_at)):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    first = (tmp_path / "shards" / "00000.tar").stat()
    assert main(line[len(COMMAND) :]) == 0
    left = contents(tmp_path / "shards")
    assert left == contents(undisturbed), sorted(set(left) ^ set(contents(undisturbed)))
    assert (tmp_path / "shards" / "00000.tar").stat().st_ino == first.st_ino, "a finished shard is kept"
    capsys.readouterr()
    assert main(line[len(COMMAND) :]) == 0
    assert "0 of this task's 4 are to be made" in capsys.readouterr().out


def test_workers_end_with_a_killed_parent(small, tmp_path):
    line = command(*small[:2], tmp_path / "shards", "--short-side", 64, "--clips-per-shard", 10)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any((tmp_path / "shards").glob("00000.tar.*.partial")):
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children and process.poll() is None
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(_runs(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(child) for child in children)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_tasks_side_by_side_make_the_shards_of_one(small, tmp_path):
    annotations, videos, undisturbed = small
    parts = ["--tasks", 2, "--short-side", 64, "--clips-per-shard", 10]
    lines = [command(annotations, videos, tmp_path / "s", "--task", task, *parts) for task in range(2)]
    processes = [subprocess.Popen(line, stdout=subprocess.DEVNULL) for line in lines]
    assert [process.wait() for process in processes] == [0, 0]
    assert contents(tmp_path / "s") == contents(undisturbed)


def test_a_task_without_shards_has_done_its_part(small, tmp_path):
    annotations, videos, _ = small
    parts = ["--tasks", 64, "--short-side", 64, "--clips-per-shard", 10]
    assert (
        subprocess.run(command(annotations, videos, tmp_path / "s", "--task", 63, *parts), check=False).returncode == 0
    )


def test_spans_of_one_video_are_cut_frame_by_frame(small):
    """100 frames at 10 a second, ten spans of a second: ten frames each, and each the right ones."""
    source = {}
    for i in range(4):
        with av.open(str(small[1] / f"v{i}.mp4")) as container:
            source[f"v{i}"] = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    for _, facts, video in samples(small[2]):
        with av.open(io.BytesIO(video)) as container:
            frames = list(container.decode(video=0))
            assert [frame.pts * frame.time_base for frame in frames] == [Fraction(i, 10) for i in range(10)]
            cut = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(float)
        start = round(facts["start_seconds"] * 10)
        errors = [np.abs(source[facts["video"]][t : t + 10] - cut).mean() for t in range(91)]
        assert int(np.argmin(errors)) == start


def arguments(small, output, *more):
    return command(*small[:2], output, "--clips-per-shard", 10, *more)[len(COMMAND) :]


def test_filters_and_their_counts(small, tmp_path, capsys):
    shutil.copytree(small[2], tmp_path / "s")
    assert main(arguments(small, tmp_path / "new", "--min-umt", 0.85, "--short-side", 32, "--gop", 5)) == 0
    printed = capsys.readouterr().out
    assert "rows not used, below_min_umt: 36" in printed and "4 of 4 clips made" in printed
    assert sorted(key for key, _, _ in samples(tmp_path / "new")) == [f"v{i}_00009000_00010000" for i in range(4)]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--short-side", 32), "holds shards made otherwise .*'short_side': 64.*'short_side': 32"),
        (("--min-umt", 0.5), "holds shards made otherwise .*min_umt"),
        (("--task", 3, "--tasks", 3), "--task 3 is not one of 0 to 2"),
        (("--min-umt", 5), "no clip in 40 rows"),
        (("--videos", "nowhere", "--output", "{new}"), "no such folder"),
        (("--videos", "{empty}", "--output", "{new}"), "holds no video"),
        (("--output", "{foreign}"), "this tool did not make"),
        (("--output", "/proc/nowhere"), "cannot be made"),
    ],
)
def test_a_mistake_ends_with_code_2_and_a_remedy(small, tmp_path, capsys, more, complaint):
    for name in ("empty", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "foreign" / "00000.tar").write_bytes(b"")
    places = {name: tmp_path / name for name in ("empty", "foreign", "new")}
    before = contents(small[2])
    more = [str(part).format(**places) for part in more]
    assert main(arguments(small, small[2], "--short-side", 64, *more)) == 2
    error = capsys.readouterr().err
    assert re.search(complaint, error) and error.count("\n") == 1
    assert contents(small[2]) == before
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir()), "other settings may follow"


@pytest.mark.parametrize(
    "more", [("--short-side", 33), ("--crf", 60), ("--workers", 0), ("--gop", "x"), ("--min-umt", "nan")]
)
def test_a_setting_out_of_range_ends_with_code_2(small, tmp_path, more):
    with pytest.raises(SystemExit) as end:
        main(arguments(small, tmp_path / "new", *more))
    assert end.value.code == 2 and not os.path.exists(tmp_path / "new")


def test_annotations_that_are_not_there_end_with_code_2(small, tmp_path, capsys):
    assert main(command("nowhere.jsonl", small[1], tmp_path / "new")[len(COMMAND) :]) == 2
    assert "nowhere.jsonl: no such file" in capsys.readouterr().err and not os.path.exists(tmp_path / "new")


def test_nothing_made_is_code_1(small, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "other.mp4").write_bytes(b"")
    assert main([*arguments(small, tmp_path / "new"), "--videos", str(tmp_path / "videos")]) == 1
    assert "skipped, missing_video: 40" in capsys.readouterr().out


def test_a_wrong_folder_of_videos_is_followed_by_the_right_one(small, tmp_path, capsys):
    """Nothing was found in any shard, then in some: these alone are rebuilt."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "other.mp4").write_bytes(b"")
    settings = ["--short-side", 64, "--clips-per-shard", 2]
    line = command(small[0], tmp_path / "videos", tmp_path / "out", *settings)[len(COMMAND) :]
    assert main(line) == 1
    shutil.copy(small[1] / "v0.mp4", tmp_path / "videos")
    capsys.readouterr()
    assert main(line) == 0 and "20 of this task's 20 are to be made" in capsys.readouterr().out
    kept = {path: path.stat().st_ino for path in (tmp_path / "out").glob("*.tar")}
    assert 5 <= len(kept) < 20 and len(open_corpus(tmp_path / "out")) == 10
    assert main([*line, "--videos", str(small[1])]) == 0
    assert f"{20 - len(kept)} of this task's 20 are to be made" in capsys.readouterr().out
    assert {path: path.stat().st_ino for path in kept} == kept
    one, before = tmp_path / "out" / "00003.tar", made(tmp_path / "out")
    for damage in (Path.unlink, lambda tar: tar.write_bytes(b""), lambda tar: os.truncate(tar, 9000)):
        damage(one)
        capsys.readouterr()
        main([*line, "--videos", str(small[1]), "--task", "0", "--tasks", "2"])  # of which it is none
        assert "19 of 20 shards finished" in capsys.readouterr().out
        assert main([*line, "--videos", str(small[1])]) == 0
        assert "1 of this task's 20 are to be made" in capsys.readouterr().out and made(tmp_path / "out") == before


def made(folder):
    return {key: (content["captions"], content.get("label"), content["frames"]) for key, content, _ in samples(folder)}


def test_annotations_of_every_kind_and_clips_that_are_cut_already(tmp_path):
    videos = tmp_path / "videos"
    (videos / "deep").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3)).astype(np.uint8)
    (videos / "-long.mp4").write_bytes(encode_video(noise, fps=25))
    for name in ("_cut_00:00:01.250_00:00:02.000", "deep/short"):
        (videos / f"{name}.mp4").write_bytes(encode_video(noise[:10], fps=25))
    files = tmp_path / "annotations"
    files.mkdir()
    (files / "a.jsonl.gz").write_bytes(gzip.compress((row("-long", 0, 1) + row("_cut", 1.25, 2, "cut")).encode()))
    (files / "b.json").write_text("[\n" + row("-long", 0, 1, "again") + "," + row("-long", 0.5, 1, "overlaps") + "]")
    (files / "c.csv").write_text(
        'file,start,end,caption,label\ndeep/short.mp4,,,"whole, and all",walk\n-long.mp4,1,1.4,c,run\n'
    )
    done = run(files, videos, tmp_path / "out", "--short-side", 32)
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "out") == {
        "-long_00000000_00001000": (["a caption", "again"], None, 25),
        "-long_00000500_00001000": (["overlaps"], None, 12),
        "-long_00001000_00001400": (["c"], "run", 10),
        "_cut_00001250_00002000": (["cut"], None, 10),
        "deep%2Fshort_00000000_00000000": (["whole, and all"], "walk", 10),
    }


def test_whole_files_are_of_the_seconds_that_are_asked_for(small, tmp_path, capsys):
    """v0 is all of a file of 10 seconds, and so is v1, which has a label and no caption."""
    (tmp_path / "rows.csv").write_text("file,caption,label\nv0.mp4,one,\nv1.mp4,,walk\n")
    line = command(tmp_path / "rows.csv", small[1], tmp_path / "out", "--short-side", 32)[len(COMMAND) :]
    assert main([*line, "--min-seconds", "9.9", "--max-seconds", "10.1"]) == 0
    assert made(tmp_path / "out") == {"v0_00000000_00000000": (["one"], None, 100),
                                      "v1_00000000_00000000": ([], "walk", 100)}  # fmt: skip
    capsys.readouterr()
    assert main([*line, "--output", str(tmp_path / "none"), "--min-seconds", "10.1"]) == 1
    said = capsys.readouterr().out
    assert "skipped, below_min_seconds: 2" in said and "the file has 10.000 seconds" in said


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"[{]", "object 1 of its array is no JSON"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "a broken gzip"),
        ("a.csv", b"file,caption\n\xff,x\n", "not UTF-8"),
        ("a.md", None, "no such file"),
        ("a.jsonl", b"", "no clip in 0 rows (it is empty)"),
        ("a.csv", b"file,caption\na,b,c\n", "(the first: line 2: 3 fields under 2 columns"),
    ],
)
def test_annotations_that_cannot_be_read_leave_no_trace(tmp_path, capsys, name, content, words):
    (tmp_path / "videos").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for videos, said in (("videos", words), ("nowhere", "--videos")):
        assert main(command(tmp_path / name, tmp_path / videos, tmp_path / "out")[len(COMMAND) :]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_ended_before_the_first_shard_holds_no_other_settings_up(small, tmp_path):
    """The launcher's own files are in the folder by then."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "attempts-0").touch()
    (tmp_path / "out" / shard_building.SETTINGS).touch()
    shard_building.remove_if_empty(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["attempts-0"]
    (tmp_path / "out" / shard_building.SETTINGS).touch()
    (tmp_path / "out" / "00000.tar.host.1.2.partial").touch()  # another task is at work
    shard_building.remove_if_empty(tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_two_jobs_that_make_one_shard_both_make_it_whole(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from tgm_scale.data.shards.tars import ShardWriter\n"
        "folder, go = map(Path, sys.argv[1:])\n"
        "with ShardWriter(folder, clips_per_shard=2) as writer:\n"
        "    writer.write('a', {'mp4': b'one'}); print('begun', flush=True)\n"
        "    while not go.exists(): time.sleep(0.01)\n"
        "    writer.write('b', {'mp4': b'two'})"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "shards"), str(tmp_path / "go")]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, env=environment()) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == [b"begun\n"] * 2
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sorted(path.suffix for path in (tmp_path / "shards").iterdir())[-1] == ".tar", "nothing partial is left"
    assert open_corpus(str(tmp_path / "shards")).counts.tolist() == [2]
