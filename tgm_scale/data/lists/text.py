"""External text (captions, labels, class names), checked once on entry.

JSON can contain half of a surrogate pair, which no file, log or tokenizer accepts; a NUL or an escape sequence in a
caption is the trace of a broken conversion, and not a word known to any text tower."""

from __future__ import annotations

import unicodedata

BYTE_ORDER_MARK = "\ufeff"
_BLANK_CONTROLS = "\t\n\v\f\r\x85"  # white space to every tokenizer


def fault_of(text: str) -> str | None:
    """Return what makes `text` unfit; None if it is fit."""
    if text.isascii() and text.isprintable():  # nearly all texts
        return None
    for place, letter in enumerate(text):
        if "\ud800" <= letter <= "\udfff":
            return f"half a surrogate pair, \\u{ord(letter):04x}, at letter {place + 1}"
        if unicodedata.category(letter) == "Cc" and letter not in _BLANK_CONTROLS:
            return f"the control character \\x{ord(letter):02x} at letter {place + 1}"
    return None


def cleaned(text: str) -> str:
    """Return the text without a byte order mark and blanks at the ends. Raises ValueError for unfit text."""
    text = text.strip().removeprefix(BYTE_ORDER_MARK).strip()
    if fault := fault_of(text):
        raise ValueError(f"{shown(text)} has {fault}")
    return text


def shown(text: str, longest: int = 60) -> str:
    """Return any text in a form fit for a message or a log: quoted, with escapes, shortened."""
    short = text if len(text) <= longest else text[: longest - 3] + "..."
    return ascii(short) if fault_of(short) else repr(short)


def lines_in(text: str) -> list[str]:
    """Return the lines of a text by the convention of editors and CSV. `str.splitlines` would also split a caption
    at a form feed, U+0085 or U+2028, which JSON allows unescaped."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def decoded(data: bytes, where: str) -> str:
    """Return the text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one. Raises ValueError."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            place = f"byte {error.start} of {len(data)}"
            raise ValueError(
                f"{where}: begins as UTF-16 and is none at {place}: cut, or two files in one: save the file as UTF-8"
            ) from None
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{where} line {line}: not UTF-8 (byte {error.start}): save the file as UTF-8") from None
