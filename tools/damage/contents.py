"""Damage that keeps a file's form: values and fields of JSON, lines, headers and names in tars."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from damage.kinds import Kind, Random, chosen
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.outside.tars import BLOCK

_NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**400, 1e308, float("nan"), "", "x", "../up", "/etc/passwd", [], {}, [None], {"a": 1},
    "\u001b[31m", "a" * 5000, -5, 0.5, "1",
)  # fmt: skip
_NAMES = ("", "../up", "/etc/x", "a/b", "\u001b[31mred", "line\nend", "x" * 90, "a.b", "naïve-\u65e5", "-x", " ")
_TEXT = (".json", ".jsonl", ".yaml", ".txt")


def _places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The way to every value of a tree of JSON but the whole."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in inner for place in [(*path, key), *_places(value, (*path, key))]]


def _changed(random: Random, tree: Any, drop: bool) -> Any:
    """One value is another, or (`drop`) one field or element is not there."""
    places = _places(tree)
    if not places:
        return _NASTY[int(random.integers(len(_NASTY)))]
    *way, last = places[int(random.integers(len(places)))]
    node = tree
    for key in way:
        node = node[key]
    if drop:
        del node[last]
    else:
        node[last] = _NASTY[int(random.integers(len(_NASTY)))]
    return tree


def _of_json(drop: bool) -> Kind:
    def kind(random: Random, folder: Path) -> list[str] | None:
        path = chosen(random, folder, (".json", ".jsonl"))
        if path is None:
            return None
        if path.suffix == ".json":
            path.write_text(json.dumps(_changed(random, json_of(path.read_bytes()), drop), indent=1))
        else:
            lines = path.read_bytes().splitlines()
            at = int(random.integers(len(lines)))
            lines[at] = json.dumps(_changed(random, json_of(lines[at]), drop)).encode()
            path.write_bytes(b"\n".join(lines) + b"\n")
        return [str(path.relative_to(folder))]

    return kind


def _line(random: Random, folder: Path) -> list[str] | None:
    """A line of a text is lost, doubled, cut, moved, or two are one."""
    path = chosen(random, folder, _TEXT)
    if path is None:
        return None
    lines = path.read_bytes().split(b"\n")
    at, other = (int(i) for i in random.integers(0, len(lines), 2))
    what = int(random.integers(5))
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(other, lines[at])
    elif what == 2:
        lines[at] = lines[at][: len(lines[at]) // 2]
    elif what == 3:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at : at + 2] = [b"".join(lines[at : at + 2])]
    path.write_bytes(b"\n".join(lines))
    return [str(path.relative_to(folder))]


def _headers(data: bytearray) -> list[int]:
    """Where the headers of a whole tar's members stand."""
    found, at = [], 0
    while at + BLOCK <= len(data) and any(data[at : at + BLOCK]):
        found.append(at)
        size = int(bytes(data[at + 124 : at + 135]).rstrip(b"\0 ") or b"0", 8)
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return found


def _summed(data: bytearray, at: int) -> None:
    """Set a header's sum, as a program that wrote it would have."""
    block = bytes(data[at : at + 148]) + b" " * 8 + bytes(data[at + 156 : at + BLOCK])
    data[at + 148 : at + 156] = b"%06o\0 " % sum(block)


def _of_header(change: Any) -> Kind:
    def kind(random: Random, folder: Path) -> list[str] | None:
        path = chosen(random, folder, (".tar",))
        if path is None:
            return None
        data = bytearray(path.read_bytes())
        headers = _headers(data)
        at = headers[int(random.integers(len(headers)))]
        change(random, data, at)
        _summed(data, at)
        path.write_bytes(data)
        return [str(path.relative_to(folder))]

    return kind


def _size(random: Random, data: bytearray, at: int) -> None:
    sizes = (b"00000000000", b"00000000001", b"77777777777", b"00000100000", b"\x80" + bytes(3) + b"\x7f" * 7)
    data[at + 124 : at + 135] = sizes[int(random.integers(len(sizes)))]


def _type(random: Random, data: bytearray, at: int) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
             tarfile.XHDTYPE, tarfile.XGLTYPE, b"L", b"K", b"S", b"z")  # fmt: skip
    data[at + 156 : at + 157] = kinds[int(random.integers(len(kinds)))]


def _name(random: Random, data: bytearray, at: int) -> None:
    """Its key is another, its extension stays."""
    old = bytes(data[at : at + 100]).rstrip(b"\0")
    key = _NAMES[int(random.integers(len(_NAMES)))].encode()
    data[at : at + 100] = (key + b"." + old.partition(b".")[2])[:100].ljust(100, b"\0")


def _extension(random: Random, data: bytearray, at: int) -> None:
    old = bytes(data[at : at + 100]).rstrip(b"\0")
    other = (b"mp4", b"json", b"txt", b"exe", b"", b"MP4", b"jpg", b"mp4.json")[int(random.integers(8))]
    data[at : at + 100] = (old.partition(b".")[0] + b"." + other).ljust(100, b"\0")


CONTENTS: dict[str, Kind] = {"value": _of_json(False), "field": _of_json(True), "line": _line}
TARS: dict[str, Kind] = {
    "size in a tar": _of_header(_size),
    "type in a tar": _of_header(_type),
    "key in a tar": _of_header(_name),
    "extension in a tar": _of_header(_extension),
}
