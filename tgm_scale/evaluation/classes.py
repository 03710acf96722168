"""Classes in their order, and whether the test classes occur in training.

Numbers sort as numbers (0, 1, 2, 10), everything else as text; `data.classes` defines another order:

| file | content |
|---|---|
| `.txt` | one name a line, the first is class 0; or `1 ApplyEyeMakeup`, as in UCF101's classInd.txt |
| `.json` | a list of names; label -> name or list of descriptions; name -> number, as in Something-Something |
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from tgm_scale.data.access import storage
from tgm_scale.data.lists.text import cleaned, decoded, lines_in, shown
from tgm_scale.runtime.files import like
from tgm_scale.runtime.outside.json_text import json_of

_NUMBER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"[-+]?\d+(\.\d*)?", re.ASCII)  # 0E1 and 0E2 are names
_MISSING = {"nan", "none", "null", "n/a", "#n/a", "<na>", "nat"}  # empty cells as programs write them
_SHOWN = 5


def in_order(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels, sorted as numbers if all are numbers, else as text."""
    distinct = set(labels)
    if all(_NUMBER.fullmatch(label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def read_classes(path: str) -> dict[str, list[str]]:
    """Return label -> its names or descriptions, in the file's order; for names alone, the labels are their numbers.

    Raises ValueError that names the file and the mistake."""
    data = storage.read_small(path)
    if data is None:
        raise ValueError(
            f"data.classes={path}: {'a folder, wanted a file' if os.path.isdir(path) else f'no such file{like(path)}'}"
        )
    text = decoded(data, path)
    content: Any
    if path.lower().endswith(".json"):
        try:
            content = json_of(text)
        except ValueError as error:
            raise ValueError(f"data.classes={path}: not valid JSON: {error}") from None
    else:
        lines = [line.strip() for line in lines_in(text) if line.strip()]
        numbered = [re.fullmatch(r"(\d+)[\s,]+(\S.*)", line) for line in lines]
        content = {match[1]: match[2] for match in numbered if match} if all(numbered) else lines
        if len(content) != len(lines):
            raise ValueError(f"data.classes={path}: a number is there twice")
    if isinstance(content, list):
        content = {str(number): name for number, name in enumerate(content)}
    if not isinstance(content, dict) or not content:
        raise ValueError(f"data.classes={path}: wanted names, one a line, or a JSON object of label -> name")
    if all(_is_number(value) for value in content.values()) and not all(map(_NUMBER.fullmatch, content)):
        numbers = [int(number) for number in content.values()]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"data.classes={path}: two names have one number: wanted a number for each class")
        content = {str(number): name for name, number in sorted(content.items(), key=lambda pair: int(pair[1]))}
    by_label: dict[str, list[str]] = {}
    for label, names in content.items():
        texts = names if isinstance(names, list) else [names]
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"data.classes={path}: {shown(label)} has {names!r}: wanted a name or a list of texts")
        try:
            by_label[cleaned(label)] = [cleaned(one) for one in texts]
        except ValueError as error:
            raise ValueError(f"data.classes={path}: {error}") from None
    return by_label


def _is_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None)


def ordered(labels: Iterable[str], path: str | None) -> list[str]:
    """Return the classes in the order of `data.classes`, or of `in_order` if `path` is None.

    Labels may be the file's labels or its names; all classes of the file count, also those that no clip has. Raises
    ValueError for a label that the file lacks."""
    labels = set(labels)
    if path is None:
        return in_order(labels)
    listed = read_classes(path)
    names = [texts[0] for texts in listed.values()]
    if labels <= listed.keys():
        return list(listed)
    if labels <= set(names):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"data.classes={path}: {shown(twice[0])} is there twice: wanted a name for each class")
        return names
    nearer = listed.keys() if len(labels & listed.keys()) >= len(labels & set(names)) else set(names)
    missing = in_order(labels - nearer)
    raise ValueError(f"data.classes={path}: no entry for {_listed(missing)}")


