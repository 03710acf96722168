"""Figures of an evaluation, as in results.json: shares of correct answers."""

from __future__ import annotations

from typing import Any

from tgm_scale.contracts import lost_and_noted

SHARED = "in both parts"  # key for clips shared by training and test: figures on them are no test


def shares(results: Any) -> dict[str, float]:
    """Return the value of each figure in the contents of a results.json. Raises ValueError where a value is not a
    number from 0 to 1, or the figures are missing."""
    try:
        values = {str(name): figure["value"] for name, figure in results["figures"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"wanted figures by name, each with its value ({type(error).__name__} {error})") from None
    for name, value in values.items():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(f"{name}: found {value!r}, wanted a number from 0 to 1")
    return {name: float(value) for name, value in values.items()}


def cautions(results: dict[str, Any]) -> list[str]:
    """Return an evaluation's cautions about its data: clips shared by its parts, and labels or groups that make
    figures misleading."""
    said = results.get(SHARED), results.get("facts", {}).get("note")
    return [str(one) for one in said if one]


def in_words(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return figures with their intervals, then further facts, as (name, text). Raises KeyError, TypeError,
    AttributeError or ValueError where they are not as an evaluation wrote them."""
    found = []
    for name, value in results["figures"].items():
        of = f"{value['captions']} captions" if "captions" in value else f"{value['clips']} clips"
        over = f" [{value['low']:.4f}, {value['high']:.4f}] (95 %, bootstrap over {of})"
        found.append((str(name), f"{value['value']:.4f}{over}"))
    facts = results.get("facts", {}).items()
    found += [(str(name), f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in facts]
    return found + [(name, str(results[name])) for name in ("views", SHARED) if name in results]


def compared_in_words(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the gain of top-1 over each baseline, and the counts of samples left out. Raises as `in_words`."""
    lines = []
    for name, found in results.get("baselines", {}).items():
        top1, gain = found["top1"], found["gain"]
        over = f"{top1['groups']} groups" if "groups" in top1 else f"{top1['clips']} clips"
        text = (
            f"top1 {top1['value']:.4f} [{top1['low']:.4f}, {top1['high']:.4f}]; this less that {gain['value']:+.4f} "
            f"[{gain['low']:+.4f}, {gain['high']:+.4f}] (95 %, bootstrap over {over}; {found['what']}; "
            f"{found['seconds']:.0f} s)"
        )
        lines.append((name, text))
    return lines + left_out_in_words(results["left_out"])


def left_out_in_words(by_reason: dict[str, int]) -> list[tuple[str, str]]:
    """Return counts of samples left out, and of those noted but used nevertheless, each only where there are some."""
    both = zip(("left out", "noted"), lost_and_noted(by_reason))
    return [(name, ", ".join(f"{of[reason]} {reason}" for reason in of)) for name, of in both if of]
