"""Unsupported table formats (Parquet, Feather, Excel, Hugging Face's datasets): each is refused with the one
command that converts it to JSON Lines, which preserve lists of captions where a CSV would not."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from collections.abc import Iterable

from tgm_scale.runtime.outside.stand_ins import START, stand_in

HEAD = START  # bytes of a file that identify its format
_KINDS = {  # format, reader, and the reader's packages
    ".parquet": ("Parquet", "pandas.read_parquet", "pandas pyarrow"),
    ".feather": ("Feather", "pandas.read_feather", "pandas pyarrow"),
    ".arrow": ("an Arrow table", "datasets.Dataset.from_file", "datasets"),
    ".xlsx": ("an Excel table", "pandas.read_excel", "pandas openpyxl"),
    ".xls": ("an Excel table", "pandas.read_excel", "pandas xlrd"),
    ".ods": ("a spreadsheet", "pandas.read_excel", "pandas odfpy"),
}
FOREIGN_SUFFIXES = tuple(_KINDS)
# An Arrow stream, as datasets writes it, begins with a marker and the length of its header.
_BEGINNINGS = {b"PAR1": ".parquet", b"ARROW1": ".feather", b"FEA1": ".feather", b"\xff\xff\xff\xff": ".arrow",
               b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ".xls"}  # fmt: skip


def foreign_table(path: str, head: bytes = b"") -> str | None:
    """Return why an unsupported table, or a stand-in for a list, is refused, and the remedy; None where neither its
    name nor its first bytes (`head`; read from a local file by default) indicate one. `path` may be a pattern."""
    if not head and os.path.isfile(path):
        with open(path, "rb") as file:
            head = file.read(HEAD)
    if other := stand_in(head, json=True):
        return f"{path}: {other}"
    end = next((end for end in FOREIGN_SUFFIXES if path.lower().endswith(end)), None)
    if end is None and head.startswith(b"PK\3\4"):
        return f"{path}: a zip: unpack it, and name the file in it (an Excel table ends with .xlsx)"
    end = next((kind for begin, kind in _BEGINNINGS.items() if head.startswith(begin)), end)
    if end is None:
        return None
    what, reader, packages = _KINDS[end]
    return f"{path}: {what} is not read; make JSON Lines of it: {_command(path, reader)} (pip install {packages})"


def foreign_folder(folder: str, names: Iterable[str], below: bool) -> str | None:
    """Return the refusal of `foreign_table` for a folder with these names. below: also check its subfolder `data`,
    where the hub keeps the tables."""
    names = sorted(names)
    if "dataset_dict.json" in names:
        parts = [name for name in names if os.path.isdir(os.path.join(folder, name))]
        return _dataset(os.path.join(folder, parts[0] if parts else "train"), f" in parts ({', '.join(parts)})")
    if "state.json" in names and any(name.endswith(".arrow") for name in names):
        return _dataset(folder)
    places = [os.path.join(folder, name) for name in names]
    if below and os.path.isdir(inner := os.path.join(folder, "data")):
        places += [os.path.join(inner, name) for name in sorted(os.listdir(inner))]
    tables = [place for place in places if place.lower().endswith(FOREIGN_SUFFIXES)]
    if not tables:
        return None
    end = os.path.splitext(tables[0])[1]
    place = tables[0] if len(tables) == 1 else os.path.join(os.path.dirname(tables[0]), f"*{end}")
    return f"{foreign_table(place)}; then write the videos that it names, or holds, as files, and name the list"


def _dataset(folder: str, parts: str = "") -> str:
    command = _command(folder, "datasets.load_from_disk")
    return (
        f"{folder}: a dataset of Hugging Face{parts} is not read; make JSON Lines of it: {command} (pip install "
        "datasets), with the videos that lie in it written as files"
    )


def _command(path: str, reader: str) -> str:
    path = re.sub(r"\{[^}]*\}", "*", path)
    folder, name = os.path.split(path.rstrip("/"))
    stem = os.path.splitext(name)[0].replace("*", "").replace("?", "") or "all"
    written_to = os.path.join(folder, f"{stem}.jsonl")
    while os.path.exists(written_to):  # never overwrite an existing file
        written_to = written_to.removesuffix(".jsonl") + "_.jsonl"
    quoted, written = json.dumps(path), json.dumps(written_to)
    library = reader.partition(".")[0]
    table = f"{reader}({quoted})"
    if glob.has_magic(path):
        joined = "pandas.concat" if library == "pandas" else "datasets.concatenate_datasets"
        library, table = f"glob, {library}", f"{joined}([{reader}(name) for name in sorted(glob.glob({quoted}))])"
    more = ', orient="records", lines=True' if "pandas" in library else ""
    return "python -c " + shlex.quote(f"import {library}; {table}.to_json({written}{more})")
