"""The figures of an evaluation, as results.json has them: shares of right answers."""

from __future__ import annotations

from typing import Any

from tgm_scale.contracts import lost_and_noted

SHARED = "in both parts"  # the key of what training and test share, in words: a figure of such clips is no test


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


def cautions(results: dict[str, Any]) -> list[str]:
    """What an evaluation said of its data: what its parts share, and labels or groups by which figures are others
    than they seem."""
    said = results.get(SHARED), results.get("facts", {}).get("note")
    return [str(one) for one in said if one]


def in_words(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Figures with their intervals, then the facts beside them: what each is, and its text. Raises KeyError,
    TypeError, AttributeError or ValueError where they are not as an evaluation wrote them."""
    found = []
    for name, value in results["figures"].items():
        of = f"{value['captions']} captions" if "captions" in value else f"{value['clips']} clips"
        over = f" [{value['low']:.4f}, {value['high']:.4f}] (95 %, bootstrap over {of})"
        found.append((str(name), f"{value['value']:.4f}{over}"))
    facts = results.get("facts", {}).items()
    found += [(str(name), f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in facts]
    return found + [(name, str(results[name])) for name in ("views", SHARED) if name in results]


def compared_in_words(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What top-1 is above each baseline's, and what was left out. Raises as `in_words`."""
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
    """What was left out, and what was noted of samples that are used all the same; neither where there is none."""
    both = zip(("left out", "noted"), lost_and_noted(by_reason))
    return [(name, ", ".join(f"{of[reason]} {reason}" for reason in of)) for name, of in both if of]
