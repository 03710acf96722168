"""The console command. A command's imports happen when it runs, so `--help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tgm_scale import __version__
from tgm_scale.commands import table
from tgm_scale.runtime import command as conduct
from tgm_scale.runtime.terminal import ignore_output_errors, message

_USAGE = "usage: tgm-scale COMMAND ...        (tgm-scale COMMAND --help explains one, with examples)"
_HELP = ("-h", "--help", "help")


def entry(words: str = "", program: str = "") -> None:
    """Run `main` and end the process.

    words, program: the command, and the name of the file that calls it."""
    ignore_output_errors()
    conduct.leave(main([*words.split(), *sys.argv[1:]], program))


def main(arguments: Sequence[str] | None = None, program: str = "") -> int:
    """Run a command. Return its exit code: 2, with one message, for a user's mistake.

    program: name of the calling file for its messages, where that is not tgm-scale."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    found, rest = table.find(given)
    if found is None:
        return _tell(given)
    name = program or f"tgm-scale {found.words}"
    description = found.description or f"{found.summary[0].upper()}{found.summary[1:]}."
    parser = conduct.parser(description, found.examples, f"{program}.py" if program else name)
    found.add_arguments(parser)
    options = parser.parse_intermixed_args(rest)
    options.command, options.given = found.words, rest
    return conduct.exit_code(name, lambda: found.run(options), found.when_stopped)


def _tell(given: Sequence[str]) -> int:
    """Print help, the version, or the commands nearest to an unknown one. Return the exit code."""
    first, second = [*given, "", ""][:2]
    if first in _HELP:
        print(f"{_USAGE}\n\nText-guided masked video pretraining at scale.\n\n{table.described()}")
        return 0
    if first == "--version":
        print(f"tgm-scale {__version__}")
        return 0
    if first in table.FAMILIES and second in _HELP:
        print(f"usage: tgm-scale {first} COMMAND ...\n\n{table.family(first)}")
        return 0
    if not first:
        said = f"wanted a command\n\n{table.described()}"
    elif first in table.FAMILIES and not second:
        said = f"wanted a command of {first}\n\n{table.family(first)}"
    elif first.startswith("-"):
        said = f"found {first} where the command is wanted: options come after it; tgm-scale --help lists the commands"
    else:
        typed = f"{first} {second}" if first in table.FAMILIES else first
        near = table.nearest(given)
        said = f"no command {typed!r}" + (f"; nearest: {', '.join(near)}" if near else "")
        said += f"; tgm-scale {f'{first} ' if first in table.FAMILIES else ''}--help lists them"
    print(message(f"tgm-scale: {said}"), file=sys.stderr)
    return conduct.USER_MISTAKE
