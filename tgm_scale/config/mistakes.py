"""Error messages for a configuration: the key, where it was set, the expected value.

Former names of values are read as their current names, with a one-line notice, so that older configurations and run
folders stay valid (docs/GLOSSARY.md has the same table)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from tgm_scale.config.data_sections import Section
from tgm_scale.config.sections import Config, RunSettings
from tgm_scale.runtime.mistakes import in_words, nearest

COMMAND_LINE = "command line"  # the origin of a configuration without a file
_MEMBER = re.compile(r"str|int|float|bool|[A-Z]\w*Config|\w+\[.*\]")  # pydantic's names for kinds of a value
_KINDS = {r"dictionary( or instance of \w+)?": "mapping", "tuple": "list"}  # pydantic's names, and YAML's

# sections that only one kind of configuration has, and the commands that take it
_COMMANDS = {
    **dict.fromkeys(("guidance", "masking", "objective", "knn"), "pretrain"),
    **dict.fromkeys(("encoder", "neighbours", "probe", "retrieve"), "knn, probe and retrieve"),
    "finetune": "finetune",
}
_WANTED = {
    "pretrain": "one for pretraining, such as configs/debug.yaml",
    "knn, probe and retrieve": "one such as configs/probe_ucf101.yaml, or none and run.dir=, encoder.checkpoint=, "
    "data.train= and data.test= alone; what a pretraining made is named by encoder.checkpoint=RUN",
    "finetune": "one such as configs/finetune_ucf101.yaml; what a pretraining made is named by train.init_from=RUN",
}


def format_errors(error: ValidationError, tree: dict, given: list[str], origin: str, kind: type[Section]) -> str:
    """Return all mistakes of a tree by origin: the file `origin`, or the command line."""
    if other := _other_kind(tree, given, kind):
        return f"{origin}: {other}"
    of: dict[str, list[str]] = {}
    for item in _of_any_kind(_items(error, kind)):
        name = ".".join(map(str, item["loc"]))
        of.setdefault(_origin_of(name, given, origin), []).append(_explain(item, kind))
    return "\n".join(f"{where}:\n  " + "\n  ".join(lines) for where, lines in of.items())


def _origin_of(name: str, given: list[str], origin: str) -> str:
    """Return where a key was set; for an inconsistent section ('' for all), where its keys were."""
    if origin == COMMAND_LINE or any(f"{name}.".startswith(f"{one}.") for one in given):
        return COMMAND_LINE
    together = any(not name or one.startswith(f"{name}.") for one in given)
    return f"{origin} and the {COMMAND_LINE}" if together else origin


def _other_kind(tree: dict, given: list[str], kind: type[Section]) -> str:
    """Return a message where a file's sections are those of other commands than `kind` is for, else ""."""
    own = {_COMMANDS[name] for name in kind.model_fields if name in _COMMANDS}
    of_file = [name for name in tree if not any(f"{one}.".startswith(f"{name}.") for one in given)]
    marks = [name for name in of_file if name in _COMMANDS]
    made_for = {_COMMANDS[name] for name in marks}
    data = tree.get("data")
    if not marks and isinstance(data, dict):
        marks = [f"data.{key}" for key in ("shards", "train", "test") if key in data and f"data.{key}" not in given]
        made_for = {"pretrain"} if "data.shards" in marks else {*_COMMANDS.values()} - {"pretrain"} if marks else set()
    if not own or not made_for or own & made_for:
        return ""
    return (
        f"a configuration for tgm-scale {' or '.join(sorted(made_for))} (it has {', '.join(marks)}); "
        f"wanted {_WANTED[own.pop()]}"
    )


def _items(error: ValidationError, kind: type[Section]) -> list[Any]:
    """Return the mistakes; for a missing section, one for each of its required keys."""
    found: list[Any] = []
    for item in error.errors():
        section = _section(item["loc"], kind) if item["type"] == "missing" else None
        try:
            if section is not None:
                section.model_validate({})
            found.append(item)
        except ValidationError as of_section:
            found += [{**inner, "loc": (*item["loc"], *inner["loc"])} for inner in of_section.errors()]
    return found


