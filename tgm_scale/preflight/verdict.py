"""Verdict of a preflight from its reports: bad nodes, problems of the setup, untested versions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from statistics import median

from tgm_scale.preflight.node_checks import Report

# not a node's fault if there is only one node
_OF_THE_SETUP = {"configuration", "run folder", "disk", "shards", "extensions", "trial run"}
_SLOW_GPU = 0.7  # of the median speed; healthy GPUs of one kind are within 5 %
_CLOCK_SECONDS = 5.0  # make and rsync start to fail at 1 s, authentication at 300 s


def diagnose(reports: list[Report], silent: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the problems by node, and those of the setup: kinds of problem that every reporting node has."""
    nodes: dict[str, dict[str, str]] = defaultdict(dict)
    for report in reports:
        nodes[report.node] |= report.problems
    for node in silent:
        nodes[node]["silence"] = "a process there did not answer"
    for report, kind, problem in (*_mismatches(reports), *_outliers(reports)):
        nodes[report.node].setdefault(kind, problem)
    told = [nodes[name] for name in dict.fromkeys(report.node for report in reports)]
    shared = set.intersection(*map(set, told)) - {"silence"}
    common = shared if len(told) > 1 else shared & _OF_THE_SETUP
    first = told[0]
    bad = {node: [text for kind, text in problems.items() if kind not in common] for node, problems in nodes.items()}
    return {node: texts for node, texts in bad.items() if texts}, [first[kind] for kind in first if kind in common]


def _mismatches(reports: list[Report]) -> list[tuple[Report, str, str]]:
    """Return reports that differ from most in what must match; if half differ, rank 0's half counts as right."""
    found = []
    for name in dict.fromkeys(name for report in reports for name in report.must_match):
        values = [report.must_match.get(name, "none") for report in reports]
        usual = Counter(values).most_common(1)[0][0]
        found += [
            (report, name, f"{name} is {value}, elsewhere {usual}")
            for report, value in zip(reports, values)
            if value != usual
        ]
    return found


def _outliers(reports: list[Report]) -> list[tuple[Report, str, str]]:
    found = []
    for report, clock, usual in _with_median(reports, "clock"):
        if abs(clock - usual) > _CLOCK_SECONDS:
            found.append((report, "clock", f"its clock is {clock - usual:+.0f} s off"))
    for report, speed, usual in _with_median(reports, "FLOP/s"):
        if speed < _SLOW_GPU * usual:
            problem = f"rank {report.rank}'s GPU makes {speed / 1e12:.0f} TFLOP/s, the usual is {usual / 1e12:.0f}"
            found.append((report, "GPU speed", problem))
    gpus = Counter((report.node, report.gpu) for report in reports)
    found += [
        (report, "GPU sharing", "two processes have the same GPU: start as many tasks a node as it has GPUs")
        for report in reports
        if report.gpu and gpus[report.node, report.gpu] > 1
    ]
    return found


def _with_median(reports: list[Report], figure: str) -> list[tuple[Report, float, float]]:
    having = [report for report in reports if figure in report.measurements]
    usual = median(report.measurements[figure] for report in having) if having else 0.0
    return [(report, report.measurements[figure], usual) for report in having]


def summary(reports: list[Report]) -> str:
    """Return one line: what was checked, and the measurements of a healthy cluster."""
    clocks = [clock for _, clock, _ in _with_median(reports, "clock")]
    speeds = [speed / 1e12 for _, speed, _ in _with_median(reports, "FLOP/s")]
    reduced = [speed / 1e9 for _, speed, _ in _with_median(reports, "bytes/s")]
    ranks, nodes = {report.rank for report in reports}, {report.node for report in reports}
    parts = [f"processes: {len(ranks)} on {reports[0].must_match['device']}, nodes: {len(nodes)}"]
    parts += [f"{min(speeds):.0f} to {max(speeds):.0f} TFLOP/s a GPU"] if speeds else []
    parts += [f"clocks within {max(clocks) - min(clocks):.2f} s"]
    parts += [f"all-reduce {min(reduced):.2f} GB/s"] if reduced else []
    return ", ".join(parts)


# lowest and newest version tested
TESTED = {
    "torch": ("2.8.0", "2.15.0"),
    "deepspeed": ("0.19.8", "0.19.8"),
    "transformers": ("5.23.0", "5.24.0"),
    "av": ("17.1.0", "19.0.2"),
    "numpy": ("2.1.0", "2.5.5"),
}


def untested(versions: Mapping[str, str | None]) -> list[str]:
    """Return a warning for each package that is older or newer than any tested version."""
    return [
        f"warning: {name} {version} was never tried with this project; {lowest} to {newest} were (docs/INSTALL.md)"
        for name, (lowest, newest) in TESTED.items()
        if (version := versions.get(name)) and not _parts(lowest) <= _parts(version) <= _parts(newest)
    ]


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
