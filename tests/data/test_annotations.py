"""Annotations: what a line means, which rows are used, and which clip goes into which shard."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgm_scale.data.building.annotations import (
    ClipRow,
    Filters,
    Plan,
    caption_fault,
    captions_of,
    parse_row,
    parse_time,
    unfit_captions,
)

LINE = {
    "YoutubeID": "-a_B.9",
    "Start_timestamp": "00:00:01.500",
    "End_timestamp": "00:01:00.000",
    "Caption": "a dog runs",
    "UMT_Score": 0.41,
}


@given(st.integers(0, 400 * 3_600_000))
def test_a_time_reads_back(milliseconds):
    seconds, rest = divmod(milliseconds, 1000)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"
    assert parse_time(text) == milliseconds


@pytest.mark.parametrize("text", ["1.5", "00:61:00.000", "00:00:61.000", "-00:00:01.000", "", None, 3, "00:00:1.0x"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="is not HH:MM:SS"):
        parse_time(text)


def test_keys_are_read_in_any_case_and_the_aesthetic_score_may_be_missing():
    row = parse_row(json.dumps({key.upper(): value for key, value in LINE.items()}))
    assert (row.video, row.start, row.end, row.caption, row.umt, row.aesthetic) == (
        *("-a_B.9", 1500, 60_000, "a dog runs"),
        *(0.41, None),
    )
    assert parse_row(json.dumps({**LINE, "aesthetic_score": 5})).aesthetic == 5.0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "no JSON"),
        ("[1]", "list, not an object"),
        (b"\xff\xfe", "no JSON"),
        (json.dumps({**LINE, "Caption": " "}), "no Caption"),
        (json.dumps({**LINE, "YoutubeID": 7}), "YoutubeID is 7: wanted text"),
        (json.dumps({**LINE, "Start_timestamp": 0}), "Start_timestamp is 0: wanted text, such as 00:01:02.500"),
        (json.dumps({**LINE, "YoutubeID": None}), "no YoutubeID"),
        (json.dumps({**LINE, "Caption": "\ud800"}), r"half a surrogate pair, \\ud800"),
        (json.dumps({**LINE, "End_timestamp": "00:00:01.500"}), "ends .* before it starts"),
        (json.dumps({**LINE, "Start_timestamp": "soon"}), "not HH:MM:SS"),
    ],
)
def test_a_broken_line_says_what_is_wrong(line, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_row(line)


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"json": b'{"captions": ["one", " two ", "", 3]}'}, ["one", "two"]),
        ({"json": b'{"caption": "one", "status": "success"}', "txt": b"other"}, ["one"]),
        ({"json": b'{"Caption": "one"}'}, ["one"]),
        ({"json": b'{"caption": null}', "txt": b"one\n"}, ["one"]),
        ({"json": b"not json", "txt": "caf\u00e9".encode()}, ["caf\u00e9"]),
        ({"json": b"\xff", "txt": b"\xff one"}, []),
        ({"txt": b"caf\xe9"}, []),
        ({"json": b"[1, 2]"}, []),
        ({"txt": b"  "}, []),
        ({"txt": b"\xef\xbb\xbfone"}, ["one"]),
        (
            {"json": b'{"captions": ["\\ufeffone", "cut \\ud83d", "nul \\u0000", "\\u001b[1m", "two\\tthree"]}'},
            ["one", "two\tthree"],
        ),
        ({"json": b"[" * 100_000}, []),
        ({"mp4": b"one"}, []),
    ],
)
def test_captions_of_a_sample(members, captions):
    assert captions_of(members) == captions


def test_an_unfit_caption_is_named_as_anything_can_write_it():
    members = {
        "json": b'{"captions": ["cut emoji \\ud83d", "a\\u0007", "caf\\u00e9 \\u2603 \\ud83d\\ude00", "x\\u0085y"]}'
    }
    assert unfit_captions(members) == [
        r"'cut emoji \ud83d' has half a surrogate pair, \ud83d, at letter 11",
        r"'a\x07' has the control character \x07 at letter 2",
    ]
    assert captions_of(members) == ["caf\u00e9 \u2603 \U0001f600", "x\x85y"]


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ({"txt": b"caf\xe9"}, "no UTF-8 (byte 0xe9 at 3): save it as UTF-8"),
        ({"txt": "a dog".encode("utf-16")}, "no UTF-8 (byte 0xff at 0): save it as UTF-8"),
        ({"json": b'{"caption": {"en": "x"}}'}, "caption is an object: wanted a text or a list of texts"),
        ({"json": b'{"captions": true}'}, "captions is true: wanted a text or a list of texts"),
        ({"json": b'{"Caption": 7}'}, "Caption is a number: wanted a text or a list of texts"),
    ],
)
def test_captions_of_another_kind_are_named(members, fault):
    assert captions_of(members) == [] and caption_fault(members) == ("bad_caption", fault)
    assert unfit_captions({"json": b'{"captions": ["whole"], "caption": 5}', "txt": b"caf\xe9"}) == [], (
        "it has another"
    )


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400, "true", '"0.9"', "null"])
def test_what_is_no_number_is_no_score(score):
    line = json.dumps({**LINE, "UMT_Score": 7}).replace("7}", f"{score}}}")
    row = parse_row(line)
    assert row.umt is None and Filters(min_umt=0.0).rejection_reason(row) == "no_umt_score"


@pytest.mark.parametrize(
    ("filters", "umt", "aesthetic", "reason"),
    [
        (Filters(min_umt=0.4), 0.4, None, None),
        (Filters(min_umt=0.4), 0.39, None, "below_min_umt"),
        (Filters(min_umt=0.4), None, None, "no_umt_score"),
        (Filters(min_aesthetic=4), 0.0, 3.9, "below_min_aesthetic"),
        (Filters(min_aesthetic=4), 0.0, None, "no_aesthetic_score"),
        (Filters(min_seconds=58.5, max_seconds=58.5), None, None, None),
        (Filters(min_seconds=58.6), None, None, "below_min_seconds"),
        (Filters(max_seconds=58.4), None, None, "above_max_seconds"),
    ],
)
def test_filters(filters, umt, aesthetic, reason):
    row = parse_row(json.dumps({**LINE, "UMT_Score": umt, "Aesthetic_Score": aesthetic}))
    assert filters.rejection_reason(row) == reason


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"label": ["walk", "run"]}, "several labels"),
        ({"label": {"walk": 1}}, "a label that is .*: wanted text or a number"),
        ({"Label": "half \ud83d"}, "half a surrogate pair"),
        ({"Caption": ["a dog", "runs"]}, "Caption is .*: wanted text"),
    ],
)
@pytest.mark.parametrize("columns", [False, True])
def test_what_stands_beside_a_caption_is_checked(changes, complaint, columns):
    line = {"file": "a.mp4"} if columns else LINE
    if columns and "Caption" in changes:
        changes, complaint = {"caption": ["a dog", {"text": "runs"}]}, "Caption is .*runs.*: wanted text"
    with pytest.raises(ValueError, match=complaint):
        parse_row(json.dumps({**line, **changes}))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"file": None}, "no file"),
        ({"file": {"x": 1}}, "file is .*: wanted text"),
        ({"start": 3}, "no end"),
        ({"start": -1, "end": 3}, "time '-1.0 s' is not HH:MM:SS.mmm"),
        ({"end": 1e300}, "time '1e.300 s' is not"),
        ({"end": math.nan, "start": 1}, "no end"),
        ({"end": math.inf}, "time 'inf s' is not"),
        ({"end": "0,5"}, "time '0,5' is not"),
        ({"end": [1]}, r"end is \[1\]: wanted text, such as 00:01:02.500"),
        ({"start": 2, "end": 1}, "the span ends .* before it starts"),
    ],
)
def test_what_is_wrong_with_a_row_of_columns_is_said_by_its_column(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_row(json.dumps({"file": "a.mp4", "caption": "c", **changes}))


def test_a_row_of_a_list_may_have_several_captions_or_a_label_alone():
    assert parse_row('{"path": "a.mp4", "captions": ["one", "two"]}').captions == ("one", "two")
    row = parse_row('{"path": "a.mp4", "label": 3, "caption": null}')
    assert (row.captions, row.label, row.whole, row.file) == ((), "3", True, "a.mp4")
    row = parse_row('{"file": 7, "caption": "c", "end": 0.5}')
    assert (row.video, row.start, row.end) == ("7", 0, 500)


@given(st.lists(st.tuples(st.text(min_size=1), st.integers(0, 99), st.integers(100, 199)), unique=True))
def test_sample_keys_are_safe_and_tell_clips_apart(spans):
    keys = {ClipRow(*span).key for span in spans}
    assert len(keys) == len(spans)
    assert all(key.isascii() and not set(key) & set("./ \\") for key in keys)


rows = st.lists(
    st.tuples(
        st.sampled_from("abcdef"), st.integers(0, 5), st.sampled_from(["x", "y", "z"]), st.sampled_from([0.1, 0.9])
    )
)


@settings(deadline=None, max_examples=60)
@given(rows, st.integers(1, 7), st.randoms(use_true_random=False))
def test_every_clip_has_one_place_whatever_the_order_of_rows(tmp_path_factory, drawn, clips_per_shard, shuffler):
    """Against a plain grouping of the rows; and a shuffled file gives the same shards with the same clips."""
    folder = tmp_path_factory.mktemp("plan")
    wanted = defaultdict(set)
    for video, start, caption, umt in drawn:
        if umt >= 0.5:
            wanted[ClipRow(video, start * 1000, start * 1000 + 500).key].add(caption)
    plans = []
    for name in ("a", "b"):
        path = folder / name
        path.write_text("".join(_line(*row) + "\n" for row in drawn))
        plans.append(Plan(path, Filters(min_umt=0.5), clips_per_shard))
        shuffler.shuffle(drawn)
    first, second = ([{c.key: set(c.captions) for c in s} for s in p.clips_of(range(p.shards))] for p in plans)
    assert first == second
    assert [list(shard) for shard in first] == [list(shard) for shard in second]
    made = [clip for shard in first for clip in shard.items()]
    assert sorted(made) == sorted(wanted.items()) and plans[0].clips == len(wanted)
    assert all(len(shard) == clips_per_shard for shard in first[:-1])
    assert plans[0].clips_in(range(len(first))) == len(made)
    for number, shard in enumerate(first):
        assert [c.key for c in next(plans[0].clips_of([number]))] == list(shard)


def _line(video, start, caption, umt):
    span = {"Start_timestamp": f"00:00:{start:02d}.000", "End_timestamp": f"00:00:{start:02d}.500"}
    return json.dumps({"YoutubeID": video, **span, "Caption": caption, "UMT_Score": umt})


def test_clips_are_shuffled_over_shards(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(_line(f"video{i // 10}", i % 10, "x", 1) + "\n" for i in range(300)))
    plan = Plan(path, Filters(), 10)
    videos = [len({clip.video for clip in shard}) for shard in plan.clips_of(range(plan.shards))]
    assert min(videos) >= 6, "the ten clips of a video must not share a shard"


def test_broken_rows_are_named_by_line_and_filtered_ones_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([_line("a", 0, "x", 1), "{", "", _line("a", 1, "x", 0.1), _line("a", 2, " ", 1)]))
    plan = Plan(path, Filters(min_umt=0.5), 10)
    assert plan.rows == 4 and plan.clips == 1 and plan.left_out == {"below_min_umt": 1}
    assert [(problem.key, problem.reason) for problem in plan.problems] == [
        ("line 2", "broken_row"),
        ("line 5", "broken_row"),
    ]


def test_the_real_file(real):
    plan = Plan(real / "internvid.jsonl", Filters(min_umt=0.3, min_aesthetic=4.0, min_seconds=1), 16)
    lines = [json.loads(line) for line in (real / "internvid.jsonl").read_text().splitlines()]
    assert plan.rows == len(lines) == 60 and not plan.problems
    assert plan.left_out["no_aesthetic_score"] == sum("Aesthetic_Score" not in line for line in lines) == 1
    assert plan.clips + plan.left_out.total() == 60
    random.Random(0).shuffle(lines)
    chosen = {clip.key for shard in plan.clips_of(range(plan.shards)) for clip in shard}
    for line in lines:
        row = parse_row(json.dumps(line))
        assert (ClipRow(row.video, row.start, row.end).key in chosen) == (plan.filters.rejection_reason(row) is None)
