"""URLs without their secrets: passwords before the host, signatures and tokens in the query."""

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


def _address_without_secrets(address: str) -> str:
    """The same for text that is one address, whatever letters it has."""
    before, mark, query = address.partition("?")
    parts = [
        f"{name}=***" if given else "***" for name, given, _ in (part.partition("=") for part in query.split("&"))
    ]
    return _LOGIN.sub("***@", before) + mark + ("&".join(parts) if query else "")


def tree_without_secrets(tree: Any) -> Any:
    """Nested dictionaries and lists, all text in them without secrets: before it is made YAML or JSON, whose escapes
    and line ends would hide an address."""
    if isinstance(tree, dict):
        return {key: tree_without_secrets(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [tree_without_secrets(value) for value in tree]
    if isinstance(tree, str):
        return _address_without_secrets(tree) if tree.startswith(("http://", "https://")) else without_secrets(tree)
    return tree
