"""`tgm-scale study`: arms of pretraining, evaluated and compared."""

from __future__ import annotations

import argparse

from tgm_scale.commands.command import Command, add_configuration, later, positive

_EXAMPLES = """examples:
  tgm-scale study --config configs/study/terms.yaml --dry-run
  tgm-scale study --config configs/study/terms.yaml study.hours=2 study.parallel=2
  tgm-scale study --config configs/study/terms.yaml --tables       # of what is there, while it runs

Every masker with every objective and seed is pretrained and evaluated, each by a command of its own whose folder is
RUN/ARM/seed-N/. What is done is skipped, what was stopped resumes, what failed is begun again; the table names what
failed. Runs that are there with other values are named before anything starts or is written.
RUN/summary.json and RUN/report.html have means, deviations and paired differences with intervals.
Exit code: 0 done, 1 a command failed or its figures are damaged, 2 a mistake in the configuration."""


def _add(parser: argparse.ArgumentParser) -> None:
    add_configuration(parser, "study/terms")
    idle = parser.add_mutually_exclusive_group()
    idle.add_argument(
        "--dry-run",
        action="store_true",
        help="print arms, commands, time and what its start would refuse, start nothing",
    )
    idle.add_argument("--tables", action="store_true", help="write tables and page of what is there, start nothing")
    add = parser.add_argument
    add("--task", type=int, default=0, metavar="I", help="this job's number among --tasks, from 0")
    add("--tasks", type=positive, default=1, metavar="N", help="jobs that share the runs (default %(default)s)")


STUDY = Command(
    "study",
    "maskers x objectives x seeds: pretrained, evaluated, compared",
    _add,
    later("tgm_scale.study.command", "study"),
    _EXAMPLES,
    when_stopped="the same command resumes from here",
)
