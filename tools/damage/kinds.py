"""Ways in which files are damaged by disks, copies, people and other programs.

A kind takes a random generator and the folder that is damaged, does one thing to it, and returns the paths, relative
to the folder, that a message may name; None where the folder has nothing that it could be done to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

Random = np.random.Generator
Kind = Callable[[Random, Path], list[str] | None]

_SUFFIXES = (".bak", "~", " (copy)", ".1", ".tmp", "2", ".partial", ".old")
_FOREIGN = (".DS_Store", "Thumbs.db", "notes.txt", ".nfs000001", "core", "a b 'c'", "\u65e5\u672c", "step-abc", "-x")
_RARE = {"owner": 0.2, "ranks": 0.5}  # folders whose files are met more seldom than others
_AT_ONCE = 64  # bytes


def files_in(folder: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not suffixes or path.suffix in suffixes]


def chosen(random: Random, folder: Path, suffixes: tuple[str, ...] = ()) -> Path | None:
    """One of the files, those that are not empty; None where there is none."""
    files = [path for path in files_in(folder, suffixes) if path.stat().st_size]
    if not files:
        return None
    weights = np.array([_RARE.get(path.parent.name, 1.0) for path in files])
    return files[int(random.choice(len(files), p=weights / weights.sum()))]


def _of_bytes(change: Callable[[Random, bytearray], None]) -> Kind:
    """A kind that changes the bytes of one file."""

    def kind(random: Random, folder: Path) -> list[str] | None:
        path = chosen(random, folder)
        if path is None:
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


def _emptied(random: Random, data: bytearray) -> None:
    data.clear()


def _grown(random: Random, data: bytearray) -> None:
    data += random.bytes(int(random.integers(1, 2000))) if random.random() < 0.5 else bytes(data[:1024])


def _ranges_swapped(random: Random, data: bytearray) -> None:
    size = int(random.integers(1, max(2, len(data) // 3)))
    one, other = sorted(int(at) for at in random.integers(0, max(1, len(data) - size), 2))
    size = min(size, other - one)
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def _files_swapped(random: Random, folder: Path) -> list[str] | None:
    files = files_in(folder)
    if len(files) < 2:
        return None
    one, other = (files[int(i)] for i in random.choice(len(files), 2, replace=False))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return [str(path.relative_to(folder)) for path in (one, other)]


def _entry(random: Random, folder: Path) -> Path | None:
    """A file, or now and then a folder in the folder."""
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    if folders and random.random() < 0.2:
        return folders[int(random.integers(len(folders)))]
    return chosen(random, folder)


def _of_entry(change: Callable[[Random, Path], Path | None]) -> Kind:
    """A kind that does something to a file or folder as a whole; what it returns is named, too."""

    def kind(random: Random, folder: Path) -> list[str] | None:
        path = _entry(random, folder)
        if path is None:
            return None
        other = change(random, path)
        return [str(each.relative_to(folder)) for each in (path, other) if each is not None]

    return kind


def _removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _deleted(random: Random, path: Path) -> None:
    _removed(path)


def _beside(random: Random, path: Path) -> Path:
    """A name that programs and people give to copies, before or behind the ending."""
    suffix = _SUFFIXES[int(random.integers(len(_SUFFIXES)))]
    name = path.name + suffix if random.random() < 0.6 else path.stem + suffix + path.suffix
    return path.with_name(name)


def _copied(random: Random, path: Path) -> Path:
    copy = _beside(random, path)
    if path.is_dir():
        shutil.copytree(path, copy, dirs_exist_ok=True)
    else:
        shutil.copy2(path, copy)
    return copy


def _renamed(random: Random, path: Path) -> Path:
    return path.rename(_beside(random, path))


def _mode(random: Random, path: Path) -> None:
    path.chmod(int(random.choice([0, 0o444 if path.is_file() else 0o555])))


def _replaced(random: Random, path: Path) -> None:
    """Something else stands in its place: an empty folder, a file, a link that leads nowhere or to itself, a pipe."""
    _removed(path)
    choice = int(random.integers(5))
    if choice == 0:
        path.mkdir()
    elif choice == 1:
        path.write_bytes(random.bytes(100))
    elif choice == 2:
        path.symlink_to("nowhere")
    elif choice == 3:
        path.symlink_to(path.name)
    else:
        os.mkfifo(path)


def _foreign(random: Random, folder: Path) -> list[str]:
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    name = _FOREIGN[int(random.integers(len(_FOREIGN)))]
    path = folders[int(random.integers(len(folders)))] / name
    if random.random() < 0.2:
        path.mkdir()
    else:
        path.write_bytes(random.bytes(int(random.integers(0, 5000))))
    return [str(path.relative_to(folder))]


GENERAL: dict[str, Kind] = {
    "bit": _of_bytes(_bit),
    "bit of the head": _of_bytes(_bit_of_the_head),
    "noise": _of_bytes(_noise),
    "zeros": _of_bytes(_zeros),
    "cut": _of_bytes(_cut),
    "emptied": _of_bytes(_emptied),
    "grown": _of_bytes(_grown),
    "ranges swapped": _of_bytes(_ranges_swapped),
    "files swapped": _files_swapped,
    "deleted": _of_entry(_deleted),
    "copied": _of_entry(_copied),
    "renamed": _of_entry(_renamed),
    "mode": _of_entry(_mode),
    "replaced": _of_entry(_replaced),
    "foreign": _foreign,
}