def names_of(classes: Sequence[str], path: str | None) -> list[str]:
    """Return the name of each class: its name in `data.classes`, or else its label."""
    listed = texts_of(classes, path) if path else {}
    return [listed[label][0] if label in listed else label for label in classes]


def texts_of(classes: Sequence[str], path: str) -> dict[str, list[str]]:
    """Return the names or descriptions of each class from a file that `ordered` has matched, by label or by name.

    {"a": ["b"], "b": ["c"]} calls class b "c" if classes are labels, and "b" if they are names."""
    listed = read_classes(path)
    if not set(classes) <= listed.keys():
        listed = {texts[0]: texts for texts in listed.values()}
    return {label: listed[label] for label in classes if label in listed}


def untrained_classes(trained: Iterable[str], test: Sequence[str]) -> dict[str, int]:
    """Return the number of test clips of each class that training lacks; no prediction for them can be right.

    Raises ValueError if this is true of all test clips."""
    known = set(trained)
    lacking = Counter(label for label in test if label not in known)
    if test and lacking.total() == len(test):
        raise ValueError(
            f"no class of the test ({_listed(in_order(lacking))}) is one of the training "
            f"({_listed(in_order(known))}): write labels the same way in both"
        )
    return {label: lacking[label] for label in in_order(lacking)}


def untrained_note(lacking: dict[str, int], clips: int) -> str:
    """Return a warning about untrained classes; "" if every test class was trained."""
    if not lacking:
        return ""
    few = ", ".join(f"{shown(label)} ({count})" for label, count in list(lacking.items())[:_SHOWN])
    more = "" if len(lacking) <= _SHOWN else f", and {len(lacking) - _SHOWN} more classes"
    return f"{sum(lacking.values())} of {clips} test clips have a class that training lacks: {few}{more}"


def alike_note(written: Iterable[str], what: str = "labels") -> str:
    """Return a warning about labels, or groups, that differ only in spelling and still count as different; "" if
    none."""
    of: dict[str | Decimal, list[str]] = {}
    for label in sorted(set(written)):
        of.setdefault(_plain(label), []).append(label)
    alike = [" and ".join(map(ascii, found)) for found in of.values() if found[1:]]
    if not alike:
        return ""
    more = f" and {len(alike) - _SHOWN} more" if len(alike) > _SHOWN else ""
    return (
        f"{what} that differ in case, blanks, quotation marks, unseen characters, Unicode's form or a number's "
        f"digits alone count as different {what}: "
        f"{', '.join(alike[:_SHOWN])}{more}: write them in one way if they are the same"
    )


def _plain(label: str) -> str | Decimal:
    """Return the label without case, quotation marks, invisible characters and kinds of blanks; numbers by value.

    pandas writes 1 as 1.0 if a row of the column is empty."""
    folded = unicodedata.normalize("NFKC", label).casefold()
    seen = "".join(one for one in folded if unicodedata.category(one) != "Cf")
    plain = " ".join(seen.replace("_", " ").replace('"', " ").split())
    return Decimal(plain) if _DECIMAL.fullmatch(plain) else plain


def missing_note(written: Iterable[str], what: str = "labels") -> str:
    """Return a warning about labels, or groups, that look like an empty cell; "" if there are none."""
    found = sorted(label for label in set(written) if label.strip().casefold() in _MISSING)
    if not found:
        return ""
    return (
        f"{what} {', '.join(map(ascii, found))} look like a missing value and count as {what} like others: leave the "
        "cell empty where a clip has none"
    )


def single_class_note(classes: Sequence[str]) -> str:
    """Return a warning if there is a single class, else ""."""
    if len(classes) != 1:
        return ""
    return f"all labels are {shown(classes[0])}: any prediction is right, and the figures mean nothing"


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(map(shown, labels[:_SHOWN])) + (
        f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    )
