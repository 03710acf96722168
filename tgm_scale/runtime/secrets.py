"""Addresses without what lets others in: passwords before the host, signatures and tokens behind the question mark."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"(?<=://)[^/\s'\"]+@")
_QUERY = re.compile(r"(\b\w[\w+.-]*://[^\s'\"?<>]*\?)([^\s'\"<>]+)")
_VALUE = re.compile(r"=[^&\s]*?(?=[:;,.)\]}]*(?:&|$))")


def without_secrets(text: str) -> str:
    """Text in which addresses have *** for login and query values; to be printed and saved."""
    if "://" not in text:
        return text
    return _QUERY.sub(lambda found: found[1] + _VALUE.sub("=***", found[2]), _LOGIN.sub("***@", text))
