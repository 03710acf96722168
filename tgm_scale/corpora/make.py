"""Make indexed WebDataset shards from InternVid's annotations and a folder of videos."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tgm_scale.data.building.annotations import Filters, Plan
from tgm_scale.data.building.shard_building import (
    NAMES_SHOWN,
    EncodingOptions,
    build_shards,
    open_output,
    remove_if_empty,
    unfinished,
    write_report,
)
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.runtime.terminal import escaped

LINE_EVERY_SECONDS = 30.0


def make(options: argparse.Namespace) -> int:
    """The exit code: 1 where no clip could be made. Raises ValueError for a mistake in the options or their files."""
    if not 0 <= options.task < options.tasks:
        raise ValueError(
            f"--task {options.task} is not one of 0 to {options.tasks - 1}; --tasks says how many there are"
        )
    if not options.videos.is_dir():  # before the output folder is claimed
        raise ValueError(f"--videos {options.videos}: no such folder; name the folder that holds the videos")
    filters = Filters(options.min_umt, options.min_aesthetic, options.min_seconds, options.max_seconds)
    plan = Plan(options.annotations, filters, options.clips_per_shard)
    if not plan.clips:
        why = "no row passes the filters" if plan.rows else "it is empty"
        if plan.problems:
            why = f"the first: {plan.problems[0].key}: {plan.problems[0].detail}"
        raise ValueError(f"--annotations {options.annotations}: no clip in {plan.rows} rows ({why}); see --help")
    encoding = EncodingOptions(options.short_side, options.gop, options.crf)
    open_output(options.output, plan, encoding)
    mine = range(options.task, plan.shards, options.tasks)
    todo = unfinished(options.output, mine)
    print(
        f"{plan.clips} clips in {plan.shards} shards; {len(todo)} of this task's {len(mine)} are to be made",
        flush=True,
    )
    try:
        with _Progress(plan.clips_in(todo)) as progress:
            build_shards(plan, options.videos, options.output, todo, encoding, options.workers, progress.clip_done)
    except ValueError:
        remove_if_empty(options.output)
        raise
    report = write_report(options.output, plan)
    _print_report(report, options.output)
    if report["made"] and report["shards"]["finished"] == plan.shards:
        open_corpus(str(options.output))  # leaves the catalogue, so that the first run opens it at once
    return 0 if report["made"] else 1


def _print_report(report: dict[str, Any], output: Path) -> None:
    shards = report["shards"]
    print(f"{report['made']} of {report['clips']} clips made")
    print(f"{shards['finished']} of {shards['planned']} shards finished")
    for reason, count in report["rows_filtered"].items():
        print(f"  rows not used, {reason}: {count}")
    for reason, skipped in report["skipped"].items():
        print(f"  skipped, {reason}: {skipped['count']}")
        for name, detail in skipped["names"]:
            print(escaped(f"    {name}: {detail}", keep=""))
        if skipped["count"] > NAMES_SHOWN:
            print(f"    ... all in {output / 'report.json'}")


class _Progress:
    """A bar with the time left where there is a terminal, a line every half minute where there is none."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._skipped = total, 0, 0
        self._start = self._line = time.monotonic()
        console = Console(stderr=True)
        columns = (MofNCompleteColumn(), TextColumn("clips"), BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console) if console.is_terminal else None
        self._task = self._bar.add_task("", total=total) if self._bar else None

    def clip_done(self, _clip: object, problem: object) -> None:
        self._done += 1
        self._skipped += problem is not None
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, description=f"{self._skipped} skipped")
        elif time.monotonic() - self._line > LINE_EVERY_SECONDS:
            self._line = time.monotonic()
            rate = self._done / (self._line - self._start)
            left = timedelta(seconds=round((self._total - self._done) / rate))
            print(
                f"{self._done}/{self._total} clips, {self._skipped} skipped, {rate:.1f} clips/s, {left} left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