def _of_any_kind(items: list[Any]) -> list[Any]:
    """Merge the mistakes of values that may be of several kinds: where one kind matched further than others, only its
    mistakes stay, under keys without the kinds' names; otherwise one mistake names all kinds."""
    keys = [tuple(part for part in item["loc"] if not _MEMBER.fullmatch(str(part))) for item in items]
    found: list[Any] = []
    of_kinds: dict[Any, Any] = {}
    for item, loc in zip(items, keys):
        one = {**item, "loc": loc}
        if len(loc) < len(item["loc"]):
            if any(len(other) > len(loc) and other[: len(loc)] == loc for other in keys):
                continue
            if loc in of_kinds:
                of_kinds[loc]["msg"] += " or " + item["msg"].removeprefix("Input should be ")
                continue
            of_kinds[loc] = one
        found.append(one)
    return found


def _explain(item: Any, kind: type[Section]) -> str:
    location = [str(part) for part in item["loc"]]
    name = ".".join(location)
    if item["type"] == "extra_forbidden":
        if issubclass(kind, RunSettings) and (others := _commands_with(location, item["input"])):
            what = "key" if len(location) > 1 else "section"
            return f"{name}: a {what} of {others}, and not of tgm-scale {in_words(kind.commands)}: leave it out"
        known = list(section.model_fields) if (section := _section(location[:-1], kind)) else []
        prefix = "".join(f"{part}." for part in location[:-1])
        return f"{name}: unknown key; {nearest(location[-1], known, prefix, all_keys(kind))}"
    if item["type"] == "missing":
        field = section.model_fields.get(location[-1]) if (section := _section(location[:-1], kind)) else None
        meaning = f" ({field.description})" if field and field.description else ""
        if any(isinstance(part, int) for part in item["loc"]):  # list entries have no key of their own
            return f"{name}: missing; give it there{meaning}"
        return f"{name}: missing; give it in the file or as {name}=VALUE{meaning}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    wanted = f"{item['msg'][0].lower()}{item['msg'][1:]}"
    for theirs, ours in _KINDS.items():
        wanted = re.sub(rf"(valid |^){theirs}\b", ours, wanted)
    wanted = wanted.partition(" after validation")[0]
    return f"{name}: found {item['input']!r}; {wanted}"


def _commands_with(location: list[str], value: Any) -> str:
    """Return a text with the commands whose configuration has a key that `kind` lacks, or such a section; "" if
    none."""
    if len(location) == 1 and not isinstance(value, dict):
        return ""
    sections = ((one, _section(location[:-1], one)) for one in _kinds(RunSettings))
    found = {name for one, of in sections if of and location[-1] in of.model_fields for name in one.commands}
    return f"tgm-scale {in_words(sorted(found))}" if found else ""


def _kinds(kind: type[RunSettings]) -> list[type[RunSettings]]:
    return [kind, *(found for one in kind.__subclasses__() for found in _kinds(one))]


def _section(location: Sequence[Any], kind: type[Section]) -> type[Section] | None:
    """Return the section at a key, or at an entry of a list or mapping of sections."""
    model, collection = kind, False
    for part in location:
        field = model.model_fields.get(part)
        if field is None and collection:
            collection = False
            continue
        within = _within(field.annotation) if field else []
        sections = [one for one in within if isinstance(one, type) and issubclass(one, Section)]
        if not sections:
            return None
        model, collection = sections[0], any(get_origin(one) in (list, tuple, dict) for one in within)
    return None if collection else model


def _within(kind: Any) -> list[Any]:
    return [kind, *(inner for one in get_args(kind) for inner in _within(one))]


def all_keys(kind: type[Section] = Config) -> list[str]:
    """Return every `section.key` of a kind of configuration, in order."""
    sections: dict[str, Any] = {name: field.annotation for name, field in kind.model_fields.items()}
    return [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields]


VALUES: dict[tuple[str, str], str] = {  # (section.key, former value) -> current one
    ("data.decoder", "torchcodec"): "pyav",  # it gave the same frames
    ("masking.options.rule", "gumbel_top_k"): "top_k",  # it was top_k with a temperature
    ("masking.options.rule", "share_per_part"): "stratified",
}


def with_current_values(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration tree with the current names of values."""
    for (key, former), current in VALUES.items():
        *sections, last = key.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and node.get(last) == former:
            tree = _with_value(tree, [*sections, last], current)
            _notify(f"{key}={former} is read as {current}")
    return tree


def _with_value(tree: dict[str, Any], path: list[str], value: str) -> dict[str, Any]:
    inner = value if len(path) == 1 else _with_value(tree[path[0]], path[1:], value)
    return {**tree, path[0]: inner}


@cache  # once per process
def _notify(line: str) -> None:
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"notice: {line}", file=sys.stderr, flush=True)
