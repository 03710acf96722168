"""Keys and values that had another name once: read as what they are called now, with a notice of one line.

So configurations and run folders of before stay valid. docs/GLOSSARY.md has the same table.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

KEYS: dict[str, str] = {}  # section.key of before -> of now
VALUES: dict[tuple[str, str], str] = {  # (section.key, value of before) -> of now
    ("data.decoder", "torchcodec"): "pyav",  # gave the same frames
    ("masking.options.rule", "gumbel_top_k"): "top_k",  # was top_k, with a temperature
    ("masking.options.rule", "share_per_part"): "stratified",
}


def name_now(key: str) -> str:
    """What a `section.key` is called now; says so where that is another name."""
    now = KEYS.get(key, key)
    if now != key:
        _say(f"{key} is read as {now}")
    return now


def with_keys_of_now(tree: dict[str, Any], origin: str) -> dict[str, Any]:
    """A configuration's tree with the keys of now. Raises ValueError where it has both names of a key."""
    for before, now in KEYS.items():
        name, old, new = before.split(".")[0], before.split(".")[1], now.split(".")[1]
        section = tree.get(name)
        if isinstance(section, dict) and old in section:
            if new in section:
                raise ValueError(
                    f"{origin}: {before} is the former name of {now}, which is given, too: remove {before}"
                )
            # in the place of the old one, so that a configuration that is written keeps its order
            tree = {**tree, name: {new if key == old else key: value for key, value in section.items()}}
            name_now(before)
    return tree


def with_values_of_now(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration's tree with the values of now."""
    for (key, before), now in VALUES.items():
        *sections, last = key.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and node.get(last) == before:
            tree = _with_value(tree, [*sections, last], now)
            _say(f"{key}={before} is read as {now}")
    return tree


def _with_value(tree: dict[str, Any], path: list[str], value: str) -> dict[str, Any]:
    inner = value if len(path) == 1 else _with_value(tree[path[0]], path[1:], value)
    return {**tree, path[0]: inner}


@cache  # once a process
def _say(line: str) -> None:
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"notice: {line}", file=sys.stderr, flush=True)
