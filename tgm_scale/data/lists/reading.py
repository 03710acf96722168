"""Reader of lists of videos with captions or labels, for training and evaluation.

| kind | what it is |
|---|---|
| columns | CSV (`,`, tab, `;`, `|`), JSON, JSON Lines: `file` and any of `caption, label, group, split, start, end` |
| lines | a path with a video extension, then a caption or a label |
| published | Kinetics, Something-Something V2, UCF101, HMDB51, Diving48, EPIC-Kitchens-100, MSR-VTT, WebVid |
| folder | its `labels.csv`, a list by columns; else its video files, NAME.txt or NAME.json next to those with a
  caption, and folders as labels |

`rows` documents what a row of each means. Ambiguous input is refused with its line, never guessed at: a wrong guess
would silently train on wrong captions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tgm_scale.contracts import Problem
from tgm_scale.data.access import storage
from tgm_scale.data.lists.foreign_tables import FOREIGN_SUFFIXES, HEAD, foreign_table
from tgm_scale.data.lists.row import Row, caption_fault, label_text
from tgm_scale.data.lists.rows import rows_of
from tgm_scale.data.lists.selection import Role, Selection, Wanted
from tgm_scale.data.lists.text import cleaned, decoded, shown
from tgm_scale.runtime.files import like

__all__ = ["LABELS", "Entry", "Listing", "NoList", "Role", "Selection", "Wanted", "is_list", "read_list"]

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl")
LABELS = "labels.csv"  # the list of videos in a folder of them
_SEVERAL = re.compile(r"-?\d+(?:\s*[,;|/\s]\s*-?\d+)+")


@dataclass
class Entry:
    """Video of a list: its path as written, with or without an extension, and its captions, label and group.

    line: position of its first row, such as " line 7", which follows the list's path in messages."""

    path: str
    captions: list[str] = field(default_factory=list)
    label: str | None = None
    group: str | None = None
    line: str = ""


@dataclass
class Listing:
    """Parsed list."""

    path: str
    entries: list[Entry]
    layout: str  # a description of what was read as what
    problems: list[Problem] = field(default_factory=list)  # of rows: bad_row, bad_caption, bad_label ...
    of_folder: bool = False  # the folder was named, and the list covers only the videos in it
    chosen: bool = False  # only some rows were chosen, by their split or group

    def where(self, entry: Entry) -> str:
        """Return the entry's position followed by a colon; "" if it is in no file."""
        return f"{self.path}{entry.line}: " if entry.line else ""


def is_list(spec: object) -> bool:
    """Return whether `spec` names a list rather than shards."""
    if not isinstance(spec, (str, os.PathLike)):
        return False
    path = os.fspath(spec)
    if not storage.is_url(path) and os.path.isdir(path):
        return (
            path.lower().endswith(FOREIGN_SUFFIXES) or _has_labels(path) or any(Path(path).glob("*_test_split?.txt"))
        )
    return path.lower().removesuffix(".gz").endswith(LIST_SUFFIXES + FOREIGN_SUFFIXES)


def _has_labels(folder: str) -> bool:
    """Return whether a folder has a labels.csv. Raises ValueError where it has shards, too: either may be meant."""
    if not os.path.isfile(os.path.join(folder, LABELS)):
        return False
    if shards := sorted(Path(folder).glob("*.tar")):
        raise ValueError(
            f"{folder}: holds {LABELS} and shards ({shards[0].name}): name {os.path.join(folder, LABELS)} or "
            f"{os.path.join(folder, '*.tar')}"
        )
    return True


class NoList(ValueError):
    """No list where one was named."""


