"""Report sections on a single run: its starts on the clock, refused updates, broken samples, events."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from typing import Any

from tgm_scale.contracts import lost_and_noted
from tgm_scale.report.html import Code, Drawn, Picture, Section, Table, Text
from tgm_scale.report.run_view import Named, RunView, stretches
from tgm_scale.runs.bottleneck import duration
from tgm_scale.runs.run_folder import FAILED

_STARTS = 50  # in the table
_STEPS = 10  # refused updates listed
_EVENTS = 50
Block = Text | Code | Table | Drawn | Picture
STYLE = """
  .lane { position: relative; height: 20px; background: var(--wash); border-radius: 4px; margin: 6px 0; }
  .lane span { position: absolute; top: 3px; height: 14px; min-width: 3px; border-radius: 3px;
               background: currentColor; border: 1px solid var(--paper); }
  .clock { display: flex; justify-content: space-between; color: var(--soft); font-size: 13px; }
  details pre { max-height: 420px; } summary { cursor: pointer; color: var(--soft); }
"""


def apart(view: RunView) -> list[Section]:
    """Return the sections on one run alone: results, a picture, starts, refused updates, samples, events."""
    left_out, noted = lost_and_noted(view.left_out)
    return [
        Section("Results", _results(view)),
        Section("Reconstructions", _reconstructions(view)),
        Section("Starts and jobs", _starts(view)),
        Section("Refused updates", _refusals(view)),
        Section("Skipped samples", _named(view.skipped, "skipped.jsonl")),
        Section("Left out before the first step", _named(left_out, "left_out.jsonl")),
        Section("Noted before the first step", _named(noted, "left_out.jsonl")),
        Section("What happened to its files", _events(view)),
    ]


def _results(view: RunView) -> list[Block]:
    blocks: list[Block] = []
    for method, rows in view.results.items():
        blocks += [Text(method), Table(["", ""], [[name, text] for name, text in rows], words=True)] if rows else []
    return blocks


def _reconstructions(view: RunView) -> list[Block]:
    if view.reconstruction is None:
        weight = view.tree.get("objective", {}).get("reconstruction_weight", 1.0)
        return [] if weight else [Text("None: the objective has no term pixels.")] * ("masking" in view.tree)
    step, png, of_what = view.reconstruction
    clips = {"knn.test": "Held-out clips", "the data": "Clips of the training data"}.get(of_what, "Clips")
    said = (
        f"{clips} at step {step}: frames, visible patches, reconstruction. The model predicts patterns of the hidden "
        "patches; their brightness and contrast are interpolated from visible patches, and are not learned."
    )
    return [Picture(png, f"reconstructions at step {step}", said)]


def _starts(view: RunView) -> list[Block]:
    found = stretches(view)
    timed = [one for one in found if one.began is not None]
    blocks: list[Block] = []
    if timed:
        first = min(one.began or 0.0 for one in timed)
        last = max((one.began or 0.0) + one.seconds for one in timed)
        whole = max(last - first, 1.0)
        bars = "".join(
            f"<span class='c{number % 2}' style='left:{((one.began or 0.0) - first) / whole * 99.5:.3f}%;"
            f"width:{one.seconds / whole * 99.5:.3f}%' title='{html.escape(_said(number, one.start))}'></span>"
            for number, one in enumerate(timed, 1)
        )
        clock = "".join(f"<span>{time.strftime('%Y-%m-%d %H:%M', time.localtime(at))}</span>" for at in (first, last))
        blocks.append(Drawn(f"<div class='lane'>{bars}</div><div class='clock'>{clock}</div>"))
        blocks.append(
            Text(
                "On the clock: each bar is a start, as long as its steps that count took; the rest is starting, "
                "waiting, and steps that a later start made again."
            )
        )
    rows = [
        [
            str(number),
            str(one.start.get("time", "")),
            f"{one.first} to {one.last}" if one.last >= one.first else "none that counts",
            duration(one.seconds),
            *(str(one.start.get(name) or "") for name in ("host", "slurm_job", "slurm_nodes")),
            _changed(found[number - 2].start if number > 1 else None, one.start),
        ]
        for number, one in enumerate(found, 1)
    ]
    if rows:
        head = ["start", "began", "steps", "in steps", "host", "job", "nodes", "other than before"]
        blocks.append(Table(head, rows[-_STARTS:], words=True))
        blocks += [Text(f"{len(rows) - _STARTS} earlier ones are in environment.jsonl.")] * (len(rows) > _STARTS)
    return blocks


def _said(number: int, start: dict[str, Any]) -> str:
    job = f", job {start['slurm_job']}" if start.get("slurm_job") else ""
    return f"start {number} at step {start['step']}, {start.get('time', '')}, {start.get('host', '')}{job}"


def _changed(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """Return the versions and the commit that differ from the start before."""
    if before is None:
        return ""
    there, here = (surroundings(one) for one in (before, now))
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(f"{name} {there.get(name)} -> {here.get(name)}" for name in names)


def surroundings(start: dict[str, Any]) -> dict[str, Any]:
    packages = start.get("packages")
    commit = start.get("git")
    return {
        "python": start.get("python"),
        **(packages if isinstance(packages, dict) else {}),
        "commit": commit[:10] if isinstance(commit, str) else commit,
    }


def _refusals(view: RunView) -> list[Block]:
    rows = [
        [reason, str(len(steps)), _few(steps, _STEPS), _few(view.refused.get(steps[0], []), 3)]
        for reason, steps in view.refusals().items()
    ]
    if not rows:
        return []
    blocks: list[Block] = [Table(["reason", "updates", "steps", "samples of the first"], rows, words=True)]
    return blocks + [Text("refused.jsonl in the run folder names the samples of each.")] * bool(view.refused)


def _named(found: dict[str, Named], file: str) -> list[Block]:
    if not found:
        return []
    rows = [[reason, str(one.count), one.names[0]] for reason, one in found.items()]
    names = "\n".join(f"{reason}\n" + "\n".join(f"  {name}" for name in one.names) for reason, one in found.items())
    return [
        Table(["reason", "samples", "the first"], rows, words=True),
        Drawn(f"<details><summary>the first of each</summary><pre>{html.escape(names)}</pre></details>"),
        Text(f"{file} in the run folder names all of them."),
    ]


def _events(view: RunView) -> list[Block]:
    rows = []
    for event in view.events[-_EVENTS:]:
        rest = {name: value for name, value in event.items() if name not in ("time", "event", "state")}
        if event["event"] == FAILED:
            rest.pop("starts", None)  # `of_earlier_attempt` covers it
        told = ", ".join(f"{name} {value}" for name, value in rest.items())
        what = event["event"].replace("_", " ") + ", an earlier attempt" * view.of_earlier_attempt(event)
        rows.append([str(event.get("time", "")), what, told])
    return [Table(["when", "what", ""], rows, words=True)] if rows else []


def _few(values: Sequence[Any], count: int) -> str:
    return ", ".join(map(str, values[:count])) + (", ..." if len(values) > count else "")
