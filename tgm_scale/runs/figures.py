"""The figures of an evaluation, as results.json has them: shares of right answers."""

from __future__ import annotations

from typing import Any


def shares(results: Any) -> dict[str, float]:
    """The value of each figure in what a results.json holds. Raises ValueError where one is no number from 0 to 1, or
    there are none at all."""
    try:
        values = {str(name): figure["value"] for name, figure in results["figures"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"wanted figures by name, each with its value ({type(error).__name__} {error})") from None
    for name, value in values.items():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(f"{name}: found {value!r}, wanted a number from 0 to 1")
    return {name: float(value) for name, value in values.items()}
