"""Lists of videos with captions or labels: one reader for training and evaluation.

| kind | what it is |
|---|---|
| columns | CSV (`,`, tab, `;`, `|`), JSON, JSON Lines: `file` and any of `caption, label, group, split, start, end` |
| lines | a path that ends as a video does, then a caption or a label |
| published | Kinetics, Something-Something V2, UCF101, HMDB51, Diving48, EPIC-Kitchens-100, MSR-VTT, WebVid |
| folder | video files, NAME.txt or NAME.json next to those that have a caption; a folder of folders gives labels |

`list_rows` says what a row of each means. What is not clear is refused by the line, never guessed at: a guess trains
on wrong captions silently."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tgm_scale.contracts import Problem
from tgm_scale.data.access import storage
from tgm_scale.data.lists.foreign_tables import FOREIGN_SUFFIXES, HEAD, foreign_table
from tgm_scale.data.lists.row import Row, caption_fault, label_text
from tgm_scale.data.lists.rows import rows_of
from tgm_scale.data.lists.text import cleaned, decoded, shown

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl")
Role = Literal["train", "test"]
Wanted = Literal["caption", "label"]

_TRAIN, _VALIDATION, _TEST = {"train", "training"}, {"val", "valid", "validate", "validation"}, {"test", "testing"}
_SEVERAL = re.compile(r"-?\d+(?:\s*[,;|/\s]\s*-?\d+)+")


@dataclass
class Entry:
    """A video of a list: its path as written, with or without an extension, and its captions, label and group."""

    path: str
    captions: list[str] = field(default_factory=list)
    label: str | None = None
    group: str | None = None


@dataclass
class Listing:
    """A list as it was parsed."""

    path: str
    entries: list[Entry]
    layout: str  # in words: what was read as what
    problems: list[Problem] = field(default_factory=list)  # of rows: bad_row, bad_caption, bad_label


def is_list(spec: object) -> bool:
    """Whether `spec` names a list rather than shards."""
    if not isinstance(spec, (str, os.PathLike)):
        return False
    path = os.fspath(spec)
    if path.lower().removesuffix(".gz").endswith(LIST_SUFFIXES + FOREIGN_SUFFIXES):
        return True
    return not storage.is_url(path) and os.path.isdir(path) and any(Path(path).glob("*_test_split?.txt"))


class NoList(ValueError):
    """There is no list where one was named."""


def read_list(
    path: str | Path,
    role: Role = "train",
    *,
    wanted: Wanted = "label",
    label: str = "label",
    split: int = 1,
    patience: float | None = None,
) -> Listing:
    """The videos of a list, detected by what it holds.

    role: which rows of a `split` column, or of HMDB51's folder (its split number `split`), are used. wanted: what the
    text after a path is where no column says so. label: the column of labels; for EPIC-Kitchens-100 verb, noun or
    action. patience: of a list at a URL, see `retrying`.
    Raises ValueError that names the file, the line, what was found and what was wanted."""
    path = os.fspath(path)
    if refusal := foreign_table(path):
        raise ValueError(refusal)
    text = "" if os.path.isdir(path) else _text(path, patience)
    layout, rows = rows_of(path, text, role, wanted, label, split)
    used, chosen = _of_role(list(rows), role, path)
    listing = Listing(path, [], "; ".join(part for part in (layout, chosen) if part))
    _gather(listing, used, wanted)
    if not listing.entries:
        raise ValueError(
            f"{path}: lists no video" + (f" ({listing.problems[0].detail})" if listing.problems else ": an empty list")
        )
    return listing


def _text(path: str, patience: float | None) -> str:
    data = storage.read_small(path, patience)
    if data is None:
        raise NoList(f"{path}: no such list of videos")
    data = storage.unpacked(data, path)
    if refusal := foreign_table(path, data[:HEAD]):
        raise ValueError(refusal)
    return decoded(data, path)


def _of_role(rows: list[Row], role: Role, path: str) -> tuple[list[Row], str]:
    """The rows of the part that is asked for, and what was chosen, in words. A column that says the same of all rows
    chooses nothing; where it says nothing of some, these are faulty."""
    values = Counter(row.split.strip().lower() for row in rows if row.split)
    blank = [row for row in rows if not row.split]
    if len(values) + bool(blank) < 2:
        return rows, ""
    if unknown := sorted(values.keys() - _TRAIN - _VALIDATION - _TEST):
        raise ValueError(f"{path}: its column of splits says {shown(unknown[0])}: wanted train, val or test")
    wanted = _TRAIN if role == "train" else _TEST if values.keys() & _TEST else _VALIDATION
    used = [row for row in rows if row.split and row.split.strip().lower() in wanted]
    if not used:
        raise ValueError(f"{path}: none of its rows is of the split {sorted(wanted)[0]!r}: {dict(values)}")
    others = ", ".join(f"{count} {name}" for name, count in sorted(values.items()) if name not in wanted) or "none"
    for row in blank:
        row.fault = row.fault or "no split, where other rows have one: wanted train, val or test"
    return used + blank, f"{len(used)} rows of {role}, not used: {others}"


def _gather(listing: Listing, rows: Iterable[Row], wanted: Wanted) -> None:
    """One entry a video. Captions of the same path are captions of one clip; labels must agree."""
    entries: dict[str, Entry] = {}
    labelled_at: dict[str, str] = {}  # where the label of each video stands
    for row in rows:
        if row.fault:
            listing.problems.append(Problem(row.path or row.where, "bad_row", f"{row.where}: {row.fault}"))
            continue
        if row.start or row.end:
            raise ValueError(
                f"{row.where}: a span of a video ({row.start} to {row.end}): cut the clips first, with "
                f"tgm-scale shards make --annotations {listing.path} --videos DIR --output SHARDS"
            )
        path = os.path.normpath(row.path) if not storage.is_url(row.path) else row.path
        entry = entries.setdefault(path, Entry(row.path, group=row.group))
        for caption in row.captions:
            if fault := caption_fault(caption):
                listing.problems.append(Problem(row.path, "bad_caption", f"{row.where}: {fault}"))
            elif (text := _checked(listing, row, caption, "bad_caption")) and text not in entry.captions:
                entry.captions.append(text)
        label = _checked(listing, row, _label(listing, row, wanted), "bad_label")
        if not label:
            continue
        if row.single and wanted == "label" and _SEVERAL.fullmatch(label):
            raise ValueError(f"{row.where}: {shown(row.path)} has several labels ({shown(label)}): {_ONE_LABEL}")
        if entry.label is not None and entry.label != label:
            if wanted == "label":
                raise ValueError(
                    f"{row.where}: {shown(row.path)} has another label, {shown(label)}, than at {labelled_at[path]}, "
                    f"{shown(entry.label)}: {_ONE_LABEL}"
                )
            detail = f"{row.where}: not {shown(label)}, but {shown(entry.label)} as at {labelled_at[path]}"
            listing.problems.append(Problem(row.path, "bad_label", detail))
            continue
        entry.label, labelled_at[path] = label, row.where
    listing.entries = list(entries.values())


_ONE_LABEL = "a video has one label here; give one a video, or leave such videos out"


def _label(listing: Listing, row: Row, wanted: Wanted) -> str | None:
    """The label of a row. An invalid one is an error where labels are wanted, and a problem otherwise."""
    try:
        return label_text(row.label)
    except ValueError as error:
        if wanted == "label":
            raise ValueError(f"{row.where}: {shown(row.path)} has {error}: {_ONE_LABEL}") from None
        listing.problems.append(Problem(row.path, "bad_label", f"{row.where}: {error}"))
        return None


def _checked(listing: Listing, row: Row, text: str | None, reason: str) -> str:
    """The text; "" if it is missing or unfit, which is then a problem."""
    try:
        return " ".join(cleaned(text).split()) if isinstance(text, str) else ""
    except ValueError as error:
        listing.problems.append(Problem(row.path, reason, f"{row.where}: {error}"))
        return ""
