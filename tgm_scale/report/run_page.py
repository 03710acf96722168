"""`tgm-scale report`: one page about one run, or several runs overlaid."""

from __future__ import annotations

import errno
import html
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.report import chart, run_figures
from tgm_scale.report.html import Card, Code, Drawn, Report, Section, Table, Text, render
from tgm_scale.report.run_history import STYLE, Block, apart, surroundings
from tgm_scale.report.run_view import SHARES, RunView, look
from tgm_scale.runs import bottleneck
from tgm_scale.runs.compare import differing_keys
from tgm_scale.runs.environment import versions
from tgm_scale.runtime.files import check_output, replace_file
from tgm_scale.runtime.terminal import message

_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def open_runs(folders: Sequence[str], output: str | None) -> tuple[Path, list[RunView]]:
    """Return the page's file, RUN/report.html by default, and the contents of the folders.

    Raises ValueError for a folder that is no run, and for a file that cannot be written there."""
    twice = [one for number, one in enumerate(folders) if Path(one).resolve() in _resolved(folders[:number])]
    if twice:
        raise ValueError(f"{twice[0]}: given twice")
    file = _place(folders, output)
    return file, [look(folder) for folder in folders]


def write_page(file: Path, views: Sequence[RunView]) -> None:
    """Write the page. Raises ValueError if the file cannot be written."""
    page = message(render(_one(views[0]) if len(views) == 1 else _several(views)))
    try:
        replace_file(file, page.encode("ascii", "xmlcharrefreplace").decode(), durable=False)
    except OSError as error:
        if error.errno not in _CLOSED:
            raise
        raise ValueError(f"{file}: cannot be written ({error.strerror}): name another place by --output") from None


def _resolved(folders: Sequence[str]) -> list[Path]:
    return [Path(folder).resolve() for folder in folders]


def _place(folders: Sequence[str], output: str | None) -> Path:
    if output is None and len(folders) > 1:
        raise ValueError("of several runs: --output wanted, such as --output comparison.html")
    file = Path(folders[0]) / "report.html" if output is None else Path(output)
    if output is not None or file.parent.is_dir():  # else it is no run folder, which is reported next
        check_output("--output", file, "HTML page")
    return file


def _one(view: RunView) -> Report:
    state = view.lines.get("state", "")
    facts = [
        view.lines.get("run", view.name).removeprefix(f"{view.name}, "),
        f"step {view.lines['step']}" if "step" in view.lines else "",
    ]
    sections = [Section("How it stands", _standing(view)), *_curves([view])]
    sections += apart(view)
    sections += [Section("Configuration", _configuration(view))] if view.tree else []
    return Report(
        title=view.name,
        lead="; ".join(filter(None, [*facts, state])),
        sections=[section for section in sections if section.blocks],
        cards=_cards(view),
        footer=_footer(),
        style=chart.STYLE + STYLE,
    )


def _several(views: Sequence[RunView]) -> Report:
    names = list(dict.fromkeys(name for view in views for name in view.lines if name != "run"))
    rows = [[name, *(view.lines.get(name, "") for view in views)] for name in names]
    standing: list[Block] = [Table(["", *(view.name for view in views)], rows, words=True)] if rows else []
    standing += [Text(f"{view.name}: {said}") for view in views for said in view.complaints]
    goes_on = [Code("\n".join(view.command for view in views if view.command))]
    if goes_on[0].text:
        standing += [Text("Commands that resume those that are not finished:"), *goes_on]
    sections = [Section("How they stand", standing), Section("Differences", _differences(views)), *_curves(views)]
    for view in views:
        sections += [Section(f"{view.name}: {one.title.lower()}", one.blocks) for one in apart(view)]
    return Report(
        title=f"{len(views)} runs",
        lead=", ".join(view.name for view in views),
        sections=[section for section in sections if section.blocks],
        footer=_footer(),
        style=chart.STYLE + STYLE,
    )


