"""Rows of lists: columns by their names, lines of a path and a text, and the published formats.

| dataset | file | path of the video | label or caption |
|---|---|---|---|
| Kinetics | CSV `label,youtube_id,time_start,time_end,split` | `ID_SSSSSS_SSSSSS` | `label` |
| Something-Something V2 | JSON list with `id`, `template` | `ID` | the template without brackets; `label` |
| UCF101 | `trainlist01.txt`, `testlist01.txt` | `CLASS/NAME.avi` | the folder |
| HMDB51 | folder of `CLASS_test_splitN.txt` | `NAME.avi` | the file's class |
| Diving48 | JSON list with `vid_name`, `label` | `VID_NAME` | `label` |
| EPIC-Kitchens-100 | CSV with `narration_id`, `verb_class` ... | `NARRATION_ID`, a cut clip | verb, noun, action |
| MSR-VTT | JSON with `videos` and `sentences` | `VIDEO_ID` | `caption` |
| WebVid | CSV with `videoid`, `name` | `PAGE_DIR/VIDEOID` | `name` |
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tgm_scale.data.lists.lines import is_ucf101, lines_of, ucf101
from tgm_scale.data.lists.row import (
    COLUMNS,
    FAULT,
    Row,
    Rows,
    absent,
    header_of,
    of_list,
    place_fault,
    table_rows,
    without_separator_line,
)
from tgm_scale.data.lists.selection import Selection
from tgm_scale.data.lists.text import decoded, lines_in, shown
from tgm_scale.runtime.outside.json_text import json_of

EPIC_LABELS = ("verb", "noun", "action")
_HMDB_USE = {"train": "1", "test": "2", "all": "12"}  # the third field of a line; 0: not in this split


Fields = Mapping[str, Any]  # keyed by column name, in lower case


def rows_of(path: str, text: str, selection: Selection) -> Rows:
    """Return a description of a list's layout, and its rows. Raises ValueError for an unknown layout."""
    if os.path.isdir(path):
        return f"HMDB51's split {selection.split}", _hmdb51(Path(path), selection)
    name = path.lower().removesuffix(".gz")
    if name.endswith((".json", ".jsonl")):
        return _json(path, text, selection, one_a_line=name.endswith(".jsonl"))
    if is_ucf101(path):
        return "UCF101's list: labels are the folders", ucf101(path, text)
    text = without_separator_line(text)
    header = _header(path, text)
    if header is None:
        return lines_of(path, text, selection.wanted)
    columns, delimiter = header
    rows = table_rows(io.StringIO(text, newline=""), columns, delimiter, path)
    number, heading = next(rows)
    if any(delimiter in line for value in heading.values() for line in lines_in(value)[1:]):
        raise ValueError(
            f"{path} line {number}: a name of a column has several lines, with what may be rows in it: close its "
            "quotation mark, or put it on one line"
        )
    below = ((f"{path} line {number}", fields) for number, fields in rows)
    return _by_columns(path, columns, below, selection)


def _header(path: str, text: str) -> tuple[list[str], str] | None:
    """Return the columns that the first line names, and their delimiter; None if it is not a header."""
    first = next((line for line in lines_in(text) if line.strip()), "")
    known = {name for names in COLUMNS.values() for name in names}
    known |= {name for signature, _, _ in _PUBLISHED for name in signature}
    return header_of(first, known, path)


