"""Lists of videos: columns by name, lines, published formats; what is not clear is refused; files found by name."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tgm_scale.data.lists.reading import Role, Selection, is_list, read_list
from tgm_scale.data.shards.video_files import VideoFolder
from tgm_scale.evaluation.classes import read_classes
from tgm_scale.evaluation.labelled import open_labelled

KINETICS = "label,youtube_id,time_start,time_end,split\nabseiling,0347ZoDXyP0,95,105,val\nplay piano,-x_y,3,13,val\n"
EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,42,['door'],[42]\n"
)
SSV2 = [
    {
        "id": "78687",
        "label": "holding potato next to vicks bottle",
        "template": "Holding [something] next to [something]",
    },
    {"id": "42326", "label": "spinning cube quickly", "template": "Spinning [something]"},
]
DIVING = [{"vid_name": "h4QBA3-TBB0_00001", "start_frame": 0, "label": 26, "end_frame": 149}]


def labels(file: Path, role: Role = "train", **options: Any) -> list[tuple[str, str | None]]:
    return [(entry.path, entry.label) for entry in read_list(file, Selection(role, **options)).entries]


@pytest.mark.parametrize(
    ("name", "text", "label", "wanted"),
    [
        (
            "val.csv",
            KINETICS,
            "label",
            [("0347ZoDXyP0_000095_000105", "abseiling"), ("-x_y_000003_000013", "play piano")],
        ),
        ("EPIC_100_train.csv", EPIC, "verb", [("P01_01_0", "3")]),
        ("EPIC_100_train.csv", EPIC, "noun", [("P01_01_0", "42")]),
        ("EPIC_100_train.csv", EPIC, "action", [("P01_01_0", "3,42")]),
        (
            "something-something-v2-train.json",
            json.dumps(SSV2),
            "label",
            [("78687", "Holding something next to something"), ("42326", "Spinning something")],
        ),
        ("Diving48_V2_train.json", json.dumps(DIVING), "label", [("h4QBA3-TBB0_00001", "26")]),
        (
            "trainlist01.txt",
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n",
            "label",
            [("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup")],
        ),
        ("testlist01.txt", "Archery/v_Archery_g01_c01.avi\n", "label", [("Archery/v_Archery_g01_c01.avi", "Archery")]),
        ("list.txt", "a b/c.mp4 7\n\nd.mp4 8\n", "label", [("a b/c.mp4", "7"), ("d.mp4", "8")]),
        ("train.csv", "videos/a.mp4 3\nvideos/b.mp4 4\n", "label", [("videos/a.mp4", "3"), ("videos/b.mp4", "4")]),
        ("labels.csv", "file,label,performer\nx.mp4,bend,0\n", "label", [("x.mp4", "bend")]),
    ],
)  # fmt: skip
def test_each_published_format(tmp_path: Path, name: str, text: str, label: str, wanted: list) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert is_list(str(file))
    assert labels(file, label=label) == wanted


def test_hmdb51_splits_by_role_and_number(tmp_path: Path) -> None:
    (tmp_path / "cartwheel_test_split1.txt").write_text("a_1.avi 1 \n\nb_2.avi 2 \nc_3.avi 0 \n")
    (tmp_path / "cartwheel_test_split2.txt").write_text("a_1.avi 2 \n")
    (tmp_path / "ride_bike_test_split1.txt").write_text("d_4.avi 2 \n")
    assert is_list(str(tmp_path))
    assert labels(tmp_path, "train") == [("a_1.avi", "cartwheel")]
    assert labels(tmp_path, "test") == [("b_2.avi", "cartwheel"), ("d_4.avi", "ride_bike")]
    assert labels(tmp_path, "test", split=2) == [("a_1.avi", "cartwheel")]
    with pytest.raises(ValueError, match=r"no .*_test_split3.txt"):
        read_list(tmp_path, Selection("test", split=3))
    (tmp_path / "fall_test_split2.txt").write_bytes(b"caf\xe9.avi 2\n")
    with pytest.raises(ValueError, match=r"fall_test_split2.txt line 1: not UTF-8"):
        read_list(tmp_path, Selection("test", split=2))


CAPTIONS = "two people, one of them far away"
COLUMNS = f'file,label,caption,split,frames\na.mp4,3,"{CAPTIONS}",train,61\nb.mp4,4,x y,test,9\n'


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("columns.csv", COLUMNS, [("a.mp4", [CAPTIONS], "3")]),
        ("columns.tsv", COLUMNS.replace('"', "").replace(", one", "; one").replace(",", "\t"),
         [("a.mp4", [CAPTIONS.replace(",", ";")], "3")]),
        ("semicolons.csv", "path;text\na.mp4;one\nb.mp4;two\n", [("a.mp4", ["one"], None), ("b.mp4", ["two"], None)]),
        ("sep.csv", "sep=;\nfile;caption\na.mp4;one\n", [("a.mp4", ["one"], None)]),
        ("sep.tsv", '"sep=\t"\r\nfile\tcaption\r\na.mp4\tone\r\n', [("a.mp4", ["one"], None)]),
        ("sep.txt", "SEP=,\na.mp4,one\n", [("a.mp4", ["one"], None)]),
        ("unread.csv", "file,caption,note,note\na.mp4,one,x,y\n", [("a.mp4", ["one"], None)]),
        ("index.csv", ",file,caption\n0,a.mp4,one\n", [("a.mp4", ["one"], None)]),
        ("empty.csv", "file,caption,\na.mp4,one,\n", [("a.mp4", ["one"], None)]),
        ("excel.csv", "\ufefffile,caption\na.mp4,one\n", [("a.mp4", ["one"], None)]),
        ("breaks.csv", 'file,caption\na.mp4,"one\ntwo"\nb.mp4,three\n',
         [("a.mp4", ["one two"], None), ("b.mp4", ["three"], None)]),
        ("breaks.txt", 'a.mp4,"one\ntwo"\nb.mp4,three\n', [("a.mp4", ["one two"], None), ("b.mp4", ["three"], None)]),
        ("stray.txt", 'a.mp4,"five inches\nb.mp4,three\n',
         [("a.mp4", ["five inches"], None), ("b.mp4", ["three"], None)]),
        ("prose.csv", "a.mp4,a man, who walks\nb.mp4,1,000 people\n",
         [("a.mp4", ["a man, who walks"], None), ("b.mp4", ["1,000 people"], None)]),
        ("digits.txt", 'a.mp4 7\nb.mp4 "7"\n', [("a.mp4", [], "7"), ("b.mp4", ["7"], None)]),
        ("digits.csv", "file,caption\na.mp4,7\n", [("a.mp4", ["7"], None)]),
        ("twice.txt", "a.mp4 one\n./a.mp4 two\na.mp4 one\n", [("a.mp4", ["one", "two"], None)]),
        ("list.jsonl", '{"video": "a.mp4", "captions": ["one", "two"]}\n{"video": "b.mp4", "caption": "c"}\n',
         [("a.mp4", ["one", "two"], None)]),
        ("list.json", '[{"path": "a.mp4", "caption": "one"}]', [("a.mp4", ["one"], None)]),
        ("list.jsonl", '[{"path": "a.mp4", "caption": "one"},\n{"path": {"b": 1}}]', [("a.mp4", ["one"], None)]),
        ("webvid.csv", "videoid,contentUrl,duration,page_dir,name\n7,https://x/7.mp4,PT1S,0_5,a cat\n",
         [("0_5/7", ["a cat"], None)]),
        ("msrvtt.json", json.dumps({
            "videos": [
                {"video_id": "video0", "split": "train", "category": 9}, {"video_id": "video1", "split": "test"}],
            "sentences": [{"video_id": "video0", "caption": "a"}, {"video_id": "video0", "caption": "b"}]}),
         [("video0", ["a", "b"], "9")]),
        ("ssv2.json", json.dumps(SSV2[:1]), [("78687", ["holding potato next to vicks bottle"],
         "Holding something next to something")]),
    ],
)  # fmt: skip
def test_captions_and_labels_go_by_columns(tmp_path: Path, name: str, text: str, wanted: list) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    entries = read_list(tmp_path / name, Selection(wanted="caption")).entries
    found = [(entry.path, entry.captions, entry.label) for entry in entries]
    assert found[: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.csv",
            b"file,caption,Caption\na.mp4,one,two\n",
            "a.csv: 2 columns are named caption: rename all but one",
        ),
        ("a.csv", b"sep=;\nfile;label;file\na.mp4;one;b.mp4\n", "2 columns are named file"),
        ("a.csv", COLUMNS.encode("utf-16") + b"x", "begins as UTF-16 and is none at byte"),
        ("a.txt", "a.mp4 one\n".encode("utf-16")[:-1], "begins as UTF-16 and is none at byte 20 of 21"),
    ],
)
def test_what_is_not_clear_in_a_table_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_list(tmp_path / name, Selection(wanted="caption"))


def test_text_in_utf16_and_gzip_is_read_and_what_was_understood_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(COLUMNS, encoding="utf-16")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(COLUMNS.encode()))
    for name in ("a.csv", "b.csv.gz"):
        listing = read_list(tmp_path / name, Selection("test"))
        assert [(entry.path, entry.label) for entry in listing.entries] == [("b.mp4", "4")]
        assert listing.layout == (
            "columns file, caption, label, split; not read: frames; 1 rows of test, not used: 1 train"
        )


@pytest.mark.parametrize(
    ("values", "role", "wanted"),
    [
        ("train val test", "train", "a"),
        ("train val test", "test", "c"),
        ("train val val", "test", "bc"),
        ("training validate testing", "test", "c"),
        ("val val val", "train", "abc"),
    ],
)
def test_a_split_column_is_obeyed(tmp_path: Path, values: str, role: Role, wanted: str) -> None:
    rows = "".join(f"{name}.mp4,1,{value}\n" for name, value in zip("abc", values.split()))
    (tmp_path / "s.csv").write_text("file,label,subset\n" + rows)
    assert [path[0] for path, _ in labels(tmp_path / "s.csv", role)] == list(wanted)


@pytest.mark.parametrize("name", ["s.csv", "s.json"])
def test_rows_without_a_split_where_others_have_one_are_named(tmp_path: Path, name: str) -> None:
    """They were of no part; and where all others were of one, of both."""
    rows = [("a", "train"), ("b", ""), ("c", "test"), ("d", None)]
    if name == "s.csv":
        text = "file,label,split\n" + "".join(f"{path}.mp4,1,{split or ''}\n" for path, split in rows) + "e.mp4\n"
    else:
        text = json.dumps([{"file": f"{path}.mp4", "label": 1, "split": split} for path, split in rows])
    (tmp_path / name).write_text(text)
    for role, wanted in (("train", "a"), ("test", "c")):
        listing = read_list(tmp_path / name, Selection(role))
        assert [entry.path[0] for entry in listing.entries] == [wanted]
        assert {problem.key[0]: problem.reason for problem in listing.problems} == {
            path: "bad_row" for path in ("bde" if name == "s.csv" else "bd")
        }
        assert "no split, where other rows have one" in listing.problems[0].detail


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "columns .*without names"),
        ("x.csv", "file,b\n1,2\n", "columns file, b: none is a label.*; data.label=b takes that column"),
        ("x.csv", "label,b\n1,2\n", "columns label, b: none is a file"),
        ("x.json", '{"a": 1}', "wanted a list of objects"),
        ("x.json", '[{"id": "4"}]', "the test list has no labels"),
        ("x.json", "[", "not valid JSON"),
        ("x.json", '[\n{"file": "a.mp4", 3}]', "x.json: not valid JSON: .*, at line 2 column"),
        ("x.jsonl", '{"file": "a.mp4"}\n\n{"file": 1, x}\n', "x.jsonl line 3: not valid JSON: .*, at column"),
        ("x.txt", "lonely\n", r"x.txt line 1: wanted 'path label', found 'lonely'"),
        ("x.txt", "\n", "lists no video"),
        ("x.txt", "v.mp4 0 5 9\n", r"line 1: several numbers after the path \(0 5 9\)"),
        ("x.txt", "v.mp4 3,5\n", r"several numbers"),
        ("x.txt", "v.mp4 3\nw.mp4 4\nv.mp4 5\n", "line 3: 'v.mp4' has another label, '5', than at .* line 1, '3'"),
        ("x.csv", "file,label\nv.mp4,3;5\n", r"line 2: 'v.mp4' has several labels \('3;5'\)"),
        ("x.json", '[{"file": "v.mp4", "label": [3, 5]}]', "several labels"),
        ("x.json", '[{"file": "v.mp4", "label": {"walk": 1}}]', r"a label that is .*walk.*: wanted text or a number"),
        ("x.json", '{"videos": {"video0": 1}, "sentences": []}', "videos is no list, as MSR-VTT's is"),
        ("x.json", '{"videos": [{"id": 1}], "sentences": []}', "video 1 has no video_id, as MSR-VTT's do"),
        ("x.txt", "v.mp4 0 train\n", "'0 train' is several columns, or one label"),
        ("x.txt", "v.mp4 walk train\n", "'walk train' is several columns"),
        ("x.csv", "v.mp4,walk,a man walks,0,train\n", "several columns without names"),
        ("x.csv", 'v.mp4,"a man, walking",train\n', "3 columns without names"),
        ("x.tsv", "v.mp4\twalk\ttrain\n", "several columns without names"),
        (
            "x.csv",
            "file,label,start,end\nv.mp4,walk,0,4.5\n",
            "line 2: a span of a video .*tgm-scale shards make --annotations",
        ),
        (
            "x.csv",
            "file,label,split\na.mp4,1,1\nb.mp4,1,2\n",
            "x.csv line 2: its split is '1': wanted train, val or test",
        ),
        ("x.csv", "file,label,split\na.mp4,1,val\nb.mp4,1,test\n", "none of its rows is of the split 'train'"),
        ("x.csv", 'file,label\na.mp4,"1\n' + "b.mp4,2\n" * 60, "line 2: no CSV .unexpected end of data.: close its"),
        ("x.csv", 'file,label\na.mp4,"1\nb.mp4,2\n', "line 2: no CSV .unexpected end of data.: close its"),
        ("x.csv", 'file,label\na.mp4,1\nb.mp4,"2', "line 3: no CSV .unexpected end of data.: close its"),
        ("x.csv", 'file,label\na.mp4,"1\nb.mp4,2\nc.mp4,"3\nd.mp4,4\n', "line 2: no CSV .',' expected after"),
        ("x.csv", 'file,label\na.mp4,"1\nb.mp4,2\nc.mp4,3"\n', "line 2: a field of 3 lines, with other rows in it"),
        ("x.csv", 'file,label\na.mp4,"1\n' + "b\n" * 60 + '"\n', "line 2: a field of 62 lines, wanted 50 at most"),
        ("x.csv", 'file,label\nclips/a,"run\nof b"\nc,x\n', "line 2: 'clips/a' has a label of several lines"),
        ("x.csv", 'file,label\r\na.mp4,"1\rb.mp4,2\rc.mp4,3"\r', "line 2: a field of 3 lines, with other rows in it"),
        ("x.csv", 'file,label,group\na.mp4,"1,x\nb.mp4,2",y\n', "line 2: a field of 2 lines, with other rows in it"),
        ("x.csv", 'file,label\n"a.mp4" ,"1\nb.mp4,2\nc.mp4,3"\n', "line 2: a field of 3 lines, with other rows in it"),
        ("x.csv", 'file,label\nb.mp4,2\n"a.mp4" ,"1\n', "line 3: no CSV .',' expected after '\"'.: close its"),
        ("x.csv", "file,label,split\na.mp4,1,\nb.mp4,1,test\n", "none of its rows is of the split 'train'"),
        ("x.csv", "file,label,Label\na.mp4,1,2\n", "2 columns are named label: rename all but one"),
        ("x.parquet", "PAR1", "Parquet is not read; make JSON Lines of it: python -c"),
        (
            "x.jsonl",
            '{"YoutubeID": "a", "Start_timestamp": "0", "End_timestamp": "1"}\n',
            "InternVid.*tgm-scale shards make --annotations",
        ),
    ],
)
def test_what_is_not_clear_is_refused_with_what_was_found(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path / name)


@pytest.mark.parametrize("again", ["{root}/v.mp4", "./v.mp4", "../{name}/v.mp4", "{root}/w/../v.mp4"])
def test_a_video_is_the_same_however_its_path_is_written(tmp_path: Path, again: str) -> None:
    (tmp_path / "list").mkdir()
    file, videos = tmp_path / "list" / "x.csv", tmp_path / "videos"
    other = again.format(root=videos, name="videos")
    file.write_text(f"file,label\nv.mp4,walk\n{other},walk\n")
    for root in (str(videos), os.path.relpath(videos)):
        listing = read_list(file, root=root)
        assert [entry.path for entry in listing.entries] == ["v.mp4"]
        assert [(problem.key, problem.reason) for problem in listing.problems] == [(other, "duplicate_row")]
    file.write_text(f"file,label\nv.mp4,walk\n{other},run\n")
    with pytest.raises(ValueError, match=r"line 3: .*has another label, 'run', than at .* line 2, 'walk'"):
        open_labelled(str(file), root=str(videos))


@pytest.mark.parametrize("within", "\u2028\u2029\x85\x0b\x0c")
def test_a_line_ends_at_a_line_break_alone(tmp_path: Path, within: str) -> None:
    rows = [{"file": f"{name}.mp4", "caption": f"a{within}man"} for name in "vw"]
    (tmp_path / "x.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline="")
    if within >= " ":  # JSON has no control character raw but DEL and those above it
        entries = read_list(tmp_path / "x.jsonl", Selection(wanted="caption")).entries
        assert [(entry.path, entry.line) for entry in entries] == [("v.mp4", " line 1"), ("w.mp4", " line 2")]
    (tmp_path / "trainlist01.txt").write_text(f"A{within}B/v.avi 1\rC/w.avi 2\r\n", newline="")
    assert labels(tmp_path / "trainlist01.txt") == [(f"A{within}B/v.avi", "A B"), ("C/w.avi", "C")]
    (tmp_path / "classes.txt").write_text(f"A{within}B\nC\n")
    assert read_classes(str(tmp_path / "classes.txt")) == {"0": [f"A{within}B"], "1": ["C"]}


def test_a_folder_whose_name_ends_as_a_list_is_a_folder(tmp_path: Path) -> None:
    for name in ("s1.csv", "s2.json", "s3.txt.gz"):
        (tmp_path / name).mkdir()
        assert not is_list(tmp_path / name)
    (tmp_path / "s1.csv" / "labels.csv").write_text("file,label\nv.mp4,walk\n")
    assert is_list(tmp_path / "s1.csv") and labels(tmp_path / "s1.csv") == [("v.mp4", "walk")]
    (tmp_path / "s4.parquet").mkdir()
    assert is_list(tmp_path / "s4.parquet"), "Spark writes a table as a folder: it is named as one"


def test_a_list_in_latin_1_is_refused_by_the_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("a.mp4 ok\nb.mp4 café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 2: not UTF-8 .* save the file as UTF-8"):
        read_list(tmp_path / "x.txt", Selection(wanted="caption"))


def test_labels_with_blanks_are_labels(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("path label\nv.mp4 playing guitar\nw.mp4\tplaying the cello\nx.mp4,bend\n")
    assert labels(tmp_path / "x.txt") == [
        ("v.mp4", "playing guitar"),
        ("w.mp4", "playing the cello"),
        ("x.mp4", "bend"),
    ]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    rows = 'a.mp4,1\nb.mp4,1,2\n,3\nc.mp4,a\0b\nd.mp4,"two" words\n"e.mp4" ,"4 "\nf.mp4,5" wide\n"a\nb",3\n'
    (tmp_path / "x.csv").write_text("file,label\n" + rows)
    listing = read_list(tmp_path / "x.csv")
    assert [entry.path for entry in listing.entries] == ["a.mp4", "c.mp4", "e.mp4", "f.mp4"]
    assert [entry.label for entry in listing.entries[2:]] == ["4", '5" wide']
    assert [(problem.key, problem.reason) for problem in listing.problems] == [
        ("b.mp4", "bad_row"), (f"{tmp_path}/x.csv line 4", "bad_row"), ("c.mp4", "bad_label"), ("d.mp4", "bad_row"),
        ("a\nb", "bad_row"),
    ]  # fmt: skip
    assert "3 fields under 2 columns" in listing.problems[0].detail
    for column in ("group", "split"):
        (tmp_path / "y.csv").write_text(f'file,{column},label\na.mp4,"one\nb,two",x\nc.mp4,one,x\n')
        (problem,) = read_list(tmp_path / "y.csv", Selection(role="all")).problems
        assert problem.reason == "bad_row" and f"a {column} of several lines" in problem.detail


def test_only_text_is_a_caption(tmp_path: Path) -> None:
    """What pandas writes for an empty field is none; words are not made from objects and lists."""
    rows = ['"a.mp4", "caption": NaN, "label": null', '"b.mp4", "captions": ["one", null, 3, {"text": "two"}, ["x"]]',
            '"c.mp4", "captions": {"en": "three"}', '"d.mp4", "label": [7], "caption": "four"',
            '"d.mp4", "label": 8']  # fmt: skip
    (tmp_path / "x.json").write_text("[" + ",".join('{"file": ' + row + "}" for row in rows) + "]")
    listing = read_list(tmp_path / "x.json", Selection(wanted="caption"))
    assert [(entry.path[0], entry.captions, entry.label) for entry in listing.entries] == [
        ("a", [], None), ("b", ["one"], None), ("c", [], None), ("d", ["four"], "7")
    ]  # fmt: skip
    assert [(problem.key[0], problem.reason) for problem in listing.problems] == [
        ("b", "bad_caption"), ("b", "bad_caption"), ("b", "bad_caption"), ("c", "bad_caption"), ("d", "bad_label")
    ]  # fmt: skip


def test_a_label_that_epic_has_not(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(EPIC)
    with pytest.raises(ValueError, match=r"data.label=label: for EPIC-Kitchens wanted one of verb, noun, action"):
        read_list(tmp_path / "e.csv")


def test_a_file_is_never_taken_for_another(tmp_path: Path) -> None:
    """A path with another extension first; a bare name only where there is one, and not in another class's folder."""
    names = (
        "a.mp4",
        "deep/er/78687.webm",
        "deep/notes.txt",
        "A/000.mp4",
        "B/000.mp4",
        "B/only.mp4",
        "B/x.webm",
        "B/x.mkv",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
    wanted = {
        "a.mp4": "a.mp4",
        "78687": "deep/er/78687.webm",
        "A/000.avi": "A/000.mp4",
        "B/000": "B/000.mp4",
        "B/x.avi": "B/x.mkv",
        "000.avi": "ambiguous",
        "A/only.avi": "missing_video",
        "old/B/only.avi": "B/only.mp4",
        "notes": "missing_video",
        "elsewhere/a.avi": "ambiguous",
        "dir.mp4": "missing_video",
        "broken.mp4": "missing_video",
    }
    found = VideoFolder(str(tmp_path)).find(list(wanted))
    assert {path: place.removeprefix(f"{tmp_path}/") for path, place in found.places.items()} == {
        path: place for path, place in wanted.items() if "." in place
    }
    assert found.by_name == ["78687", "old/B/only.avi"]
    assert {p.key: p.reason for p in found.problems} == {path: why for path, why in wanted.items() if "." not in why}
    assert VideoFolder(str(tmp_path)).find(["elsewhere/a.avi"]).places == {"elsewhere/a.avi": str(tmp_path / "a.mp4")}
