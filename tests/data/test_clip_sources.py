"""Which file the clip of a row is cut from: the one that the row names, or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tgm_scale.data.building import shard_building
from tgm_scale.data.building.annotations import ClipRow, Filters, Plan
from tgm_scale.data.building.clip_sources import ClipSources
from tgm_scale.data.video.source import CutError
from tgm_scale.runtime.processes import Crashed

FILES = ("a.mp4", "x/000.mp4", "y/000.mp4", "deep/only.webm", "b.mkv", "b.mp4", "c_1.25_2.mp4", "d_000001_000002.mp4",
         "dup/1/e.mp4", "dup/2/e.mp4")  # fmt: skip


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / name).touch()
    return tmp_path / "v"


def sources(videos: Path, rows: list[dict]) -> dict[str, str]:
    """By key, the file below the folder and "whole" where all of it is meant, or the reason."""
    (videos.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = Plan(videos.parent / "rows.jsonl", Filters(), 2)
    assert not plan.problems, plan.problems
    found = {}
    for clips in plan.clips_of(range(plan.shards)):
        for clip, span in zip(clips, ClipSources(videos, plan.has_path).spans(clips)):
            if isinstance(span, CutError):
                found[clip.key] = span.reason
            else:
                found[clip.key] = span[0].removeprefix(f"{videos}/") + (" whole" if span[2] is None else "")
    return found


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([{"file": "x/000", "caption": "c"}, {"file": "y/000.mp4", "caption": "c"}], ["x/000.mp4", "y/000.mp4"]),
        ([{"file": "z/000.mp4", "caption": "c"}, {"file": "x/a.mp4", "caption": "c"}], ["missing_video"] * 2),
        ([{"file": "000.mp4", "caption": "c"}, {"file": "e", "caption": "c"}], ["ambiguous"] * 2),
        ([{"file": "only", "caption": "c"}], ["deep/only.webm"]),
        ([{"file": "only", "caption": "c"}, {"file": "deep/only", "caption": "c"}], ["ambiguous", "deep/only.webm"]),
        ([{"file": "b.mkv", "caption": "c"}], ["b.mkv"]),
        ([{"file": "b.mkv", "caption": "c"}, {"file": "b.mp4", "caption": "c"}], ["ambiguous"]),
        ([{"file": "{v}/x/000.mp4", "caption": "c"}], ["x/000.mp4"]),
        ([{"file": "https://x/a.mp4", "caption": "c"}], ["missing_video"]),
        ([{"file": "a", "label": "walk"}, {"file": "a", "label": "run"}], ["several_labels"]),
    ],
)
def test_a_row_means_the_file_that_it_names_or_none(videos: Path, rows: list[dict], wanted: list[str]) -> None:
    rows = [{**row, "file": row["file"].replace("{v}", str(videos))} for row in rows]
    found = sources(videos, rows)
    assert sorted(found.values()) == sorted(name if name.islower() and "." not in name else f"{name} whole"
                                            for name in wanted)  # fmt: skip


def test_a_cut_file_is_that_of_the_clip_of_exactly_its_times(videos: Path) -> None:
    """Rounded to seconds, 1 to 2 and 1.25 to 2.25 would have one name."""
    spans = [("a", 0, 1), ("c", 1.25, 2), ("c", 1, 2), ("d", 1, 2), ("d", 1.25, 2.25)]
    rows = [{"file": name, "start": start, "end": end, "caption": "c"} for name, start, end in spans]
    assert sources(videos, rows) == {
        "a_00000000_00001000": "a.mp4",
        "c_00001250_00002000": "c_1.25_2.mp4 whole",
        "c_00001000_00002000": "missing_video",
        "d_00001000_00002000": "d_000001_000002.mp4 whole",
        "d_00001250_00002250": "missing_video",
    }


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no video \(mp4"):
        ClipSources(tmp_path, lambda path: False).spans([ClipRow("a", 0, 1)])


def test_what_is_no_video_or_cannot_be_read_is_a_reason(videos: Path) -> None:
    (videos / "notes.txt").write_text("no video")
    rows = [{"file": name, "caption": "c"} for name in ("notes.txt", "n" * 300 + "/a.mp4", "only")]
    assert sorted(sources(videos, rows).values()) == ["deep/only.webm whole", "folder_unreadable", "not_a_video"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Crashed("its process died twice"), "decoder_crashed"), (ZeroDivisionError("by zero"), "decoder_failed")],
)
def test_a_decoder_that_dies_or_fails_is_a_reason_and_the_disk_is_none(error: Exception, reason: str) -> None:
    assert shard_building._problem(ClipRow("a", 0, 1000), error).reason == reason
    with pytest.raises(OSError, match="full"):
        shard_building._problem(ClipRow("a", 0, 1000), OSError("the disk is full"))
