"""Make indexed WebDataset shards from InternVid's annotations and a folder of videos."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from tgm_scale.runtime import command
from tgm_scale.runtime.terminal import escaped

EXAMPLES = """examples:
  python tools/make_shards.py --annotations internvid.jsonl --videos DIR --output DIR
  python tools/make_shards.py --annotations internvid.jsonl --videos DIR --output DIR --min-umt 0.3 --min-seconds 2
  python tools/make_shards.py ... --task $SLURM_ARRAY_TASK_ID --tasks 64     in each job of an array (0-63)

Annotations are InternVid's (YoutubeID, Start_timestamp, End_timestamp, Caption, UMT_Score), or have columns file,
start, end, caption, label (times in seconds or HH:MM:SS.mmm; a row without any is the whole file), as JSON Lines, a
JSON array, or a table with commas, tabs, ; or |, each also as .gz. A file is one below --videos, an absolute path, or
a bare name that only one has. A file that is named by id and times is taken as the clip, already cut.

A row is used where it passes all filters; a row that lacks the score a filter asks for is not used. Rows with the
same video and span become captions of one clip. A clip has exactly the frames whose times lie in [start, end), no
sound, and square pixels; smaller videos are scaled up to the short side too. Clips are shuffled over the shards.

Stopped at any moment, the same command goes on where it was and ends with the same bytes. What could not be made, and
why, is printed at the end and listed by name in OUTPUT/report.json; clips that were skipped are not tried again.
Exit code: 0 shards were made, 1 none could be made or the disk failed, 2 a mistake in the command or its input."""

LINE_EVERY_SECONDS = 30.0
NAMES_SHOWN = 5


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    return command.exit_code(
        "make_shards", lambda: _run(options), "finished shards are kept, the same command goes on"
    )


def _parser() -> argparse.ArgumentParser:
    from tgm_scale.data.encode import CRF, GOP, SHORT_SIDE

    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--annotations", required=True, metavar="FILE", help="a file, a folder or a pattern of files")
    add(
        "--videos",
        type=Path,
        required=True,
        metavar="DIR",
        help="holds the videos, as YoutubeID.mp4 (mkv, avi, mov, webm) at any depth, or by their paths",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing")
    add("--min-umt", type=float, metavar="X", help="use captions with a UMT_Score of at least X")
    add("--min-aesthetic", type=float, metavar="X", help="use captions with an Aesthetic_Score of at least X")
    add("--min-seconds", type=float, metavar="S", help="use spans of at least S seconds")
    add("--max-seconds", type=float, metavar="S", help="use spans of at most S seconds")
    add("--short-side", type=_even, default=SHORT_SIDE, metavar="N", help="pixels, even (default %(default)s)")
    add("--gop", type=_positive, default=GOP, metavar="N", help="a keyframe every N frames (default %(default)s)")
    add(
        "--crf",
        type=int,
        choices=range(52),
        default=CRF,
        metavar="N",
        help="x264's quality, 0-51 (default %(default)s)",
    )
    add("--clips-per-shard", type=_positive, default=1000, metavar="N", help="default 1000, some 0.4 GB")
    add("--workers", type=_positive, default=len(os.sched_getaffinity(0)), metavar="N", help="default: one a core")
    add("--task", type=int, default=0, metavar="I", help="which part of the shards to make, 0 to N-1 (default 0)")
    add("--tasks", type=_positive, default=1, metavar="N", help="how many such parts there are (default 1)")
    return parser


def _run(options: argparse.Namespace) -> int:
    from tgm_scale.data.annotations import Filters, Plan
    from tgm_scale.data.index import Corpus
    from tgm_scale.data.packing import Encoding, claim, pack, unfinished, write_report

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
    encoding = Encoding(options.short_side, options.gop, options.crf)
    claim(options.output, plan, encoding)
    mine = range(options.task, plan.shards, options.tasks)
    todo = unfinished(options.output, mine)
    print(
        f"{plan.clips} clips in {plan.shards} shards; {len(todo)} of this task's {len(mine)} are to be made",
        flush=True,
    )
    with _Progress(plan.clips_in(todo)) as progress:
        pack(plan, options.videos, options.output, todo, encoding, options.workers, progress.clip_done)
    report = write_report(options.output, plan)
    _print_report(report, options.output)
    if report["made"] and report["shards"]["finished"] == plan.shards:
        Corpus.open(str(options.output))  # leaves the catalogue, so that the first run opens it at once
    return 0 if report["made"] else 1


def _print_report(report: dict[str, Any], output: Path) -> None:
    shards = report["shards"]
    print(f"{report['made']} of {report['clips']} clips made")
    print(f"{shards['finished']} of {shards['planned']} shards finished")
    for reason, count in report["rows_filtered"].items():
        print(f"  rows not used, {reason}: {count}")
    for reason, skipped in report["skipped"].items():
        print(f"  skipped, {reason}: {skipped['count']}")
        for name, detail in skipped["names"][:NAMES_SHOWN]:
            print(escaped(f"    {name}: {detail}", keep=""))
        if skipped["count"] > NAMES_SHOWN:
            print(f"    ... all in {output / 'report.json'}")


class _Progress:
    """A bar with the time left where there is a terminal, a line every half minute where there is none."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _even(text: str) -> int:
    if (value := _positive(text)) % 2:
        raise argparse.ArgumentTypeError(f"{text} is odd; H.264 in yuv420p wants even sides")
    return value


if __name__ == "__main__":
    sys.exit(main())
