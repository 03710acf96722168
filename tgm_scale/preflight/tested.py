"""Which versions of other packages the project was run with: what `make versions` found (docs/INSTALL.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping

# lowest and newest
TESTED = {
    "torch": ("2.8.0", "2.15.0"),
    "deepspeed": ("0.19.8", "0.19.8"),
    "transformers": ("5.23.0", "5.24.0"),
    "av": ("17.1.0", "19.0.2"),
    "numpy": ("2.1.0", "2.5.5"),
}


def untested(versions: Mapping[str, str | None]) -> list[str]:
    """A warning for each package that is older or newer than any that was tried."""
    return [
        f"warning: {name} {version} was never tried with this project; {lowest} to {newest} were (docs/INSTALL.md)"
        for name, (lowest, newest) in TESTED.items()
        if (version := versions.get(name)) and not _parts(lowest) <= _parts(version) <= _parts(newest)
    ]


def _parts(version: str) -> tuple[int, ...]:
    """Of 2.13.0+cpu, (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
