"""Text from outside (captions, labels, names of classes), checked once where it enters.

JSON can say half of a surrogate pair, which no file, log or tokenizer takes; a NUL or an escape sequence in a caption
is the trace of a broken conversion, and no word that a tower knows."""

from __future__ import annotations

import unicodedata

BYTE_ORDER_MARK = "\ufeff"
_BLANK_CONTROLS = "\t\n\v\f\r\x85"  # white space to every tokenizer


def fault_of(text: str) -> str | None:
    """What makes `text` unfit; None if it is fit."""
    if text.isascii() and text.isprintable():  # nearly all
        return None
    for place, letter in enumerate(text):
        if "\ud800" <= letter <= "\udfff":
            return f"half a surrogate pair, \\u{ord(letter):04x}, at letter {place + 1}"
        if unicodedata.category(letter) == "Cc" and letter not in _BLANK_CONTROLS:
            return f"the control character \\x{ord(letter):02x} at letter {place + 1}"
    return None


def cleaned(text: str) -> str:
    """Without a byte order mark and blanks at the ends. Raises ValueError for text that is unfit."""
    text = text.strip().removeprefix(BYTE_ORDER_MARK).strip()
    if fault := fault_of(text):
        raise ValueError(f"{shown(text)} has {fault}")
    return text


def shown(text: str, longest: int = 60) -> str:
    """Any text as a message or a log can have it: quoted, with escapes, short."""
    short = text if len(text) <= longest else text[: longest - 3] + "..."
    return ascii(short) if fault_of(short) else repr(short)


def lines_in(text: str) -> list[str]:
    """The lines of a text as editors and CSV have them. `str.splitlines` also ends one within a caption, at a form
    feed, U+0085 or U+2028, which JSON has raw."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def decoded(data: bytes, where: str) -> str:
    """The text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one. Raises ValueError."""
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
