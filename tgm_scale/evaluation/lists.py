"""Labelled lists of the action datasets, each in the format that its authors publish, read into paths and labels.

| dataset | file | path of the video | label |
|---|---|---|---|
| Kinetics | CSV `label,youtube_id,time_start,time_end,split` | `ID_SSSSSS_SSSSSS.*` | `label` |
| Something-Something V2 | JSON list with `id`, `template` | `ID.*` | the template without brackets |
| UCF101 | `trainlist01.txt`, `testlist01.txt` | `CLASS/NAME.avi` | the folder |
| HMDB51 | folder of `CLASS_test_splitN.txt` | `NAME.avi` | the file's class |
| Diving48 | JSON list with `vid_name`, `label` | `VID_NAME.*` | `label` |
| EPIC-Kitchens-100 | CSV with `narration_id`, `verb_class` ... | `NARRATION_ID.*`, a cut clip | verb, noun, action |
| any | lines `path label`, as VideoMAE's | as it says | the last word |
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

EPIC_LABELS = ("verb", "noun", "action")
_HMDB_USE = {"train": "1", "test": "2"}  # in the third place of a line; 0: not in this split


class Entry(NamedTuple):
    """A video of a list: its path below the root, with or without an extension, and its label."""

    path: str
    label: str


def is_list(spec: object) -> bool:
    """Whether this names a list, rather than shards."""
    if not isinstance(spec, str):
        return False
    path = Path(spec)
    return path.suffix in (".csv", ".json", ".txt") or (path.is_dir() and any(path.glob("*_test_split?.txt")))


def read_list(path: str | Path, role: str = "train", label: str = "label", split: int = 1) -> list[Entry]:
    """The videos and labels of a list in any of the formats above, detected by what it holds.

    role, split: which part of HMDB51's folder. label: for EPIC-Kitchens-100 `verb`, `noun` or `action`.
    Raises ValueError that names the file, what was found and what was wanted."""
    path = Path(path)
    if path.is_dir():
        entries = _hmdb51(path, role, split)
    elif not path.is_file():
        raise ValueError(f"{path}: no such list")
    else:
        entries = _READERS.get(path.suffix, _lines)(path, label)
    if not entries:
        raise ValueError(f"{path}: lists no video with a label")
    return entries


def _csv(path: Path, label: str) -> list[Entry]:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = set(rows[0]) if rows else set()
    if {"narration_id", "verb_class", "noun_class"} <= columns:
        return [Entry(row["narration_id"], _epic_label(row, label)) for row in rows]
    if {"label", "youtube_id", "time_start", "time_end"} <= columns:
        return [Entry(_kinetics_name(row), row["label"]) for row in rows if row["label"]]
    if {"file", "label"} <= columns:
        return [Entry(row["file"], row["label"]) for row in rows]
    if rows and len(columns) == 1 and " " in next(iter(columns)):
        return _lines(path, label)  # VideoMAE calls its lists .csv
    raise ValueError(
        f"{path}: columns {', '.join(sorted(columns)) or 'none'}; wanted Kinetics' (label, youtube_id, time_start, "
        "time_end), EPIC-Kitchens' (narration_id, verb_class, noun_class), or file and label"
    )


def _epic_label(row: dict[str, str], label: str) -> str:
    if label == "action":
        return f"{row['verb_class']},{row['noun_class']}"
    if label not in EPIC_LABELS:
        raise ValueError(f"data.label={label}: for EPIC-Kitchens wanted one of {', '.join(EPIC_LABELS)}")
    return row[f"{label}_class"]


def _kinetics_name(row: dict[str, str]) -> str:
    start, end = (round(float(row[name])) for name in ("time_start", "time_end"))
    return f"{row['youtube_id']}_{start:06d}_{end:06d}"


def _json(path: Path, label: str) -> list[Entry]:
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: wanted a list of objects, as Something-Something V2 and Diving48 have")
    if all({"id", "template"} <= row.keys() for row in rows):
        return [Entry(str(row["id"]), re.sub(r"[\[\]]", "", row["template"])) for row in rows]
    if all({"vid_name", "label"} <= row.keys() for row in rows):
        return [Entry(str(row["vid_name"]), str(row["label"])) for row in rows]
    raise ValueError(
        f"{path}: keys {', '.join(sorted(rows[0]))}; wanted Something-Something's (id, template: the test list has no "
        "labels, use the validation list) or Diving48's (vid_name, label)"
    )


def _lines(path: Path, label: str) -> list[Entry]:
    """`path label`, the label after the last space; UCF101's test lists leave it out, its train lists number it."""
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        name, _, last = line.rpartition(" ")
        if re.fullmatch(r"(train|test)list0\d\.txt", path.name):
            name = name or last
            entries.append(Entry(name, name.rpartition("/")[0]))
        elif name:
            entries.append(Entry(name.strip(), last))
        else:
            raise ValueError(f"{path}:{number}: wanted 'path label', found {line!r}")
    return entries


def _hmdb51(folder: Path, role: str, split: int) -> list[Entry]:
    files = sorted(folder.glob(f"*_test_split{split}.txt"))
    if not files:
        raise ValueError(f"{folder}: no *_test_split{split}.txt: wanted HMDB51's folder of splits, data.split 1 to 3")
    entries = []
    for file in files:
        label = file.name.removesuffix(f"_test_split{split}.txt")
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, use = line.strip().rpartition(" ")
            if use == _HMDB_USE[role]:
                entries.append(Entry(name.strip(), label))
    return entries


_READERS: dict[str, Callable[[Path, str], list[Entry]]] = {".csv": _csv, ".json": _json, ".txt": _lines}


class Folder:
    """Videos below a folder, found by path, with or without extension, or else by file name wherever it lies."""

    def __init__(self, root: str | Path, extensions: tuple[str, ...]) -> None:
        self.root, self._extensions = Path(root), {f".{extension}" for extension in extensions}
        self._by_stem: dict[str, str] | None = None

    def find(self, path: str) -> Path | None:
        """The file that a list means, or None."""
        direct = self.root / path
        if direct.suffix.lower() in self._extensions and direct.is_file():
            return direct
        if self._by_stem is None:
            self._by_stem = self._walk()
        name = Path(path).name
        found = self._by_stem.get(name) or self._by_stem.get(os.path.splitext(name)[0])
        return None if found is None else Path(found)

    def _walk(self) -> dict[str, str]:
        found = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                stem, extension = os.path.splitext(name)
                if extension.lower() in self._extensions:
                    found[stem] = os.path.join(folder, name)
        return found
