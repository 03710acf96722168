"""RUN/origins.json: inputs of a run other than its data, by content: frozen towers, flow weights, initial weights; for
an evaluation its encoder.

A path only tells where a file was. By content, a run resumes after a folder was moved, and is refused if other weights
are at the old place. An entry is {file: its blake2b, and the size, inode and change time by which the next start
recognises it without reading it}. Older run folders lack this file: for them the path decides."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tgm_scale.checkpoints import folders
from tgm_scale.config import RunSettings
from tgm_scale.guidance.tower_folder import model_files, tower_folder
from tgm_scale.runtime.files import in_the_way, like
from tgm_scale.runtime.outside.json_text import json_object

KEYS = ("guidance.towers", "guidance.flow", "train.init_from", "encoder.checkpoint")
_AT_ONE_PLACE = ("train.init_from", "encoder.checkpoint")  # the run may have continued there
FILE = "origins.json"
_WEIGHTS = {".safetensors", ".bin", ".pth", ".pt"}

Entry = dict[str, dict[str, Any]]
Tree = Mapping[str, Mapping[str, Any]]  # a configuration: section -> key -> value


def refuse_missing(config: RunSettings, begun: bool) -> None:
    """Raise ValueError, by key, where the weights that a run starts from are missing. begun: this run already has a
    folder, which may have weights of its own."""
    encoder, train = (getattr(config, section, None) for section in ("encoder", "train"))
    named = {"encoder.checkpoint": getattr(encoder, "checkpoint", "random")}
    if not begun:
        named["train.init_from"] = getattr(train, "init_from", None)
    for key, name in named.items():
        if name is not None and (key, name) != ("encoder.checkpoint", "random") and not os.path.exists(name):
            raise ValueError(f"{key}={in_the_way(Path(name)) or f'{name}: no such file or folder{like(name)}'}")


def read(folder: Path) -> dict[str, Entry]:
    """Return the entries of a run folder by key; none without the file. Raises ValueError for a damaged one."""
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        found = json_object(file)
        whole = all(isinstance(one["blake2b"], str) for entry in found.values() for one in entry.values())
    except (ValueError, AttributeError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"{file}: damaged: remove it, and the run resumes where its paths are the same")
    return found


def updated(config: Tree, known: Mapping[str, Entry], step: int) -> dict[str, Entry]:
    """Return the entries to write at a start from `step`. The initial weights are read at step 0 and never again."""
    found = {
        key: _entry(key, _value(config, key), known.get(key, {}))
        for key in KEYS
        if key != "train.init_from" or step == 0
    }
    return {**known, **{key: entry for key, entry in found.items() if entry}}


def differences(there: Tree, here: Tree, known: Mapping[str, Entry]) -> list[str]:
    """Return messages on the differences between this start's configuration and the run folder's."""
    found = []
    for key in KEYS:
        old, new, recorded = _value(there, key), _value(here, key), known.get(key, {})
        if old == new and (key in _AT_ONE_PLACE or not recorded):
            continue
        entry = _entry(key, new, recorded)
        other = _other(recorded, entry)
        if old == new and entry and other:
            found.append(f"{key}: {new!r} has {_another(other)} than the run was started with, by {FILE}")
        elif old != new and (not recorded or not entry or other):
            found.append(f"{key}: {old!r} there, {new!r} here" + _why(old, new, recorded, entry, other))
    return found


def _why(old: Any, new: Any, recorded: Entry, entry: Entry, other: str) -> str:
    if old is None or new is None:
        return ""
    if not recorded:
        return f", and {FILE} does not say what was there"
    return f", with {_another(other)}" if entry else ", where no weights are found"


def _other(recorded: Entry, entry: Entry) -> str:
    """Return the first file that differs among those in both entries, 'file of weights' if these include no weights,
    else ''."""
    both = sorted(recorded.keys() & entry.keys())
    none = "" if any(Path(name).suffix in _WEIGHTS | {""} for name in both) else "file of weights"
    return next((name for name in both if recorded[name]["blake2b"] != entry[name]["blake2b"]), none)


def _value(config: Tree, key: str) -> Any:
    section, name = key.split(".")
    return (config.get(section) or {}).get(name)


def _entry(key: str, value: str | None, recorded: Entry) -> Entry:
    if value is None:
        return {}
    files = _tower(Path(tower_folder(value))) if key == "guidance.towers" else _weights(Path(value))
    return {name: _known(file, recorded.get(name, {})) for name, file in files.items()}


def _tower(folder: Path) -> dict[str, Path]:
    try:
        return {file.relative_to(folder).as_posix(): file for file in model_files(folder)}
    except (OSError, ValueError, StopIteration):  # no whole model, which is reported elsewhere
        return {}


def _weights(path: Path) -> dict[str, Path]:
    """Return the files to hash: the path itself if a file, else a run's newest manifest, else a folder's weights."""
    if path.is_file():
        return {"weights": path}
    newest = path if (path / "manifest.json").is_file() else folders.latest(path / "checkpoints")
    if newest is not None:
        return {"weights": newest / "manifest.json"}
    return {file.name: file for file in sorted(path.glob("*")) if file.suffix in _WEIGHTS}


def _known(file: Path, before: dict[str, Any]) -> dict[str, Any]:
    state = file.stat()
    stat = [state.st_size, state.st_ino, state.st_ctime_ns]
    if before.get("stat") == stat:
        return before
    with file.open("rb") as stream:
        return {"blake2b": hashlib.file_digest(stream, "blake2b").hexdigest()[:32], "stat": stat}


def _another(what: str) -> str:
    return f"other {what}" if what == "weights" else f"another {what}"
