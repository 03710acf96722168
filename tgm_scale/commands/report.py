"""`tgm-scale report`: a page of a run."""

from __future__ import annotations

import argparse

from tgm_scale.commands.command import Command
from tgm_scale.runtime.terminal import message

DESCRIPTION = """One HTML page of a run, while it runs or after: its curves, speed, skipped samples, starts,
configuration, what its newest checkpoint reconstructs of a few held-out clips (on the CPU), and the
command that resumes it. Of several runs: their curves in one plot, and what
differs. The page needs no other file and fetches nothing."""

EXAMPLES = """examples:
  tgm-scale report runs/debug                                    # writes runs/debug/report.html
  tgm-scale report runs/joint runs/mae --output comparison.html
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folders", nargs="+", metavar="RUN", help="a run folder, such as runs/debug")
    parser.add_argument(
        "--no-reconstructions",
        action="store_true",
        help="read neither the newest checkpoint nor any clip: the page has the newest picture that the run drew "
        "itself (log.pictures_every)",
    )
    parser.add_argument("--output", metavar="FILE", help="default: report.html in the folder of the one run")


def _run(options: argparse.Namespace) -> int:
    from tgm_scale.report.run_page import open_runs, write_page

    file, views = open_runs(options.run_folders, options.output)
    if not options.no_reconstructions and any((view.root / "checkpoints").is_dir() for view in views):
        from tgm_scale.preview.of_run import with_reconstruction  # which imports torch

        views = [with_reconstruction(view) for view in views]
    write_page(file, views)
    print(message(str(file)))
    return 0


COMMAND = Command(
    "report", "one page of a run, or of several laid over one another", _add_arguments, _run, EXAMPLES, DESCRIPTION
)
