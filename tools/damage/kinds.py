"""Kinds of damage to files, as by disks, copies, people and other programs.

A kind takes a random generator and a folder, damages one thing in it, and returns the paths, relative to the folder,
that a message may name; None where the folder has nothing to damage in this way."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.outside.tars import BLOCK

Random = np.random.Generator
Kind = Callable[[Random, Path], list[str] | None]

_SUFFIXES = (".bak", "~", " (copy)", ".1", ".tmp", "2", ".partial", ".old")
_FOREIGN = (".DS_Store", "Thumbs.db", "notes.txt", ".nfs000001", "core", "a b 'c'", "\u65e5\u672c", "step-abc", "-x")
_RARE = {"owner": 0.2, "ranks": 0.5}  # folders whose files are chosen less often
_AT_ONCE = 64  # bytes
_NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**400, 1e308, float("nan"), "", "x", "../up", "/etc/passwd", [], {}, [None], {"a": 1},
    "\u001b[31m", "a" * 5000, -5, 0.5, "1",
)  # fmt: skip
_KEYS = ("", "../up", "/etc/x", "a/b", "\u001b[31mred", "line\nend", "x" * 90, "a.b", "naïve-\u65e5", "-x", " ")
_SIZES = (b"00000000000", b"00000000001", b"77777777777", b"00000100000", b"\x80" + bytes(3) + b"\x7f" * 7)
_TYPES = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
          tarfile.XHDTYPE, tarfile.XGLTYPE, b"L", b"K", b"S", b"z")  # fmt: skip
_EXTENSIONS = (b"mp4", b"json", b"txt", b"exe", b"", b"MP4", b"jpg", b"mp4.json")


def _one(random: Random, choices: Sequence[Any]) -> Any:
    return choices[int(random.integers(len(choices)))]


def _files(folder: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not suffixes or path.suffix in suffixes]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_dir())


def _chosen(random: Random, folder: Path, suffixes: tuple[str, ...] = ()) -> Path | None:
    """Return one of the files that are not empty; None where there is none."""
    files = [path for path in _files(folder, suffixes) if path.stat().st_size]
    if not files:
        return None
    weights = np.array([_RARE.get(path.parent.name, 1.0) for path in files])
    return files[int(random.choice(len(files), p=weights / weights.sum()))]


def removed(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for folder in (path, *path.rglob("*")):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o700)
    shutil.rmtree(path)


def _of_bytes(change: Callable[[Random, bytearray], None], *suffixes: str) -> Kind:
    """Return a kind that changes the bytes of one file."""

    def kind(random: Random, folder: Path) -> list[str] | None:
        if (path := _chosen(random, folder, suffixes)) is None:
            return None
        data = bytearray(path.read_bytes())
        change(random, data)
        path.write_bytes(data)
        return [str(path.relative_to(folder))]

    return kind


def _bit(random: Random, data: bytearray) -> None:
    data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))


def _bit_of_the_head(random: Random, data: bytearray) -> None:
    data[int(random.integers(min(len(data), 512)))] ^= 1 << int(random.integers(8))


def _noise(random: Random, data: bytearray) -> None:
    at = int(random.integers(len(data)))
    noise = random.bytes(int(random.integers(1, _AT_ONCE)))
    data[at : at + len(noise)] = noise[: len(data) - at]


def _zeros(random: Random, data: bytearray) -> None:
    at = int(random.integers(len(data)))
    end = int(random.integers(at, len(data))) + 1
    data[at:end] = bytes(end - at)


def _cut(random: Random, data: bytearray) -> None:
    del data[int(random.integers(len(data))) :]


def _grown(random: Random, data: bytearray) -> None:
    data += random.bytes(int(random.integers(1, 2000))) if random.random() < 0.5 else bytes(data[:1024])


def _ranges_swapped(random: Random, data: bytearray) -> None:
    size = int(random.integers(1, max(2, len(data) // 3)))
    one, other = sorted(int(at) for at in random.integers(0, max(1, len(data) - size), 2))
    size = min(size, other - one)
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def _line(random: Random, data: bytearray) -> None:
    """Delete, duplicate, cut or move a line of a text, or join two."""
    lines = data.split(b"\n")
    at, other = (int(i) for i in random.integers(0, len(lines), 2))
    match int(random.integers(5)):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case 2:
            lines[at] = lines[at][: len(lines[at]) // 2]
        case 3:
            lines[at], lines[other] = lines[other], lines[at]
        case _:
            lines[at : at + 2] = [bytearray().join(lines[at : at + 2])]
    data[:] = b"\n".join(lines)


def _places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Return the path to every value within a JSON tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in inner for place in [(*path, key), *_places(value, (*path, key))]]


def _changed(random: Random, tree: Any, drop: bool) -> Any:
    """Replace one value, or (`drop`) delete one field or element."""
    places = _places(tree)
    if not places:
        return _one(random, _NASTY)
    *way, last = _one(random, places)
    node = tree
    for key in way:
        node = node[key]
    if drop:
        del node[last]
    else:
        node[last] = _one(random, _NASTY)
    return tree


def _of_json(drop: bool) -> Kind:
    def kind(random: Random, folder: Path) -> list[str] | None:
        if (path := _chosen(random, folder, (".json", ".jsonl"))) is None:
            return None
        if path.suffix == ".json":
            path.write_text(json.dumps(_changed(random, json_of(path.read_bytes()), drop), indent=1), encoding="utf-8")
        else:
            lines = path.read_bytes().splitlines()
            at = int(random.integers(len(lines)))
            lines[at] = json.dumps(_changed(random, json_of(lines[at]), drop)).encode()
            path.write_bytes(b"\n".join(lines) + b"\n")
        return [str(path.relative_to(folder))]

    return kind


def _headers(data: bytearray) -> list[int]:
    """Return the positions of the member headers in a whole tar."""
    found, at = [], 0
    while at + BLOCK <= len(data) and any(data[at : at + BLOCK]):
        found.append(at)
        size = int(bytes(data[at + 124 : at + 135]).rstrip(b"\0 ") or b"0", 8)
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return found


def _of_header(change: Callable[[Random, bytes], tuple[int, bytes]]) -> Kind:
    """Return a kind that changes a header of a tar. change: maps a member's name to a place in the header and the
    bytes to write there. The header's checksum is set as a program writing it would."""

    def summed(random: Random, data: bytearray) -> None:
        at = _one(random, _headers(data))
        place, field = change(random, bytes(data[at : at + 100]).rstrip(b"\0"))
        data[at + place : at + place + len(field)] = field
        block = bytes(data[at : at + 148]) + b" " * 8 + bytes(data[at + 156 : at + BLOCK])
        data[at + 148 : at + 156] = b"%06o\0 " % sum(block)

    return _of_bytes(summed, ".tar")


