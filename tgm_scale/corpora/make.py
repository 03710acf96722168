"""Production of indexed WebDataset shards from annotations such as InternVid's and a folder of videos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tgm_scale.data.building import shard_building
from tgm_scale.data.building.annotations import Filters, Plan
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.runtime.files import check_folder, like
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import escaped


def make(options: argparse.Namespace) -> int:
    """Make shards and return the exit code: 1 where no clip could be made. Raises ValueError for a mistake in the
    options or their files."""
    if not 0 <= options.task < options.tasks:
        raise ValueError(
            f"--task {options.task} is not one of 0 to {options.tasks - 1}; --tasks says how many there are"
        )
    if not options.videos.is_dir():  # before the output folder is claimed
        raise ValueError(
            f"--videos {options.videos}: no such folder{like(options.videos)}; name the folder that holds the videos"
        )
    check_folder("--output", options.output)
    filters = Filters(options.min_umt, options.min_aesthetic, options.min_seconds, options.max_seconds)
    plan = Plan(options.annotations, filters, options.clips_per_shard)
    if not plan.clips:
        why = "no row passes the filters" if plan.rows else "it is empty"
        if plan.problems:
            why = f"the first: {plan.problems[0].key}: {plan.problems[0].detail}"
        raise ValueError(f"--annotations {options.annotations}: no clip in {plan.rows} rows ({why}); see --help")
    encoding = shard_building.EncodingOptions(options.short_side, options.gop, options.crf)
    shard_building.open_output(options.output, plan, encoding)
    mine = range(options.task, plan.shards, options.tasks)
    todo = shard_building.unfinished(options.output, mine)
    print(
        f"{plan.clips} clips in {plan.shards} shards; {len(todo)} of this task's {len(mine)} are to be made",
        flush=True,
    )
    built = shard_building.build_shards(plan, options.videos, options.output, todo, encoding, options.workers)
    try:
        with ProgressBars() as bars:
            task, skipped = bars.task("clips", plan.clips_in(todo)), 0
            for problem in built:
                skipped += problem is not None
                task.to(task.done + 1, f"{skipped} skipped")
    except ValueError:
        shard_building.remove_if_empty(options.output)
        raise
    report = shard_building.write_report(options.output, plan)
    _print_report(report, options.output)
    if report["made"] and report["shards"]["finished"] == plan.shards:
        open_corpus(str(options.output))  # writes the catalogue, so that the first run opens the corpus at once
    return 0 if report["made"] or not mine else 1


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
        if skipped["count"] > shard_building.NAMES_SHOWN:
            print(f"    ... all in {output / 'report.json'}")
