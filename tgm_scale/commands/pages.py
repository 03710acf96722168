"""Pages: `tgm-scale report` on a run, `tgm-scale preview` of the masks on clips of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from tgm_scale.commands.command import Command, Once, add_overrides, part_names, positive
from tgm_scale.preview import RECIPES
from tgm_scale.runtime.terminal import message

_REPORT = """One HTML page of a run, while it runs or after: its curves, speed, skipped samples, starts,
configuration, what its newest checkpoint reconstructs of four clips (on the CPU), and the
command that resumes it. Of several runs: their curves in one plot, and what
differs. The page needs no other file and fetches nothing."""

_REPORT_EXAMPLES = """examples:
  tgm-scale report runs/debug                                    # writes runs/debug/report.html
  tgm-scale report runs/joint runs/mae --output comparison.html
"""


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folders", nargs="+", metavar="RUN", help="a run folder, such as runs/debug")
    parser.add_argument(
        "--no-reconstructions",
        action="store_true",
        help="read neither the newest checkpoint nor any clip: the page has the newest picture that the run drew "
        "itself (log.pictures_every)",
    )
    parser.add_argument("--output", metavar="FILE", help="default: report.html in the folder of the one run")


def _report(options: argparse.Namespace) -> int:
    from tgm_scale.report.run_page import open_runs, write_page

    file, views = open_runs(options.run_folders, options.output)
    if not options.no_reconstructions and any((view.root / "checkpoints").is_dir() for view in views):
        from tgm_scale.preview.of_run import with_reconstruction  # which imports torch

        views = [with_reconstruction(view) for view in views]
    write_page(file, views)
    print(message(str(file)))
    return 0


REPORT = Command(
    "report", "one page of a run, or of several laid over one another", _add_report, _report, _REPORT_EXAMPLES, _REPORT
)


_PREVIEW = """examples:
  tgm-scale preview data.shards=videos guidance.towers=CLIP --output page.html
  tgm-scale preview data.shards=clips.csv data.root=videos guidance.towers=CLIP --keys a.mp4,b.mp4 --output page.html
  tgm-scale preview --config configs/pretrain_vitb.yaml data.shards=shards guidance.towers=CLIP --output page.html
  tgm-scale preview data.shards=videos --recipes tube motion_guided --output page.html   # without captions
  tgm-scale preview --checkpoint runs/look --output page.html   # its data and recipe, and reconstructions

One HTML page that needs nothing beside it: of each clip the frames, the caption, the relevance of each scorer, what
each recipe hides and what the encoder sees; over all clips, whether captions change the masks, and towards what they
say. Clips, crops, captions and masks are those with which a run of the same configuration and seed begins. Clips that
cannot be used are named on the page and here. Without --config: 16 frames of 224 pixels, a ratio of 0.6; every key of
a run's configuration can be set. Exit code: 0 done, 2 a mistake in the command or its input."""


def _add_preview(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE", help="the page, such as page.html; written over")
    add(
        "--config",
        action=Once,
        metavar="FILE",
        help="a run's configuration, for its data, clips, towers, ratio and options; wins over that of --checkpoint",
    )
    add(
        "--checkpoint",
        action=Once,
        metavar="RUN",
        help="run folder or checkpoint: its configuration (without --config), what it reconstructs, its learned mask",
    )
    add("--clips", type=positive, default=12, metavar="N", help="how many are shown (default %(default)s)")
    add("--keys", action="append", metavar="NAMES", help="these clips, by name, commas between")
    add(
        "--recipes",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"blanks or commas between; or all (default: the configuration's, {' '.join(RECIPES)})",
    )
    add("--seed", type=int, metavar="N", help="run.seed: which clips, crops, captions and masks (default 0)")
    add_overrides(parser)


def _preview(options: argparse.Namespace) -> int:
    part_names(options, {"recipes": RECIPES} if options.recipes else {})
    options.keys = [key for names in options.keys or [] for key in names.split(",") if key]
    from tgm_scale.preview.command import preview

    return preview(options)


PREVIEW = Command(
    "preview",
    "a page of what masking hides in clips of your own, before a run",
    _add_preview,
    _preview,
    _PREVIEW,
    when_stopped="no page was written",
)
