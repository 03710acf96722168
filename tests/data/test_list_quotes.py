"""Quotation marks in lists: an open one loses no row silently, a closed one over several lines is a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tgm_scale.contracts import Problem
from tgm_scale.data.lists.reading import Listing, Selection, read_list

KINETICS = "label,youtube_id,time_start,time_end,split\n"
EPIC = "narration_id,narration,verb_class,noun_class\n"


def listing(tmp_path: Path, text: str, name: str = "x.csv", **options: str) -> Listing:
    (tmp_path / name).write_text(text)
    return read_list(tmp_path / name, Selection(**{"role": "all", "wanted": "caption", **options}))  # type: ignore[arg-type]


def named(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.key, problem.reason) for problem in problems]


@pytest.mark.parametrize(
    ("head", "good", "faulty", "why"),
    [
        ("videoid,name\n", "2,b", "1,a cat, and a dog", "3 fields under 2 columns"),
        ("videoid,page_dir,name\n", "2,0_5,b", ",0_5,a cat", "no videoid"),
        ("videoid,name\n", "2,b", '"1\n3",a cat', "a file's name of several lines"),
        (KINETICS, "walk,a,1,2,val", "run,b,1,2,val,0,x", "7 fields under 5 columns"),
        (KINETICS, "walk,a,1,2,val", 'run,"b\nc",1,2,val', "a file's name of several lines"),
        (KINETICS, "walk,a,1,2,val", "run,,1,2,val", "no youtube_id"),
        (EPIC, "P01_0,open,3,4", '"P01_1\nP01_2",close,3,4', "a file's name of several lines"),
        (EPIC, "P01_0,open,3,4", "P01_1,close, and open,3,4", "5 fields under 4 columns"),
        ("id,template\n", "1,x", "2,a, b", "3 fields under 2 columns"),
        ("vid_name,label\n", "1,x", "2,a, b", "3 fields under 2 columns"),
    ],
)
def test_a_faulty_row_of_a_published_list_is_named(
    tmp_path: Path, head: str, good: str, faulty: str, why: str
) -> None:
    found = listing(tmp_path, f"{head}{good}\n{faulty}\n", label="verb" if head == EPIC else "label")
    assert len(found.entries) == 1
    [problem] = found.problems
    assert problem.reason == "bad_row" and "x.csv line 3: " in problem.detail and why in problem.detail


def test_a_file_that_json_says_as_no_text_is_named(tmp_path: Path) -> None:
    rows = [{"id": name, "template": "Spinning [something]"} for name in (None, ["a"], "1", 2)]
    found = listing(tmp_path, json.dumps(rows), "x.json")
    assert [entry.path for entry in found.entries] == ["1", "2"]
    assert [problem.detail.partition(": ")[2] for problem in found.problems] == [
        "ValueError: no id", "ValueError: id is \"['a']\": wanted text"
    ]  # fmt: skip


def test_a_blank_before_a_quotation_mark_is_left_out(tmp_path: Path) -> None:
    text = 'file, label\na.mp4, "walk"\nb.mp4,"walk"\nc.mp4,walk\nd.mp4,  "run, fast"\n'
    found = listing(tmp_path, text, wanted="label")
    assert [entry.label for entry in found.entries] == ["walk", "walk", "walk", "run, fast"] and not found.problems
    with pytest.raises(ValueError, match=r"line 2: a field of 2 lines, with other rows in it"):
        listing(tmp_path, 'file,label\na.mp4, "walk\nb.mp4,run"\n')


@pytest.mark.parametrize("head", ["file,label\n", ""])
def test_a_mark_within_a_quoted_text_is_named(tmp_path: Path, head: str) -> None:
    rows = 'a.mp4,"walk "fast" man"\nb.mp4,"walk ""fast"" man"\nc.mp4,"two" words\n'
    found = listing(tmp_path, head + rows, wanted="label")
    assert [(entry.path, entry.label) for entry in found.entries] == [("b.mp4", 'walk "fast" man')]
    assert named(found.problems) == [("a.mp4", "bad_row"), ("c.mp4", "bad_row")]
    assert all("write each mark within a quoted text twice" in problem.detail for problem in found.problems)


def test_blanks_behind_a_closing_mark_are_no_text(tmp_path: Path) -> None:
    text = 'file, label, caption\na.mp4 , "run"\t , "a ""b"" , c"  \nb.mp4,"run" fast,x\n'
    found = listing(tmp_path, text)
    assert [(entry.path, entry.label, entry.captions) for entry in found.entries] == [("a.mp4", "run", ['a "b" , c'])]
    assert named(found.problems) == [("b.mp4", "bad_row")]


@pytest.mark.parametrize("head", ["", "file,caption\n"])
def test_a_text_longer_than_a_field_may_be_is_named_or_refused(tmp_path: Path, head: str) -> None:
    text = f'{head}a.mp4,"{"x " * 80_000}"\nb.mp4,a dog\n'
    if head:
        with pytest.raises(ValueError, match=r"x.csv line 2: no CSV \(field larger than field limit"):
            listing(tmp_path, text)
    else:
        found = listing(tmp_path, text)
        assert [entry.path for entry in found.entries] == ["b.mp4"] and named(found.problems) == [("a.mp4", "bad_row")]