def _footer() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"Made by tgm-scale {versions()['tgm_scale']} at {now}; the same command makes it again."


def _cards(view: RunView) -> list[Card]:
    lines = view.lines
    found = [
        Card(lines[name].split(" (")[0].split(", ")[0], text)
        for name, text in (("step", "steps"), ("left", "left"), ("speed", "speed"), ("loss", "loss of the last step"))
        if name in lines
    ]
    ranks, steps = bottleneck.recent_shares(view.root, 1, view.rows, view.starts)  # the same as in the bottleneck line
    for phase, part, text in (
        ("data", "data_seconds", "waiting for data"),
        ("guidance", "guidance_seconds", "guidance"),
    ):
        if ranks and SHARES[part] in view.columns:
            share = chart.percent(ranks[0].shares.get(phase, 0.0))
            found.append(Card(share, f"{text}, main process, {bottleneck.counted(steps)}"))
    if "knn_accuracy" in view.columns and len(values := view.columns["knn_accuracy"].finite.values):
        found.append(Card(chart.percent(float(values[-1])), "kNN accuracy, newest"))
    return found


def _standing(view: RunView) -> list[Block]:
    blocks: list[Block] = [Text(said) for said in view.complaints]
    rows = [[name, text] for name, text in view.lines.items() if name not in ("run", "resume")]
    blocks += [Table(["", ""], rows, words=True)] if rows else []
    if view.command:
        blocks += [Text("The command that resumes it, from the folder in which it was started:"), Code(view.command)]
    elif "resume" in view.lines:
        blocks.append(Text(f"What resumes it: {view.lines['resume']}."))
    if "masking" in view.tree and view.lines.get("checkpoint", "none yet") != "none yet":
        typed = shlex.join(["tgm-scale", "preview", "--checkpoint", str(view.root), "--output", "preview.html"])
        blocks += [Text("More of its clips, what masks hide of them, and under other captions:"), Code(typed)]
    return blocks


def _curves(views: Sequence[RunView]) -> list[Section]:
    """Return a section for each group of metrics that a run has."""
    if not any(view.rows for view in views):
        return []
    sections = []
    finetuned = all("finetune" in view.tree for view in views)  # has other terms, and no guidance
    for title, figures in run_figures.groups(views).items():
        panels = "".join(run_figures.panel(one, views) for one in figures)
        blocks: list[Block] = []
        if panels and len(views) > 1:
            blocks.append(Drawn(run_figures.legend(views)))
        if panels:
            blocks.append(Drawn(f"<div class='panels'>{panels}</div>"))
        if title == "Objective" and panels:
            blocks.append(Text(_HOW_TO_READ))
        if title == "Guidance" and panels:
            blocks += [
                Text(f"{view.name}: {said}" if len(views) > 1 else said)
                for view in views
                for said in run_figures.guidance_sentences(view)
            ]
        if not finetuned:
            blocks += [Text(said) for said in run_figures.lacking(views, figures)]
        sections.append(Section(title, blocks))
    return sections


_HOW_TO_READ = (
    "By step. A long curve is the mean of each 320th of the axis, with the lowest and the highest value of each "
    "behind it, so that no spike is lost. Upright lines: a new start. Red strokes below: updates that were refused. "
    "Red triangles above: values that were not finite."
)


def _configuration(view: RunView) -> list[Block]:
    text = html.escape(configuration.to_yaml(view.tree))
    return [Drawn(f"<details><summary>all keys, as resolved</summary><pre>{text}</pre></details>")]


def _differences(views: Sequence[RunView]) -> list[Block]:
    found = differing_keys([view.tree for view in views])
    newest = [surroundings(view.starts[-1]) if view.starts else {} for view in views]
    found |= differing_keys([{"versions": one} for one in newest if one]) if all(newest) else {}
    if not found:
        return [Text("Of the configuration and the versions: none.")]
    rows = [[key, *map(_shown, values)] for key, values in found.items()]
    return [Table(["key", *(view.name for view in views)], rows, words=True)]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
