"""Keys of a section that are not at their defaults, and the lines that name those without effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tgm_scale.config.data_sections import Section


def changed(section: Section, prefix: str, among: Iterable[str] | None = None) -> list[str]:
    """Return changed keys, such as data.stride for prefix `data`. among: keys to consider; one at its default is
    unset."""
    fields = type(section).model_fields
    return [
        f"{prefix}.{key}"
        for key in (fields if among is None else among)
        if getattr(section, key) != fields[key].get_default(call_default_factory=True)
    ]


def not_used(found: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a line for each reason that has keys."""
    return [f"not used {why}: {', '.join(keys)}" for why, keys in found.items() if keys]
