"""Values that had another name once: read as what they are called now, with a notice of one line.

So older configurations and run folders stay valid. docs/GLOSSARY.md has the same table.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

VALUES: dict[tuple[str, str], str] = {  # (section.key, former value) -> current one
    ("data.decoder", "torchcodec"): "pyav",  # gave the same frames
    ("masking.options.rule", "gumbel_top_k"): "top_k",  # was top_k, with a temperature
    ("masking.options.rule", "share_per_part"): "stratified",
}


def with_current_values(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration's tree with the current names of values."""
    for (key, former), current in VALUES.items():
        *sections, last = key.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and node.get(last) == former:
            tree = _with_value(tree, [*sections, last], current)
            _notify(f"{key}={former} is read as {current}")
    return tree


def _with_value(tree: dict[str, Any], path: list[str], value: str) -> dict[str, Any]:
    inner = value if len(path) == 1 else _with_value(tree[path[0]], path[1:], value)
    return {**tree, path[0]: inner}


@cache  # once a process
def _notify(line: str) -> None:
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"notice: {line}", file=sys.stderr, flush=True)
