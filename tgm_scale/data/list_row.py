"""What a row of a list says, whatever its layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

COLUMNS = {  # the names that a column goes by
    "file": ("file", "path", "video", "filename", "file_name", "file_path", "filepath", "video_path", "video_name",
             "clip", "video_id"),
    "caption": ("caption", "captions", "text", "sentence", "description"),
    "label": ("label", "class", "category", "action", "class_name"),
    "group": ("group",),
    "split": ("split", "subset"),
    "start": ("start", "start_time", "time_start", "start_seconds", "start_timestamp"),
    "end": ("end", "end_time", "time_end", "end_seconds", "end_timestamp"),
}  # fmt: skip


@dataclass
class Row:
    """A row of a list. `single`: its label may not be several in one field. `fault`: why it cannot be used."""

    where: str
    path: str
    captions: list[str] = field(default_factory=list)
    label: str | None = None
    group: str | None = None
    split: str | None = None
    start: str = ""
    end: str = ""
    single: bool = True
    fault: str = ""


Rows = tuple[str, Iterable[Row]]  # the layout in words, and the rows
