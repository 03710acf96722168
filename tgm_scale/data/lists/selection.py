"""Selection of the rows and columns of a list: those of a split, or of the groups held out for the test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tgm_scale.data.lists.row import Row
from tgm_scale.data.lists.text import shown
from tgm_scale.runtime import seeding

Role = Literal["train", "test", "all"]
Wanted = Literal["caption", "label"]

_TRAIN, _VALIDATION, _TEST = {"train", "training"}, {"val", "valid", "validate", "validation"}, {"test", "testing"}
_NAMED = 5  # groups, in a message


@dataclass(frozen=True)
class Selection:
    """Choice of what is read of a list.

    role: which rows by the column `split`, or by HMDB51's folder; all: every row. wanted: the meaning of the text
    after a path where no column defines it. label, group: names of these columns; for EPIC-Kitchens-100 the label
    is verb, noun or action. split: number of HMDB51's split. test_groups: the groups of the test, or their share of
    all groups."""

    role: Role = "train"
    wanted: Wanted = "label"
    label: str = "label"
    group: str = "group"
    split: int = 1
    test_groups: float | tuple[str, ...] | None = None

    def of(self, rows: list[Row], path: str) -> tuple[list[Row], str]:
        """Return the used rows of the list `path`, and a description of the choice: "" where nothing was excluded.
        Raises ValueError."""
        if self.role == "all":
            return rows, ""
        return _of_split(rows, self.role, path) if self.test_groups is None else self._of_groups(rows, path)

    def _of_groups(self, rows: list[Row], path: str) -> tuple[list[Row], str]:
        key = f"data.test_groups={_written(self.test_groups)}"
        if len(splits := {row.split for row in rows if row.split}) > 1:
            raise ValueError(f"{path}: {key}, and a column split that says {_few(splits)}: leave one of them out")
        groups = sorted({row.group for row in rows if row.group})
        if len(groups) < 2:
            found = f"one group, {shown(groups[0])}" if groups else "no group"
            raise ValueError(
                f"{path}: {key} needs several groups, and its rows have {found}: data.group={self.group} names their "
                "column"
            )
        if isinstance(self.test_groups, tuple):
            tested = set(self.test_groups)
            if unknown := tested - set(groups):
                raise ValueError(f"{path}: {key}: no row is of group {_few(unknown)}; there are {_few(groups)}")
            if len(tested) == len(groups):
                raise ValueError(f"{path}: {key}: these are all its groups: none is left to learn from")
        else:
            assert self.test_groups is not None
            drawn = sorted(groups, key=lambda group: seeding.key(0, "test groups", group))
            tested = set(drawn[: min(max(1, round(self.test_groups * len(groups))), len(groups) - 1)])
        for row in rows:
            if not row.group:
                row.fault = row.fault or f"no group, where {key} chooses by it"
        used = [row for row in rows if row.fault or (row.group in tested) == (self.role == "test")]
        of_role = sorted(tested) if self.role == "test" else [group for group in groups if group not in tested]
        return used, f"{len(of_role)} of {len(groups)} groups for {self.role}: {_few(of_role)}"


def _of_split(rows: list[Row], role: str, path: str) -> tuple[list[Row], str]:
    """Return the rows of the requested split. A column with the same value in all rows excludes nothing; where only
    some rows lack a value, these are faulty."""
    values = Counter(row.split.strip().lower() for row in rows if row.split)
    blank = [row for row in rows if not row.split]
    if len(values) + bool(blank) < 2:
        return rows, ""
    known = _TRAIN | _VALIDATION | _TEST
    if unknown := next((row for row in rows if row.split and row.split.strip().lower() not in known), None):
        raise ValueError(f"{unknown.where}: its split is {shown(unknown.split or '')}: wanted train, val or test")
    wanted = _TRAIN if role == "train" else _TEST if values.keys() & _TEST else _VALIDATION
    used = [row for row in rows if row.split and row.split.strip().lower() in wanted]
    if not used:
        raise ValueError(f"{path}: none of its rows is of the split {sorted(wanted)[0]!r}: {dict(values)}")
    others = ", ".join(f"{count} {name}" for name, count in sorted(values.items()) if name not in wanted) or "none"
    for row in blank:
        row.fault = row.fault or "no split, where other rows have one: wanted train, val or test"
    return used + blank, f"{len(used)} rows of {role}, not used: {others}"


def _few(names: set[str] | list[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(map(shown, ordered[:_NAMED])) + more


def _written(groups: float | tuple[str, ...] | None) -> str:
    return f"[{', '.join(groups)}]" if isinstance(groups, tuple) else f"{groups:g}"