def _by_columns(path: str, columns: list[str], rows: Iterable[tuple[str, Fields]], selection: Selection) -> Rows:
    names, label, wanted = set(columns), selection.label, selection.wanted
    if {"youtubeid", "start_timestamp", "end_timestamp"} <= names:
        raise ValueError(
            f"{path}: InternVid's annotations, spans of videos: cut the clips first, with tgm-scale shards make "
            f"--annotations {path} --videos DIR --output SHARDS"
        )
    for signature, title, read in _PUBLISHED:
        if set(signature) <= names:
            return title, (_guarded(where, fields, read, label) for where, fields in rows)
    own = {}
    for meaning, synonyms in COLUMNS.items():
        named = {"label": label, "group": selection.group}.get(meaning, "").lower()
        own[meaning] = next((name for name in (named, *synonyms) if name and name in names), None)
    for key, named in {"group": selection.group, **({"label": label} if wanted == "label" else {})}.items():
        if named.lower() not in {*names, key}:
            raise ValueError(f"{path}: data.{key}={named}: no such column; there are {', '.join(columns)}")
    if own["file"] is None or (wanted == "label" and own["label"] is None):
        lacks = "file" if own["file"] is None else "label"
        others = [name for name in columns if name.lower() not in own.values()]
        raise ValueError(
            f"{path}: columns {', '.join(columns)}: none is a {lacks}; wanted file and any of "
            f"{', '.join(list(COLUMNS)[1:])}, or Kinetics' (label, youtube_id, time_start, time_end), EPIC-Kitchens' "
            "(narration_id, verb_class, noun_class), WebVid's (videoid, name)"
            + (f"; data.label={others[0]} takes that column for labels" if lacks == "label" and others else "")
        )
    read_columns = {name for name in own.values() if name is not None} | set(COLUMNS["caption"])
    layout = "columns " + ", ".join(
        meaning if meaning == name else f"{meaning} ({name})" for meaning, name in own.items() if name is not None
    )
    if rest := [name for name in columns if name and name not in read_columns]:
        layout += f"; not read: {', '.join(rest)}"
    return layout, (_row(where, fields, own) for where, fields in rows)


def _row(where: str, fields: Fields, own: Mapping[str, str | None]) -> Row:
    def text(meaning: str) -> str:
        value = fields.get(own[meaning] or "\0")
        return "" if absent(value) else str(value).strip()

    row = Row(where, text("file"), group=text("group") or None, split=text("split"))
    row.start, row.end = text("start"), text("end")
    row.label = fields.get(own["label"] or "\0")
    row.captions = of_list(next((fields[name] for name in COLUMNS["caption"] if fields.get(name)), None))
    row.fault = str(fields.get(FAULT) or place_fault(row))
    if isinstance(fields.get(own["file"] or "\0"), (list, dict)):
        row.path, row.fault = "", f"file is {shown(row.path)}: wanted text"
    return row


def _guarded(where: str, fields: Fields, read: Callable[[str, Fields, str], Row], label: str) -> Row:
    try:
        row = read(where, fields, label)
        row.fault = place_fault(row)
    except _WrongLabel:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        row = Row(where, "", fault=f"{type(error).__name__}: {error}")
    row.fault = str(fields.get(FAULT) or row.fault)
    return row


class _WrongLabel(ValueError):
    """Error in the configuration, not in the row."""


def _name(fields: Fields, key: str) -> str:
    """Return the name of the video. Raises ValueError where there is none."""
    name = fields[key]
    if isinstance(name, (list, dict)):
        raise ValueError(f"{key} is {shown(str(name))}: wanted text")
    if absent(name) or not str(name).strip():
        raise ValueError(f"no {key}")
    return str(name).strip()


def _kinetics(where: str, fields: Fields, label: str) -> Row:
    start, end = (round(float(fields[name])) for name in ("time_start", "time_end"))
    path = f"{_name(fields, 'youtube_id')}_{start:06d}_{end:06d}"
    return Row(where, path, label=fields["label"], split=fields.get("split"))


def _epic(where: str, fields: Fields, label: str) -> Row:
    if label not in EPIC_LABELS:
        raise _WrongLabel(f"data.label={label}: for EPIC-Kitchens wanted one of {', '.join(EPIC_LABELS)}")
    classes = {name: fields[f"{name}_class"] for name in ("verb", "noun")}
    found = f"{classes['verb']},{classes['noun']}" if label == "action" else classes[label]
    return Row(where, _name(fields, "narration_id"), [fields.get("narration")], found, single=False)


def _webvid(where: str, fields: Fields, label: str) -> Row:
    path = os.path.join(str(fields.get("page_dir") or ""), _name(fields, "videoid"))
    return Row(where, path, [fields["name"]])


