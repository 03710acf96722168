"""Mistakes in words: the nearest known name, and what pydantic found first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError


def nearest(name: str, known: Iterable[str], prefix: str = "", elsewhere: Iterable[str] = ()) -> str:
    """A hint for an unknown name: `did you mean ...?`, or else the known ones.

    prefix: stands before the known names; elsewhere: dotted paths, of which one that ends in the name is a hint,
    too."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {prefix}{close[0]}?"
    if path := next((path for path in elsewhere if path.rpartition(".")[2] == name), None):
        return f"did you mean {path}?"
    return f"known: {', '.join(known)}"


def in_words(names: Sequence[str]) -> str:
    """As in `a, b and c`. names: one at least."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def first_error(error: ValidationError) -> str:
    """Place, value and message of the first of pydantic's findings, such as `0.samples: missing`."""
    first = error.errors()[0]
    wanted = re.sub(r"valid dictionary( or instance of \w+)?", "mapping", first["msg"])
    found = "" if isinstance(first["input"], dict) else f"found {str(first['input'])[:60]}, "
    said = "missing" if first["type"] == "missing" else f"{found}{wanted[0].lower()}{wanted[1:]}"
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), said)))


def refuse_damaged(kind: Any, tree: Any, file: Path, remedy: str) -> None:
    """Raise ValueError where a file's content is not of this kind, with what pydantic found first."""
    try:
        TypeAdapter(kind).validate_python(tree, strict=True)
    except ValidationError as error:
        raise ValueError(f"{file}: damaged: {first_error(error)}; {remedy}") from None
