"""What a command is, and arguments that several commands take. Nothing heavy is imported here or beside it."""

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
    """words: as one types it, such as `shards make`; summary: its line in the list of commands; examples: the end of
    its help; description: the beginning of it, the summary where there is none; when_stopped: what becomes of the work
    where it is stopped; former: the name of the file in tools/ that calls it, without .py."""

    words: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: str | None = None
    description: str = ""
    when_stopped: str = ""
    former: str = ""


def later(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """A command that a function of a module is, imported when it runs."""
    return lambda options: getattr(importlib.import_module(module), function)(options)


def add_configuration(parser: argparse.ArgumentParser, packaged: str = "debug", required: bool = True) -> None:
    """packaged: the name of one that comes with the project."""
    parser.add_argument(
        "--config", required=required, action=Once, metavar="FILE", help=f"a YAML file; `{packaged}` is a packaged one"
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar=KEYS, help="laid over the file, such as run.dir=runs/mine")


def add_rewriting(parser: argparse.ArgumentParser) -> None:
    """What commands share that write shards anew (data/building/rewriting.py), beside --shards and --output."""
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
    """An option that may not come twice, where somebody may mean several: of `store` the last would win in silence."""

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
    """Part the names that options take as lists from the overrides behind them. lists: each option, and what it is
    where it was not given. Raises ValueError where it was, and there is no name."""
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
    """The type of an argument that is a number, and not `nan`, which every comparison passes or fails alike."""
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"wanted a number, found {text!r}")


def positive(text: str, most: int = 10**9) -> int:
    """The type of an argument that counts something."""
    if not text.isdecimal() or len(text) > len(str(most)) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1 to {most:,}, found {text[:60]!r}")
    return int(text)
