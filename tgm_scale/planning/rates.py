"""Measured speed of transformer blocks on a machine, by width of the block, from `tgm-scale benchmark rates`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgm_scale.runtime.outside.json_text import json_object

FORMAT = 1


@dataclass(frozen=True)
class Rates:
    """Measured rates of a machine. machine: its description, with the date. flops: FLOP/s of one GPU (or process) by
    (precision, width of the block), forward and backward pass together."""

    machine: str
    flops: dict[tuple[str, int], float]

    def of(self, precision: str, width: int) -> float:
        """Return the rate at the nearest width. Raises ValueError where none was measured in this precision."""
        widths = [other for kind, other in self.flops if kind == precision]
        if not widths:
            there = ", ".join(sorted({kind for kind, _ in self.flops}))
            raise ValueError(
                f"--rates: measured in {there}, and the run is in {precision}: measure with tgm-scale benchmark rates "
                f"--precisions {precision}"
            )
        nearest = min(widths, key=lambda other: abs(math.log(other / width)))
        return self.flops[precision, nearest]

    @property
    def assumed(self) -> str:
        return f"measured on blocks of the model: {self.machine}; the update, losses and data are not in it"


def load(file: Path) -> Rates:
    """Read measured rates from a file. Raises ValueError for a file that is no such measurement."""
    try:
        tree = json_object(file)
    except OSError as error:
        raise ValueError(f"--rates {file}: {error.strerror}") from None
    wanted = f"wanted what `tgm-scale benchmark rates --json {file.name}` writes"
    rows = tree.get("blocks")
    if tree.get("format") != FORMAT or not isinstance(rows, list) or not rows:
        raise ValueError(f"--rates {file}: {wanted}, found keys {', '.join(map(str, tree)) or 'none'}")
    flops: dict[tuple[str, int], float] = {}
    for row in rows:
        key = _key(file, row, wanted)
        if key in flops:
            raise ValueError(f"--rates {file}: two rows for {key[0]} at a width of {key[1]}: remove one")
        flops[key] = float(row["flops"])
    return Rates(str(tree.get("machine", "a machine without a name")), flops)


def _key(file: Path, row: Any, wanted: str) -> tuple[str, int]:
    good = (
        isinstance(row, dict)
        and isinstance(row.get("precision"), str)
        and type(row.get("width")) is int
        and row["width"] > 0
        and isinstance(row.get("flops"), int | float)
        and math.isfinite(row["flops"])
        and row["flops"] > 0
    )
    if not good:
        raise ValueError(f"--rates {file}: {wanted}, found {str(row)[:100]} in blocks")
    return row["precision"], row["width"]
