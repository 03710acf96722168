"""Addresses without what lets others in: passwords before the host, signatures and tokens behind the question mark."""

from __future__ import annotations

import re
from typing import Any

_LOGIN = re.compile(r"(?<=://)[^/\s'\"]+@")
_QUERY = re.compile(r"(\b\w[\w+.-]*://[^\s'\"?<>]*\?)([^\s'\"<>]+)")
_VALUE = re.compile(r"=[^&\s]*?(?=[:;,.)\]}]*(?:&|$))")


def without_secrets(text: str) -> str:
    """Text in which addresses have *** for login and query values; to be printed and saved."""
    if "://" not in text:
        return text
    return _QUERY.sub(lambda found: found[1] + _VALUE.sub("=***", found[2]), _LOGIN.sub("***@", text))


def tree_without_secrets(tree: Any) -> Any:
    """`without_secrets` for all text in nested dictionaries and lists."""
    if isinstance(tree, dict):
        return {key: tree_without_secrets(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [tree_without_secrets(value) for value in tree]
    return without_secrets(tree) if isinstance(tree, str) else tree
