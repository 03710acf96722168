"""What lies where a file was wanted: a pointer of git LFS, or the page of a server."""

from __future__ import annotations

LFS_POINTER = b"version https://git-lfs"
START = 64  # bytes of a file that tell
_PAGES = (b"<!doctype html", b"<html")


def stand_in(start: bytes) -> str:
    """What a file is that begins so, and the remedy; "" where it may be the file itself."""
    if start.startswith(LFS_POINTER):
        return "a git LFS pointer, not the file: run 'git lfs pull'"
    if start[:START].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return "a web page, not the file: open its address in a browser, to see whether its server wants a login"
    return ""
