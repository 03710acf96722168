"""Shared parts of all commands: help with examples, exit codes, errors in one line."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tgm_scale.runtime.files import FULL, describe_os_error, trouble_at
from tgm_scale.runtime.terminal import message

FAILED, USER_MISTAKE, INTERRUPTED = 1, 2, 130
# errors for files that are missing, forbidden (below) or of another kind: a new start would meet the same
_NOT_THERE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG)
KEYS = "section.key=value"  # name of configuration overrides in help texts
_LASTING = (*_NOT_THERE, errno.EACCES, errno.EPERM)


def code_of(trouble: BaseException) -> int:
    """Return the exit code for an error of files or devices: USER_MISTAKE if a new start would meet it again."""
    lasting = isinstance(trouble, OSError) and trouble.errno in _LASTING
    return getattr(trouble, "exit_code", USER_MISTAKE if lasting else FAILED)


def _given(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("found '', as of a variable that is not set; wanted a value")
    return text


class Parser(argparse.ArgumentParser):
    """Argument parser with helpful errors. It explains `--data.shards=x`: configuration keys have no dashes. It shows
    an example where an option is missing, and the nearest name for an unknown option or value: `--gpus` is not short
    for `--gpus-per-node`. It refuses an empty text, which as a path would be the current folder."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)
        self.register("type", None, _given)
        self.register("type", Path, lambda text: Path(_given(text)))
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = [*(sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if keys := re.findall(r"(?<!\S)--(\w+(?:\.\w+)+)(\S*)", message):
            message += "; keys of the configuration have no dashes before them: "
            message += " ".join(key + (rest or "=VALUE") for key, rest in keys)
        elif found := re.search(r"unrecognized arguments: (--[^\s=]*)", message):
            message += self._nearest(found[1])
            if any(one.metavar == KEYS for one in self._actions):
                message += f"; keys of the configuration are given as {KEYS}, such as train.steps=60"
        elif " are required: " in message:
            unknown = [word.partition("=")[0] for word in self._words if re.match("--[a-z]", word)]
            for word in unknown:  # `--confg debug`: the mistake is not a missing `--config`
                message += f"; {word} is not known{nearest}" if (nearest := self._nearest(word)) else ""
            example = re.search(rf"^ *({re.escape(self.prog)} .*\S)", self.epilog or "", re.MULTILINE)
            message += f"; such as\n  {example[1]}" if example else ""
        elif found := re.match(r"argument ([^:/]+).*: invalid choice: '([^']*)'", message):
            choices = getattr(self._option_string_actions.get(found[1]), "choices", None) or ()
            near = difflib.get_close_matches(found[2], [str(one) for one in choices], n=1)
            message += f"; nearest: {near[0]}" if near else ""
        super().error(message)

    def _nearest(self, word: str) -> str:
        """Return a hint with the options nearest to an unknown one; "" where there are none, or it is known."""
        known = list(self._option_string_actions)
        longer = [one for one in known if word != "--" and one.startswith(word)]
        near = [] if word in known else longer or difflib.get_close_matches(word, known, n=1)
        return f"; nearest: {', '.join(near)}" if near else ""


def parser(description: str | None, examples: str | None, program: str | None = None) -> argparse.ArgumentParser:
    """Return a parser whose help keeps the line breaks of both texts."""
    form = argparse.RawDescriptionHelpFormatter
    return Parser(prog=program, description=description, epilog=examples, formatter_class=form)


@contextmanager
def reported_as(key: str, given: str) -> Iterator[None]:
    """Report a mistake in the value of a configuration key under the user's option: `--towers` for
    `guidance.towers`."""
    try:
        yield
    except ValueError as mistake:
        if key not in str(mistake):
            raise
        raise ValueError(str(mistake).replace(key, given)) from mistake


def exit_code(name: str, run: Callable[[], int], when_stopped: str = "nothing is lost that was written") -> int:
    """Return the result of `run`, or an exit code with a message: 2 for a user's mistake (ValueError), that of
    `code_of` for an error of files or devices (OSError) or a RuntimeError of our own (its exit_code), 130 for Ctrl-C.
    `when_stopped` tells, in the latter cases, what becomes of the work."""
    try:
        return run()
    except ValueError as mistake:
        print(message(f"{name}: {mistake}"), file=sys.stderr)
        return USER_MISTAKE
    except (OSError, RuntimeError) as failure:
        if type(failure) is RuntimeError:
            raise  # unexpected: the traceback is needed
        if said := trouble_at(failure):
            print(message(f"{name}: {said}"), file=sys.stderr)
            return USER_MISTAKE
        why = _in_words(failure)
        text = f"{why}; {when_stopped}" if when_stopped else f"stopped: {why}"
        print(message(f"{name}: {text}"), file=sys.stderr)
        return code_of(failure)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted{when_stopped and '; '}{when_stopped}", file=sys.stderr)
        return INTERRUPTED


def _in_words(failure: BaseException) -> str:
    """Return the error's text; for a full disk, with the free space."""
    if isinstance(failure, OSError) and failure.errno in FULL and isinstance(failure.filename, str):
        return f"{failure.filename}: {describe_os_error(failure, Path(failure.filename).parent)}"
    return str(failure)


def leave(code: int = 0) -> NoReturn:
    """End the process without the interpreter's own shutdown.

    Threads of torch's backward pass and of gloo may still request the interpreter during shutdown, upon which Python
    3.11 aborts the process: seen in 1 of 20 runs under ZeRO-3, after all work was done. So the temporary folder of
    multiprocessing is removed here."""
    if (used := sys.modules.get("multiprocessing.util")) is not None:
        used._run_finalizers()  # its exit would also wait for processes, which end with this one
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
