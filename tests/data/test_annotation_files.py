"""Files of annotations: every usual kind is read as rows, and what is none is refused by its place."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tgm_scale.data.building.annotation_files import lines_of
from tgm_scale.data.building.annotations import Filters, Plan
from tgm_scale.data.lists.row import LOOSE_MARK

SPAN = {"YoutubeID": "a", "Start_timestamp": "00:00:00.000", "End_timestamp": "00:00:01.000", "Caption": "c"}
ARRAY = json.dumps([SPAN, {**SPAN, "YoutubeID": "b"}])


def plan(path: Path, content: str | bytes, filters: Filters | None = None) -> Plan:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Plan(path, filters or Filters(), 10)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "file,label,start,end\na.mp4,walk,0,1\nb.mp4,run,0,1\n"),
        ("a.csv", "file;label;start;end\r\na.mp4;walk;0;1\r\n;;;\r\n\r\nb.mp4;run;0;1\r\n"),
        ("a.csv", "sep=;\r\nfile;label;start;end\r\na.mp4;walk;0;1\r\nb.mp4;run;0;1\r\n"),
        ("a.txt", "path|class|start|end\na.mp4|walk|0|1\nb.mp4|run|00:00:00|1\n"),
        ("a.tsv", "file\tcaption\tstart\tend\na.mp4\ta cat\t0\t1\nb.mp4\ta, b\t\t1\n".encode("utf-16")),
        ("a.json", ARRAY),
        ("a.json", "\ufeff \n[ " + ARRAY[1:]),
        ("a.jsonl", ARRAY.encode("utf-16")),
        ("a.jsonl", json.dumps(SPAN) + "\n\n" + json.dumps({**SPAN, "YoutubeID": "b"})),
        ("a.json", json.dumps([{"file": "a", "label": 1, "start": 0, "end": 1},
                               {"file": "b", "caption": ["c", "d"], "label": None, "start": "", "end": 1.0}])),
    ],
)  # fmt: skip
def test_spans_in_files_of_all_the_usual_kinds(tmp_path: Path, name: str, content: str | bytes) -> None:
    found = plan(tmp_path / name, content)
    [clips] = found.clips_of([0])
    assert not found.problems, found.problems
    assert sorted((clip.video, clip.start, clip.end) for clip in clips) == [("a", 0, 1000), ("b", 0, 1000)]
    assert all(clip.captions or clip.label for clip in clips)


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_scores_of_a_table_are_numbers(tmp_path: Path, delimiter: str) -> None:
    rows = ["YoutubeID,Start_timestamp,End_timestamp,Caption,UMT_Score,Aesthetic_Score"]
    rows += [f"{name},00:00:00.000,00:00:01.000,c,{score},4.5" for name, score in (("a", 0.7), ("b", 0.2), ("c", ""))]
    table = "\n".join([*rows, "d,00:00:00.000,00:00:01.000,c,high,5"]).replace(",", delimiter)
    found = plan(tmp_path / "a.csv", table, Filters(min_umt=0.5, min_aesthetic=4))
    [[clip]] = found.clips_of([0])
    assert (clip.video, clip.umt, clip.aesthetic) == ("a", [0.7], 4.5)
    assert found.left_out == {"below_min_umt": 1, "no_umt_score": 1}
    assert [problem.detail for problem in found.problems] == ["umt_score is 'high': wanted a number"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"file,caption\n\xff,x\n", "not UTF-8"),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("a.csv", b"a.mp4,0,1,walk\n", "first line names none of the columns"),
        ("a.csv", b"file,caption,CAPTION\na,b,c\n", "a.csv: 2 columns are named caption: rename"),
        ("a.json", ARRAY[:-9], "object 2 of its array is no JSON"),
        ("a.json", ARRAY + ARRAY, "more text after the end of its array"),
        ("a.json", "[" * 100_000, "object 1: brackets in brackets without end"),
        ("a.csv", 'file,caption\na,"' + "x" * 200_000, "no CSV .field larger than"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(tmp_path / name, content)


def test_a_row_that_swallows_others_is_refused_by_its_line(tmp_path: Path) -> None:
    for rows, words in (
        ('a,"one\n' + "b\n" * 60 + '"\nd,e\n', "line 3: a field of 62 lines, wanted 50 at most"),
        ('a,"one\nb,c\nd,e\n', "line 3: no CSV .unexpected end of data.: close its quotation marks"),
        ('a,"one\nb.mp4,c\nd,two"\n', "line 3: a field of 3 lines, with other rows in it"),
    ):
        with pytest.raises(ValueError, match=words):
            plan(tmp_path / "a.csv", "\nfile,caption\n" + rows)
    found = plan(tmp_path / "a.csv", 'file,caption\nd,"e\nf"\ng,h,i\nk,"l" m\n"n" ,"o\np\nq"\nr,s\n')
    assert found.clips == 3
    assert [problem.detail for problem in found.problems] == [
        "3 fields under 2 columns: quote what holds a ','", LOOSE_MARK
    ]  # fmt: skip
    [problem] = plan(tmp_path / "a.csv", 'file,caption\na,"one\nb,two\nc,three"\nd,four\n').problems
    assert problem.detail.startswith("a field of 3 lines, with what may be other rows in it: close its")


def test_an_array_in_one_line_is_read_in_time_that_grows_as_it_does(tmp_path: Path) -> None:
    """Where each object copies what is left of a piece, 100,000 of them take 4 s, and 0.4 s where none does."""
    (tmp_path / "many.json").write_text(json.dumps([{"n": number} for number in range(200_000)]))
    start = time.process_time()
    assert sum(1 for _ in lines_of([tmp_path / "many.json"])) == 200_000
    assert time.process_time() - start < 5
