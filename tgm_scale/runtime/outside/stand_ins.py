"""Other content in place of a file: a git LFS pointer, a web page, or a server's error."""

from __future__ import annotations

import re

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
START = 512  # bytes of a file that reveal its kind
_BOM = b"\xef\xbb\xbf"
_BEFORE = re.compile(r"(<\?xml.*?\?>|<!--.*?-->|\s)+", re.DOTALL)  # possible beginning of a page
_PAGE = re.compile(r"<!--|<(!doctype html|html|head|script|title|body)([\s/>]|$)")
_ANSWER = re.compile(r"<error(\s+xmlns\b[^>]*)?>\s*<|<listbucketresult|<enumerationresults")  # of S3 and others
_JSON_ERROR = re.compile(r'\{\s*"(error|errors|message|code|status|statuscode|detail)"\s*:')


def stand_in(start: bytes, *, json: bool = False) -> str:
    """Return the kind of a file with this start, and the remedy; "" if it may be the real file. json: allow any
    JSON."""
    if start.removeprefix(_BOM).startswith(LFS_POINTER):
        return "a git LFS pointer, not the file: run 'git lfs pull'"
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
    text = start[:START].removeprefix(_BOM).decode(encoding, "ignore").lower()
    if begun := _BEFORE.match(text):
        text = text[begun.end() :]
    if _PAGE.match(text):
        return "a web page, not the file: open its address in a browser, to see whether its server wants a login"
    if _ANSWER.match(text) or (not json and _JSON_ERROR.match(text)):
        return "a server's error, not the file: open it in an editor, to see what the server says"
    return ""
