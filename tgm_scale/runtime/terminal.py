"""Output to the terminal: text from outside cannot control it, addresses have no secrets (passwords before the host,
signatures and tokens in the query), and a closed terminal, broken pipe or full disk stops nothing."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO, cast

_GONE = (errno.EIO, errno.EPIPE)  # errors of a closed terminal, and of a pipe without a reader

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of surrogate pairs, line and paragraph ends
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # these change the writing direction


def escaped(text: str, keep: str = "\n\t") -> str:
    """Return text from outside, safe to print: characters that would move the cursor, set colours or titles, break
    lines or change the writing direction are escaped. keep: exceptions to this."""
    if text.isascii() and text.isprintable():  # nearly all
        return text
    return "".join(letter if letter in keep or not _steers(letter) else _escape(letter) for letter in text)


def message(text: str) -> str:
    """Return a message for printing: escaped, and without secrets in its URLs."""
    return escaped(without_secrets(text))


def _steers(letter: str) -> bool:
    return unicodedata.category(letter) in _CONTROLS or letter in _TURNING


def _escape(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


def ignore_output_errors() -> None:
    """Let a failed write to stdout or stderr lose only its text from here on: results are in the run folder.

    A stream that was closed before the start (`>&-`) becomes /dev/null, and letters that it cannot encode are
    escaped."""
    sys.stdout, sys.stderr = (cast(TextIO, BestEffortStream(_open(stream))) for stream in (sys.stdout, sys.stderr))


def _open(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


class BestEffortStream:
    """Stream that drops what cannot be written, and otherwise behaves like the original."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if error.errno in _GONE:  # for good: spares libraries that write to the descriptor itself the error, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_LOGIN = re.compile(r"(?<=://)[^/\s'\"]+@")
_QUERY = re.compile(r"(\b\w[\w+.-]*://[^\s'\"?<>]*\?)([^\s'\"<>]+)")
_VALUE = re.compile(r"=[^&\s]*?(?=[:;,.)\]}]*(?:&|$))")


def without_secrets(text: str) -> str:
    """Return text with *** for login and query values in addresses, to be printed and saved."""
    if "://" not in text:
        return text
    return _QUERY.sub(lambda found: found[1] + _VALUE.sub("=***", found[2]), _LOGIN.sub("***@", text))


def _address_without_secrets(address: str) -> str:
    before, mark, query = address.partition("?")
    parts = [
        f"{name}=***" if given else "***" for name, given, _ in (part.partition("=") for part in query.split("&"))
    ]
    return _LOGIN.sub("***@", before) + mark + ("&".join(parts) if query else "")


def tree_without_secrets(tree: Any) -> Any:
    """Return nested dictionaries and lists with all text in them without secrets, before they become YAML or JSON,
    whose escapes and line breaks would hide an address."""
    if isinstance(tree, dict):
        return {key: tree_without_secrets(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [tree_without_secrets(value) for value in tree]
    if isinstance(tree, str):
        return _address_without_secrets(tree) if tree.startswith(("http://", "https://")) else without_secrets(tree)
    return tree
