"""Writes a list of captioned, labelled videos again, its captions without the words that name the class.

    python tools/unnamed_captions.py data/utd_mhad/labels.csv data/utd_mhad_unnamed.csv --also counter clockwise

"a person swipes the right arm to the left" of the class `swipe_left` becomes "a person the right arm to the". A word
goes if its first three letters are those of a word of the class (sits, sit; bowls, bowling), or if --also names it for
what a class abbreviates. So a study can tell what captions give beyond the labels that they repeat (docs/STUDY.md).
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from pathlib import Path

_SAME = 3  # letters: boxes and boxing differ after them


def without_class(caption: str, label: str, also: frozenset[str] = frozenset()) -> str:
    """Return `caption` without the words that name the class `label`; the label's words are its runs of letters."""
    class_words = {word[:_SAME] for word in re.findall(r"[^\W\d_]+", label.lower())}

    def names_it(word: str) -> bool:
        plain = _letters(word)
        return plain in also or plain[:_SAME] in class_words

    return " ".join(word for word in caption.split() if not names_it(word))


def _letters(word: str) -> str:
    return re.sub(r"[\W\d_]+", "", word.lower())


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns of a CSV, and its rows. Raises ValueError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as source:
            reader = csv.DictReader(source, strict=True)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no CSV in UTF-8 ({error})") from None
    if missing := {"label", "caption"} - set(columns):
        raise ValueError(f"{path}: no column {' and '.join(sorted(missing))}; its columns are {', '.join(columns)}")
    if twice := {name for name in ("label", "caption") if columns.count(name) > 1}:
        raise ValueError(f"{path}: two columns are named {' and '.join(sorted(twice))}: rename one")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"{path}: row {number} has another number of columns than the first line, {len(columns)}")
    return columns, rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, metavar="LIST", help="CSV with the columns label and caption")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the new CSV, which must not be there yet")
    parser.add_argument("--also", nargs="+", default=[], metavar="WORD", help="further words that name a class")
    options = parser.parse_args(arguments)
    also = frozenset(filter(None, map(_letters, options.also)))
    try:
        if not options.output.name:
            raise ValueError(f"OUTPUT is {str(options.output)!r}: wanted the name of a new file")
        columns, rows = read(options.list)
        changed = [row | {"caption": without_class(row["caption"], row["label"], also)} for row in rows]
        with options.output.open("x", newline="", encoding="utf-8") as target:
            writer = csv.DictWriter(target, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(changed)
    except FileExistsError:
        parser.error(f"{options.output} is there already: name a new file, or remove it")
    except OSError as error:
        parser.error(f"{options.output}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    count = sum(new != old for new, old in zip(changed, rows))
    print(f"{options.output}: {len(rows)} rows, {count} captions without words of their class")
    if empty := sum(bool(old["caption"].strip()) and not new["caption"] for new, old in zip(changed, rows)):
        print(f"warning: {empty} captions had no other words and are empty: with a contrast, their clips are left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
