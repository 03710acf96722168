"""docs/CONFIGURATION.md, written from the configuration's own classes: keys, types, defaults, bounds, meanings."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tgm_scale.config import Config, Section, StudyConfig
from tgm_scale.evaluation.settings import FinetuneConfig, FrozenConfig
from tgm_scale.runtime import command

EXAMPLES = """examples:
  python tools/write_reference.py                 # after a key was added or changed
  python tools/write_reference.py --output -      # to the terminal"""

PAGE = Path(__file__).parents[1] / "docs" / "CONFIGURATION.md"
KINDS: dict[str, tuple[type[Section], str]] = {
    "Pretraining": (Config, "`tgm-scale pretrain`, `preflight`, and the commands that plan or tune a run."),
    "Finetuning": (FinetuneConfig, "`tgm-scale finetune` and `preflight`."),
    "Frozen features": (FrozenConfig, "`tgm-scale knn`, `probe` and `retrieve`."),
    "Study": (StudyConfig, "`tgm-scale study`, which sets `run.dir` and `run.seed` of each run itself."),
}
HEAD = """# Configuration

Every key of a configuration file. The page is written by `python tools/write_reference.py` from the classes that check
a configuration (`tgm_scale/config/sections.py`, `tgm_scale/evaluation/settings.py`); a test holds it up to date.

A configuration is a YAML file of sections (`configs/*.yaml` are examples). It may begin with `base: FILE`, a path
relative to its own folder: that file's values apply where this one sets none. Any key can be set on the command line
as `section.key=value`, which is laid over the file: `tgm-scale pretrain --config debug train.steps=40 data.size=32`. A
value is read as YAML, so `null`, lists and `{...}` are possible. An unknown key, a wrong type or a value out of bounds
is refused with exit code 2 before anything starts. `tgm-scale config --config FILE` prints a configuration with all
defaults.

A section whose keys all have defaults may be left out. A key without a default is "required".
"""
COMPARISONS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "min_length": "{} or more"}


def page() -> str:
    parts = [HEAD]
    told: dict[type[Section], str] = {}  # a section -> the kind of run under which it is described
    for title, (kind, used_by) in KINDS.items():
        parts.append(f"## {title}\n\nOf {used_by}\n")
        shared: dict[str, list[str]] = {}
        for name, field in kind.model_fields.items():
            section = field.annotation
            assert isinstance(section, type) and issubclass(section, Section), name
            if section in told:
                shared.setdefault(told[section], []).append(f"`{name}`")
            else:
                told[section] = title
                parts.append(f"### `{name}`\n\n" + "".join(tables(name, section)))
        parts += [f"{', '.join(names)}: as in [{of}](#{anchor(of)}).\n" for of, names in shared.items()]
    return "\n".join(parts)


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def tables(name: str, section: type[Section]) -> list[str]:
    """Return a section's table, with required keys first, and the tables of the sections within it."""
    fields = sorted(section.model_fields.items(), key=lambda one: not one[1].is_required())
    rows = "".join(row(f"{name}.{key}", field) for key, field in fields)
    found = [f"| key | type | default | meaning |\n|---|---|---|---|\n{rows}"]
    for key, field in section.model_fields.items():
        for inner in within(field.annotation):
            heading = (
                f"\nKeys of `{name}.{key}`" + (", where an entry is a mapping" if is_list(field) else "") + ":\n\n"
            )
            each = "[]" if is_list(field) else ".NAME" if get_origin(field.annotation) is dict else ""
            found += [heading, *tables(f"{name}.{key}{each}", inner)]
    return found


def row(key: str, field: FieldInfo) -> str:
    assert field.description, f"{key} has no description: write one beside it"
    default = "required" if field.is_required() else f"`{shown(value_of(field))}`"
    cells = [f"`{key}`", "; ".join([typed(field.annotation), *bounds(field)]), default, field.description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def value_of(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default


def shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(shown(one) for one in value) + "]"
    if isinstance(value, str):
        return f'"{value}"' if not value or value[0] in "{[&*" else value
    return f"{value:g}" if isinstance(value, float) else str(value)


def typed(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return typed(inner[0])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else typed(one) for one in inner)
    if origin is list:
        return f"list of ({typed(inner[0])})" if get_args(inner[0]) else f"list of {typed(inner[0])}"
    if origin is tuple:
        return f"list of {typed(inner[0])}"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, Section)):
        return "mapping"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[kind]


def bounds(field: FieldInfo) -> list[str]:
    return [
        words.format(shown(limit))
        for one in field.metadata
        for name, words in COMPARISONS.items()
        if (limit := getattr(one, name, None)) is not None
    ]


def within(kind: Any) -> list[type[Section]]:
    """Return the sections in a type, at any depth."""
    if isinstance(kind, type) and issubclass(kind, Section):
        return [kind]
    return [section for one in get_args(kind) for section in within(one)]


def is_list(field: FieldInfo) -> bool:
    return any(get_origin(one) is list for one in (field.annotation, *get_args(field.annotation)))


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    parser.add_argument("--output", default=str(PAGE), metavar="FILE", help="default: docs/CONFIGURATION.md; -: print")
    options = parser.parse_args(arguments)
    return command.exit_code("write_reference", lambda: write(options))


def write(options: argparse.Namespace) -> int:
    if options.output == "-":
        print(page(), end="")
    else:
        Path(options.output).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
