"""YAML that people write: read safely, bounded, and strict about keys."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import yaml

_MOST = 100_000  # values: a text of ten lines can expand to a billion by nested references

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Safe loader that reads `1e-4` as a number (YAML 1.1 requires `1.0e-4`) and refuses a key given twice; a key
    beside a merge (`<<`) wins over the merged one, as YAML specifies."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], list[str]] = defaultdict(list)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                lines[key.tag, key.value].append(str(key.start_mark.line + 1))
        twice = {name: where for (_, name), where in sorted(lines.items()) if len(where) > 1}
        if twice:
            raise ValueError(
                "; ".join(f"{name}: given twice, in lines {' and '.join(where)}" for name, where in twice.items())
            )
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST:
            raise ValueError(f"more than {_MOST:,} values by merges (<<)")


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def yaml_of(text: str) -> Any:
    """Return the value of YAML text. Raises ValueError for invalid text, more than 100,000 values, or a list in
    itself."""
    try:
        tree = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, LookupError, TypeError, AttributeError, OverflowError) as error:
        words = "brackets in brackets without end" if isinstance(error, RecursionError) else error
        told = re.sub(r'in "<unicode string>", ', "in ", str(words))
        raise ValueError(told or type(error).__name__) from None
    waiting, seen = [tree], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        inner = [*node.keys(), *node.values()] if isinstance(node, dict) else node if isinstance(node, list) else []
        if seen + len(waiting) + len(inner) > _MOST:
            raise ValueError(f"more than {_MOST:,} values, or a list in itself")
        waiting += inner
    return tree