def _ssv2(where: str, fields: Fields, label: str) -> Row:
    of_clip = re.sub(r"[\[\]]", "", fields["template"])
    return Row(where, _name(fields, "id"), [fields.get("label")], of_clip, single=False)


def _diving48(where: str, fields: Fields, label: str) -> Row:
    return Row(where, _name(fields, "vid_name"), label=fields["label"])


_PUBLISHED: tuple[tuple[tuple[str, ...], str, Callable[[str, Fields, str], Row]], ...] = (
    (("narration_id", "verb_class", "noun_class"), "EPIC-Kitchens-100", _epic),
    (("label", "youtube_id", "time_start", "time_end"), "Kinetics", _kinetics),
    (("videoid", "name"), "WebVid", _webvid),
    (("id", "template"), "Something-Something V2", _ssv2),
    (("vid_name", "label"), "Diving48", _diving48),
)


def _json(path: str, text: str, selection: Selection, one_a_line: bool) -> Rows:
    one_a_line = one_a_line and not text.lstrip().startswith("[")
    lines = [(n, line) for n, line in enumerate(lines_in(text), 1) if line.strip()] if one_a_line else []
    if one_a_line:
        content: Any = [_valid(f"{path} line {n}", line) for n, line in lines]
    else:
        content = _valid(path, text)
    if isinstance(content, dict) and {"videos", "sentences"} <= content.keys():
        return "MSR-VTT", list(_msrvtt(path, content))
    if not isinstance(content, list) or not content or not all(isinstance(row, dict) for row in content):
        raise ValueError(
            f"{path}: wanted a list of objects with file and caption or label (or id and template, as "
            "Something-Something V2 has them; vid_name and label, as Diving48; MSR-VTT's videos and sentences)"
        )
    rows = [{str(key).lower(): value for key, value in row.items()} for row in content]
    places = [f"{path} line {n}" for n, _ in lines] or [f"{path} item {n}" for n in range(1, len(rows) + 1)]
    if "id" in rows[0] and not {"template"} & rows[0].keys() and not set(COLUMNS["file"]) & rows[0].keys():
        raise ValueError(
            f"{path}: keys {', '.join(sorted(rows[0]))}; of Something-Something the test list has no labels (id, "
            "template): use the validation list"
        )
    return _by_columns(path, sorted({key for row in rows for key in row}), zip(places, rows), selection)


def _valid(where: str, text: str) -> Any:
    try:
        return json_of(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        raise ValueError(f"{where}: not valid JSON: {error.msg}, at {at}") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None


def _msrvtt(path: str, content: Mapping[str, Any]) -> Iterator[Row]:
    captions = defaultdict(list)
    for sentence in _objects(path, content, "sentences", ("video_id", "caption")):
        captions[str(sentence["video_id"])].append(sentence["caption"])
    for number, video in enumerate(_objects(path, content, "videos", ("video_id",)), 1):
        name = str(video["video_id"])
        yield Row(f"{path} video {number}", name, captions[name], video.get("category"), split=video.get("split"))


def _objects(path: str, content: Mapping[str, Any], part: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    listed = content[part]
    if not isinstance(listed, list):
        raise ValueError(f"{path}: {part} is no list, as MSR-VTT's is")
    for number, one in enumerate(listed, 1):
        if not isinstance(one, dict) or not set(keys) <= one.keys():
            raise ValueError(f"{path}: {part[:-1]} {number} has no {' and '.join(keys)}, as MSR-VTT's do")
    return listed


def _hmdb51(folder: Path, selection: Selection) -> Iterator[Row]:
    split = selection.split
    files = sorted(folder.glob(f"*_test_split{split}.txt"))
    if not files:
        raise ValueError(f"{folder}: no *_test_split{split}.txt: wanted HMDB51's folder of splits, data.split 1 to 3")
    for file in files:
        label = file.name.removesuffix(f"_test_split{split}.txt")
        for number, line in enumerate(lines_in(decoded(file.read_bytes(), str(file))), 1):
            name, _, use = line.strip().rpartition(" ")
            if name and use in _HMDB_USE[selection.role]:
                yield Row(f"{file} line {number}", name.strip(), label=label)
