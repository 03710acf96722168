"""JSON from outside: every fault is a ValueError, even endless brackets and numbers beyond the range of floats."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgm_scale.runtime.outside.stand_ins import START, stand_in

LARGEST = 1 << 28  # bytes of a file that is read at once
_DIGITS = 308  # of an integer: longer ones exceed a float, and read as infinity, like 1e999
_DEEPEST = 200  # nested brackets: the result must be written and shown again, from deeper in the stack


def _finite_integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:20]} is beyond what a float holds")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_ENDLESS = "brackets in brackets without end"
# one decoder each: json.loads creates a new one at each call with a hook
_DECODER = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else float(digits))
_FINITE = json.JSONDecoder(parse_int=_finite_integer, parse_float=_number, parse_constant=_constant)


def json_of(data: str | bytes, *, finite: bool = False) -> Any:
    """Return the value of JSON text. NaN and Infinity, which Python and pandas write, and numbers beyond the range of
    floats are read as such, unless all must be `finite`.

    Raises ValueError for invalid JSON."""
    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data), "surrogatepass")
        tree = (_FINITE if finite else _DECODER).decode(text)
    except RecursionError:
        raise ValueError(_ENDLESS) from None
    except ValueError:
        start = data[:START]
        if other := stand_in(start.encode("utf-8", "replace") if isinstance(start, str) else start, json=True):
            raise ValueError(other) from None
        raise
    if text.count("[") + text.count("{") > _DEEPEST and _deep(tree):
        raise ValueError(_ENDLESS)
    return tree


def _deep(tree: Any) -> bool:
    level = [tree] if isinstance(tree, (dict, list)) else []
    for _ in range(_DEEPEST):
        inner = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
        level = [child for child in inner if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def json_at(text: str, place: int) -> tuple[Any, int]:
    """Return the value at a place of a text, and its end. Raises json.JSONDecodeError where the text ends too early or
    has no value there, else ValueError."""
    try:
        return _DECODER.raw_decode(text, place)
    except RecursionError:
        raise ValueError(_ENDLESS) from None


def json_file(file: Path, where: str = "", *, finite: bool = False) -> Any:
    """Return the contents of a JSON file. Raises ValueError that names the file (as `where`, if given) where it is
    damaged, OSError where it cannot be read."""
    return _named(where or str(file), lambda: json_of(bounded(file), finite=finite))


def json_object(file: Path, where: str = "", *, finite: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file, as `json_file` does; anything else is a ValueError, too."""
    tree = json_file(file, where, finite=finite)
    if not isinstance(tree, dict):
        raise ValueError(f"{where or file}: wanted a JSON object, found {type(tree).__name__}")
    return tree


def json_lines(file: Path) -> list[Any]:
    """Return the values in the lines of a file. Raises ValueError that names file and line, OSError."""
    found = []
    for number, line in enumerate(bounded(file).splitlines(), 1):
        try:
            found.append(json_of(line))
        except ValueError as error:
            raise ValueError(f"{file}: line {number} is damaged: {error}") from None
    return found


def json_without_doubles(file: Path, where: str) -> Any:
    """Return the contents of a JSON file that people write, as `json_file` with `finite`: no key may occur twice."""
    decoder = json.JSONDecoder(
        parse_int=_finite_integer, parse_float=_number, parse_constant=_constant, object_pairs_hook=_no_key_twice
    )

    def read() -> Any:
        try:
            return decoder.decode(bounded(file).decode("utf-8-sig"))
        except RecursionError:
            raise ValueError(_ENDLESS) from None

    return _named(where, read)


def bounded(file: Path, largest: int = LARGEST) -> bytes:
    """Return a file's bytes. Raises ValueError where they exceed `largest`, or the file is a named pipe, on which
    reading would wait; pipes of a shell's <(...) are read."""
    if file.is_fifo() and not str(file).startswith(("/dev/", "/proc/")):
        raise ValueError("a pipe, and no file")
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size  # 0 for a pipe. read(n) allocates n bytes, however few there are
        data = stream.read(min(size, largest) + 1)
        if len(data) == size + 1:
            data += stream.read(largest + 1 - len(data))
    if len(data) > largest:
        raise ValueError(f"more than {largest:,} bytes")
    return data


def _named(where: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{where}: damaged: not valid JSON: {error}") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)}: given twice")
    return dict(pairs)
