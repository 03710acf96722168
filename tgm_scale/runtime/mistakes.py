"""Texts for mistakes: the nearest known name, and pydantic's first error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError


def nearest(name: str, known: Iterable[str], prefix: str = "", elsewhere: Iterable[str] = ()) -> str:
    """Return a hint for an unknown name: `did you mean ...?`, or else the known ones.

    prefix: text before the known names; elsewhere: dotted paths, one of which is also a hint if it ends in the
    name."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {prefix}{close[0]}?"
    if path := next((path for path in elsewhere if path.rpartition(".")[2] == name), None):
        return f"did you mean {path}?"
    return f"known: {', '.join(known)}"


def in_words(names: Sequence[str]) -> str:
    """Return a list such as `a, b and c`. names: at least one."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def first_error(error: ValidationError) -> str:
    """Return place, value and message of pydantic's first error, such as `0.samples: missing`."""
    first = error.errors()[0]
    wanted = re.sub(r"valid dictionary( or instance of \w+)?", "mapping", first["msg"])
    found = "" if isinstance(first["input"], dict) else f"found {str(first['input'])[:60]}, "
    said = "missing" if first["type"] == "missing" else f"{found}{wanted[0].lower()}{wanted[1:]}"
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), said)))


def refuse_damaged(kind: Any, tree: Any, file: Path, remedy: str) -> None:
    """Raise ValueError with pydantic's first error where a file's contents are not of this kind."""
    try:
        TypeAdapter(kind).validate_python(tree, strict=True)
    except ValidationError as error:
        raise ValueError(f"{file}: damaged: {first_error(error)}; {remedy}") from None