def _key(random: Random, name: bytes) -> tuple[int, bytes]:
    """Replace the key of a member's name; the extension stays."""
    return 0, (_one(random, _KEYS).encode() + b"." + name.partition(b".")[2])[:100].ljust(100, b"\0")


def _extension(random: Random, name: bytes) -> tuple[int, bytes]:
    return 0, (name.partition(b".")[0] + b"." + _one(random, _EXTENSIONS)).ljust(100, b"\0")


def _files_swapped(random: Random, folder: Path) -> list[str] | None:
    files = _files(folder)
    if len(files) < 2:
        return None
    one, other = (files[int(i)] for i in random.choice(len(files), 2, replace=False))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return [str(path.relative_to(folder)) for path in (one, other)]


def _of_entry(change: Callable[[Random, Path], Path | None]) -> Kind:
    """Return a kind that changes a file, or sometimes a folder, as a whole; the path `change` returns is named,
    too."""

    def kind(random: Random, folder: Path) -> list[str] | None:
        folders = _folders(folder)
        path = _one(random, folders) if folders and random.random() < 0.2 else _chosen(random, folder)
        if path is None:
            return None
        return [str(each.relative_to(folder)) for each in (path, change(random, path)) if each is not None]

    return kind


def _beside(random: Random, path: Path) -> Path:
    """Return a name as given to copies by programs and people, with a suffix before or after the extension."""
    suffix = _one(random, _SUFFIXES)
    return path.with_name(path.name + suffix if random.random() < 0.6 else path.stem + suffix + path.suffix)


def _copied(random: Random, path: Path) -> Path:
    copy = _beside(random, path)
    return Path(shutil.copytree(path, copy, dirs_exist_ok=True) if path.is_dir() else shutil.copy2(path, copy))


def _replaced(random: Random, path: Path) -> None:
    """Replace a path by something else: an empty folder, a file, a link to nowhere or to itself, a pipe."""
    removed(path)
    match int(random.integers(5)):
        case 0:
            path.mkdir()
        case 1:
            path.write_bytes(random.bytes(100))
        case 2:
            path.symlink_to("nowhere")
        case 3:
            path.symlink_to(path.name)
        case _:
            os.mkfifo(path)


def _foreign(random: Random, folder: Path) -> list[str]:
    name = _one(random, _FOREIGN)
    path = _one(random, [folder, *_folders(folder)]) / name
    if random.random() < 0.2:
        path.mkdir()
    else:
        path.write_bytes(random.bytes(int(random.integers(0, 5000))))
    return [str(path.relative_to(folder))]


ANY: dict[str, Kind] = {
    "bit": _of_bytes(_bit),
    "bit of the head": _of_bytes(_bit_of_the_head),
    "noise": _of_bytes(_noise),
    "zeros": _of_bytes(_zeros),
    "cut": _of_bytes(_cut),
    "emptied": _of_bytes(lambda random, data: data.clear()),
    "grown": _of_bytes(_grown),
    "ranges swapped": _of_bytes(_ranges_swapped),
    "files swapped": _files_swapped,
    "deleted": _of_entry(lambda random, path: removed(path)),
    "copied": _of_entry(_copied),
    "renamed": _of_entry(lambda random, path: path.rename(_beside(random, path))),
    "mode": _of_entry(lambda random, path: path.chmod(int(random.choice([0, 0o444 if path.is_file() else 0o555])))),
    "replaced": _of_entry(_replaced),
    "foreign": _foreign,
    "value": _of_json(False),
    "field": _of_json(True),
    "line": _of_bytes(_line, ".json", ".jsonl", ".yaml", ".txt"),
}
TARS: dict[str, Kind] = {
    "size in a tar": _of_header(lambda random, name: (124, _one(random, _SIZES))),
    "type in a tar": _of_header(lambda random, name: (156, _one(random, _TYPES))),
    "key in a tar": _of_header(_key),
    "extension in a tar": _of_header(_extension),
}