def read_list(
    path: str | Path,
    selection: Selection | None = None,
    patience: float | None = None,
    root: str | None = None,
) -> Listing:
    """Read a list of videos, with its format detected from its content; for a folder, its labels.csv.

    patience: for a list at a URL, see `retrying`. root: base of relative paths (default: the folder of the list).
    Raises ValueError naming the file, the line, the value and what was wanted."""
    path, selection = os.fspath(path), selection or Selection()
    if of_folder := not storage.is_url(path) and os.path.isdir(path) and _has_labels(path):
        path = os.path.join(path, LABELS)
    if refusal := foreign_table(path):
        raise ValueError(refusal)
    text = "" if os.path.isdir(path) else _text(path, patience)
    layout, rows = rows_of(path, text, selection)
    used, chosen = selection.of(list(rows), path)
    listing = Listing(path, [], "; ".join(part for part in (layout, chosen) if part))
    listing.of_folder, listing.chosen = of_folder, bool(chosen)
    _gather(listing, used, selection, os.path.dirname(path) if root is None else root)
    if not listing.entries:
        raise ValueError(
            f"{path}: lists no video" + (f" ({listing.problems[0].detail})" if listing.problems else ": an empty list")
        )
    return listing


def _text(path: str, patience: float | None) -> str:
    data = storage.read_small(path, patience)
    if data is None:
        raise NoList(f"{path}: no such list of videos{like(path)}")
    data = storage.unpacked(data, path)
    if refusal := foreign_table(path, data[:HEAD]):
        raise ValueError(refusal)
    return decoded(data, path)


def _gather(listing: Listing, rows: Iterable[Row], selection: Selection, root: str) -> None:
    """Merge rows into one entry per video. Captions of the same file, however its path is written, belong to one
    clip; labels must agree, and groups where they are used."""
    wanted = selection.wanted
    entries: dict[str, Entry] = {}
    labelled_at: dict[str, str] = {}  # the row that gave each video its label
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
        if listing.of_folder and (storage.is_url(path) or os.path.isabs(path) or path.split(os.sep)[0] == os.pardir):
            detail = f"{row.where}: not below the folder; for videos elsewhere name the list itself, {listing.path}"
            listing.problems.append(Problem(row.path, "outside_folder", detail))
            continue
        place = path if storage.is_url(path) else os.path.join(root, path)
        path = place if storage.is_url(place) else os.path.abspath(place)
        new = Entry(row.path, group=row.group, line=row.where.removeprefix(listing.path))
        entry = entries.setdefault(path, new)
        if entry is not new:
            _compare(listing, row, entry, selection)
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


def _compare(listing: Listing, row: Row, entry: Entry, selection: Selection) -> None:
    """Check a further row of a video: one that adds nothing is a problem. Raises ValueError if its group differs,
    where groups are used."""
    before = listing.where(entry).removesuffix(": ")
    if row.group != entry.group and (selection.wanted == "label" or selection.test_groups is not None):
        raise ValueError(
            f"{row.where}: {shown(row.path)} is of group {shown(row.group or '')}, and at {before} of "
            f"{shown(entry.group or '')}: a video has one group; give one, or leave such videos out"
        )
    told = [text for text in row.captions if isinstance(text, str) and " ".join(text.split()) not in entry.captions]
    labelled = row.label is not None and str(row.label).strip() != (entry.label or "")
    if not told and not labelled:
        listing.problems.append(Problem(row.path, "duplicate_row", f"{row.where}: the video of {before} again"))


_ONE_LABEL = "a video has one label here; give one a video, or leave such videos out"


def _label(listing: Listing, row: Row, wanted: Wanted) -> str | None:
    """Return the label of a row. An invalid one is an error where labels are wanted, and a problem otherwise."""
    try:
        return label_text(row.label)
    except ValueError as error:
        if wanted == "label":
            raise ValueError(f"{row.where}: {shown(row.path)} has {error}: {_ONE_LABEL}") from None
        listing.problems.append(Problem(row.path, "bad_label", f"{row.where}: {error}"))
        return None


def _checked(listing: Listing, row: Row, text: str | None, reason: str) -> str:
    """Return the text; "" if it is missing or unfit; an unfit one is recorded as a problem."""
    try:
        return " ".join(cleaned(text).split()) if isinstance(text, str) else ""
    except ValueError as error:
        listing.problems.append(Problem(row.path, reason, f"{row.where}: {error}"))
        return ""
