"""The summary as a self-contained HTML file."""

from __future__ import annotations

from typing import Any

from tgm_scale.demo import plots
from tgm_scale.report import html
from tgm_scale.runtime.progress import clock

_WANTED = {"ok": True, "failed": False}
_OF_A_RUN = {
    "micro_batch": "clips a pass",
    "clips_per_second": "clips/s",
    "clips_per_second_without_data_wait": "clips/s without the wait for data",
    "mfu_of_own_matrix_rate": "MFU of the card's own matrix rate",
    "peak_memory_gb": "peak memory, GB",
    "guidance_share": "guidance's share",
    "data_wait_share": "wait for data, share",
    "losses_apart": "losses apart",
}


def page(summary: dict[str, Any]) -> str:
    rows = summary["rows"]
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("ok", "failed", "skipped")}
    gpus = ", ".join(summary["gpus"]) or "CPU, at tiny size: this proves the code, and nothing of a GPU"
    sections = [
        html.Section("What works", [_verdicts(rows)]),
        *_figures(rows),
        *_logs(rows),
        html.Section("What it was measured on", [_machine(summary)]),
    ]
    cards = [html.Card(str(count), verdict) for verdict, count in counts.items()]
    cards.append(html.Card(clock(summary["seconds"]), "in all"))
    report = html.Report("One command that proves it", f"{gpus}. {summary['date']}.", sections, cards)
    return html.render(report)


def _verdicts(rows: list[dict[str, Any]]) -> html.Table:
    return html.Table(
        ("row", "what it proves", "verdict", "figure", "remedy", "took"),
        [
            (
                row["name"],
                row["proves"],
                html.PassFail(row["verdict"], _WANTED[row["verdict"]])
                if row["verdict"] in _WANTED
                else row["verdict"],
                row["figure"],
                row["remedy"],
                clock(row["seconds"]) if row["seconds"] else "",
            )
            for row in rows
        ],
        words=True,
    )


def _figures(rows: list[dict[str, Any]]) -> list[html.Section]:
    figures = {row["name"]: row["figures"] for row in rows}
    blocks: list[html.Table | html.Picture] = []
    runs = {name: of for name, of in figures.items() if "clips_per_second_without_data_wait" in of}
    if runs:
        shown = ([of.get(key) for key in _OF_A_RUN] for of in runs.values())
        lines = [(n, *("" if x is None else f"{x:g}" for x in row)) for n, row in zip(runs, shown)]
        blocks.append(html.Table(("row", *_OF_A_RUN.values()), lines))
    resume = figures.get("resume", {})
    if "killed" in resume:
        steps = list(range(1, len(resume["killed"]) + 1))
        curves = {run: (steps, resume[run]) for run in ("undisturbed", "killed")}
        caption = "The loss of a run that was killed and went on, and of the same run left alone."
        blocks.append(html.Picture(plots.curves({"loss": curves}), "two loss curves by step", caption))
    return [html.Section("Figures", blocks)] if blocks else []


def _logs(rows: list[dict[str, Any]]) -> list[html.Section]:
    return [
        html.Section(f"The end of {row['name']}'s log", [html.Code("\n".join(row["log"]) or "nothing was said")])
        for row in rows
        if row["verdict"] == "failed"
    ]


def _machine(summary: dict[str, Any]) -> html.Table:
    named = ("date", "command", "commit", "device", "driver", "driver_cuda", "torch_built_for")
    facts = [(name.replace("_", " "), str(summary[name])) for name in named if summary[name] is not None]
    facts += [(name, str(version)) for name, version in summary["versions"].items() if version is not None]
    return html.Table(("what", "which"), facts, words=True)
