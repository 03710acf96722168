"""Configurations in files and on the command line: search, reading, overrides, validation, writing."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from tgm_scale.config.data_sections import Section
from tgm_scale.config.mistakes import format_errors, with_current_values
from tgm_scale.config.sections import Config
from tgm_scale.runtime.outside.yaml_text import yaml_of

# inside the package in a wheel, next to it in a checkout
_IN_WHEEL = Path(__file__).parents[1] / "configs"
CONFIGS = _IN_WHEEL if _IN_WHEEL.is_dir() else Path(__file__).parents[2] / "configs"

Kind = TypeVar("Kind", bound=Section)  # a pretraining run's, or another kind made of the same sections


def _read_yaml(text: str, origin: str) -> Any:
    try:
        tree = yaml_of(text)
    except ValueError as error:
        raise ValueError(f"{origin}: not valid YAML: {error}") from None
    for key in _joined_keys(tree):
        name, _, value = key.partition(":")
        raise ValueError(f"{origin}: found the key {key!r} without a value: write '{name}: {value}', with a blank")
    return tree


def _joined_keys(tree: Any) -> Iterator[str]:
    """Yield keys such as `a:1`, which YAML reads in `{a:1}`: no other check reports the missing blank."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        if isinstance(key, str) and value is None and re.fullmatch(r"\w+:.+", key):
            yield key
        yield from _joined_keys(value)


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Return a pretraining run's configuration from a YAML file with `section.key=value` overrides.

    Raises ValueError that lists every mistake."""
    return checked(read_for_run(path, overrides), str(path), Config, overrides)


def packaged(path: str | Path, ending: str) -> Path:
    """Return the file at a path, else the packaged one of this name: `configs/debug.yaml` and `debug` work in any
    folder. The path itself where there is neither."""
    given = Path(path)
    if given.is_file() or given.is_absolute():
        return given
    inner = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    for name in (inner, inner.with_name(inner.name + ending)) if inner.name and ".." not in inner.parts else ():
        if (CONFIGS / name).is_file():
            return CONFIGS / name
    return given


def read_tree(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict:
    """Return nested dictionaries from a YAML file with overrides, not validated yet. Raises ValueError.

    A file may name another as its `base`, relative to its own folder: its values override those of the base."""
    file = packaged(path, ".yaml")
    tree = _sections(path, file)
    if (base := tree.pop("base", None)) is not None:
        over, tree = tree, _base(path, file, base)
        for keys, value in _leaves(over):
            _set(tree, keys, value, str(path))
        _nothing_made_elsewhere(tree, [".".join(keys) for keys, _ in _leaves(over)])
    return apply_overrides(tree, overrides)


def _base(path: str | Path, file: Path, base: Any) -> dict:
    if not isinstance(base, str) or not 0 < len(base) < 4096:
        raise ValueError(f"{path}: base={str(base)[:60]}: wanted the name of a YAML file, such as base/finetune.yaml")
    try:
        below = file.parent / base
        below = below if below.is_file() else packaged(base, ".yaml")
        tree = _sections(f"{path}: base={base}", below)
    except OSError as error:  # a name that is too long
        raise ValueError(f"{path}: base={base[:60]}: {error.strerror}") from None
    if "base" in tree:
        raise ValueError(f"{path}: base={base} has a base of its own: wanted one of sections alone")
    return tree


def _leaves(tree: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the keys of nested dictionaries, with each value that is not a section."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value


def _sections(path: str | Path, file: Path) -> dict:
    if not file.is_file():
        found = [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("study/*.yaml")]
        names = sorted(other.relative_to(CONFIGS).with_suffix("").as_posix() for other in found)
        ends = {name.rpartition("/")[2]: name for name in names}
        close = [ends[end] for end in difflib.get_close_matches(Path(path).stem, ends, n=1)]
        near = f"; did you mean {close[0]}?" if close else ""
        listed = f"no such file; packaged: {', '.join(names)}{near}"
        what = "a folder: name a YAML file in it" if file.is_dir() else listed
        raise ValueError(f"--config {path}: {what}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"--config {path}: not a text file; wanted YAML, such as configs/debug.yaml") from None
    tree = _read_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: wanted sections such as 'data:' and 'train:', found {type(tree).__name__}")
    return tree


def read_for_run(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict:
    """Return `read_tree` with the path of its DeepSpeed JSON resolved: in the working folder, in the configuration's
    or the one above, or among the packaged ones. Raises ValueError where it is in none."""
    tree, file = read_tree(path, overrides), packaged(path, ".yaml")
    section: Any = tree.get("deepspeed")
    name = section.get("config") if isinstance(section, dict) else None
    if not isinstance(name, str) or Path(name).is_file():
        return tree
    folders = file.resolve().parents[:2]
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None and packaged(name, ".json").is_file():
        return tree
    if found is None:
        looked = ", ".join(dict.fromkeys(str(folder / name) for folder in (Path.cwd(), *folders)))
        raise ValueError(f"{file}: deepspeed.config={name}: no such file (looked for {looked})")
    section["config"] = str(found)
    return tree


def apply_overrides(tree: dict, overrides: list[str] | tuple[str, ...]) -> dict:
    """Set each `section.key=value` in nested dictionaries. Raises ValueError for anything else."""
    for override in overrides:
        name, equals, value = override.partition("=")
        keys = tuple(name.split("."))
        if not equals or not all(keys):
            raise ValueError(f"'{override}': wanted section.key=value, such as run.dir=runs/mine")
        _set(tree, keys, _read_yaml(value, f"'{override}'"), f"'{override}'")
    _nothing_made_elsewhere(tree, [override.partition("=")[0] for override in overrides])
    return tree


def override(key: str, text: str | Path) -> str:
    """Return `key=text` for `apply_overrides`, which reads values as YAML: quoted where YAML would read another value
    than the text, as in `a #b`, `a: b` or `2024`."""
    value = str(text)
    try:
        plain = yaml_of(value) == value
    except ValueError:
        plain = False
    return f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"


def _set(tree: dict, keys: tuple[str, ...], value: Any, origin: str) -> None:
    node = tree
    for key in keys[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise ValueError(f"{origin}: {key} is a value, not a section")
    node[keys[-1]] = value
    other = {"train.steps": "epochs", "train.epochs": "steps"}.get(".".join(keys))
    if other and value is not None and node.get(other) is not None:
        node[other] = None  # this replaces the other key for the length


def _nothing_made_elsewhere(tree: dict, keys: list[str]) -> None:
    """Drop `data.synthetic` where only `data.shards` is set, so that no clips are generated in its place."""
    data, asked_for = tree.get("data"), any(key.startswith("data.synthetic") for key in keys)
    if "data.shards" in keys and not asked_for and isinstance(data, dict) and data.get("synthetic"):
        data["synthetic"] = None


def from_tree(tree: dict, origin: str = "configuration") -> Config:
    """Return a checked configuration from nested dictionaries. Raises ValueError that lists every mistake."""
    return checked(tree, origin, Config)


def checked(tree: dict, origin: str, kind: type[Kind], overrides: list[str] | tuple[str, ...] = ()) -> Kind:
    """Validate a tree as this kind of configuration. Mistakes in overrides are attributed to the command line;
    mistakes in a combination of keys to both sources, where an override may be one of them."""
    tree = with_current_values(tree)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        given = [override.partition("=")[0] for override in overrides]
        raise ValueError(format_errors(error, tree, given, origin, kind)) from None


def dump(config: Section) -> str:
    """Return the configuration as YAML that `load` reads back as an equal one."""
    return to_yaml(config.model_dump(mode="json"))


def to_yaml(tree: dict[str, Any]) -> str:
    """Return a configuration tree as YAML."""
    return yaml.safe_dump(tree, sort_keys=False)


def digest_tree(config: Section) -> dict[str, Any]:
    """Return the keys that determine the numbers of a run; a run resumes only where these are equal.

    The others change only speed, paths or output: workers, micro batch, engine settings, logs; and how shards are
    found or made, since the run's data.json records them."""
    tree = config.model_dump(mode="json")
    for section, names in {
        "run": "dir",
        "data": "workers decoder max_skipped_share max_left_out_share shards synthetic cache root patience",
        "guidance": "compile own_stream",
        "model": "attention activation_checkpointing compile",
        "train": "micro_batch_size max_minutes",
        "faults": "rollbacks hang_seconds start_seconds",
    }.items():
        for name in names.split():
            tree.get(section, {}).pop(name, None)
    for section in ("deepspeed", "checkpoint", "log", "profile", "knn"):
        tree.pop(section, None)
    if encoder := tree.get("encoder"):  # unset values are the checkpoint's
        tree["encoder"] = {name: value for name, value in encoder.items() if value is not None}
    if terms := tree.get("objective", {}).get("terms"):  # the two older keys have the weights of theirs
        others = {name: weight for name, weight in terms.items() if weight and name not in ("pixels", "contrast")}
        tree["objective"]["terms"] = others or None
    return tree


# keys that earlier versions lacked, and their behaviour
_ADDED = {"data": {"sampling": "dense", "time_jitter": 0.0, "standardise": False}}
_ONCE_UNSET = {"size": "B", "initialisation": "videomae", "frames": 16, "image_size": 224}


def comparable(there: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """Return `there` for comparison with `here`, both from digest_tree: earlier versions lacked keys; they also wrote
    these values of encoder.* where none was set, and read the checkpoint's."""
    for section, added in _ADDED.items():
        if isinstance(found := there.get(section), dict) and isinstance(now := here.get(section), dict):
            # None where unset here: the same as in pretraining, which held for earlier versions
            once = {name: value if now[name] is not None else None for name, value in added.items() if name in now}
            there = there | {section: once | found}
    of, set_here = there.get("encoder"), here.get("encoder")
    if not isinstance(of, dict) or not isinstance(set_here, dict) or not _ONCE_UNSET.keys() <= of.keys():
        return there  # this version writes no value where none is set
    kept = {name: value for name, value in of.items() if name in set_here or _ONCE_UNSET.get(name) != value}
    return there | {"encoder": kept}
