"""Description of a command, and arguments shared by several. Modules of this package import nothing heavy."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tgm_scale.data.defaults import MAX_LEFT_OUT_SHARE
from tgm_scale.runtime.command import KEYS


@dataclass(frozen=True)
class Command:
    """Description of a command. words: as typed, such as `shards make`; summary: its line in the list of commands;
    examples: end of its help; description: beginning of its help, by default the summary; when_stopped: message on the
    work's state after an interruption; former: name of the file in tools/ that calls it, without .py."""

    words: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: str | None = None
    description: str = ""
    when_stopped: str = ""
    former: str = ""


def later(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """Return a command's `run` that imports the function's module when called."""
    return lambda options: getattr(importlib.import_module(module), function)(options)


def add_configuration(parser: argparse.ArgumentParser, packaged: str = "debug", required: bool = True) -> None:
    """Add --config and overrides. packaged: name of a configuration that comes with the project."""
    parser.add_argument(
        "--config", required=required, action=Once, metavar="FILE", help=f"a YAML file; `{packaged}` is a packaged one"
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar=KEYS, help="laid over the file, such as run.dir=runs/mine")


def add_rewriting(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that rewrite shards (data/building/rewriting.py), besides --shards and --output."""
    add = parser.add_argument
    add(
        "--max-left-out",
        type=number,
        default=MAX_LEFT_OUT_SHARE,
        metavar="X",
        help="no start above this share of samples that are not there; of those copied, code 2 above this share of "
        "damaged ones (default %(default)s)",
    )
    add("--task", type=int, default=0, metavar="I", help="this process's number among --tasks, from 0")
    add("--tasks", type=int, default=1, metavar="N", help="processes that share the shards (default %(default)s)")
    add("--device", default=None, metavar="NAME", help="default: cuda where there is one, else cpu")


class Once(argparse.Action):
    """Option that may not be given twice, as if it took several values: with `store` the last would win silently."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        if before is not self.default:
            raise argparse.ArgumentError(self, f"given twice, {before} and {values}: wanted one")
        setattr(namespace, self.dest, values)


def part_names(options: argparse.Namespace, lists: dict[str, list[str]]) -> None:
    """Separate the names given to list options from the overrides that follow them. lists: each option with its
    default. Raises ValueError where an option was given without a name."""
    overrides = {*options.overrides}
    for name, default in lists.items():
        given = getattr(options, name) or default
        overrides |= {word for word in given if "=" in word}
        names = [part for word in given if "=" not in word for part in word.split(",") if part]
        if not names:
            raise ValueError(f"--{name} {' '.join(given)}: wanted names, or all")
        setattr(options, name, names)
    options.overrides = [word for word in options.given if word in overrides]  # a later one wins


def number(text: str) -> float:
    """Argument type: a finite number, not `nan`, which all comparisons treat alike."""
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"wanted a number, found {text!r}")


def positive(text: str, most: int = 10**9) -> int:
    """Argument type: a whole number from 1 to `most`."""
    if not text.isdecimal() or len(text) > len(str(most)) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1 to {most:,}, found {text[:60]!r}")
    return int(text)
