"""The whole story on a corpus that the project makes itself: corpus, pretraining, figures, report. `make demo`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.demo import command as demo
from tgm_scale.demo.plan import Plan, pretrain
from tgm_scale.demo.summary import check_expectations
from tgm_scale.runtime import command
from tgm_scale.runtime.compat import quiet_warnings
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.progress import ProgressBars, clock

EXAMPLES = """examples:
  python tools/demo.py                                       8 to 13 minutes on 2 CPU cores
  python tools/demo.py --dir runs/short --clips 64 --test-clips 32 --steps 20 --seeds 1       a look at the whole way

Stopped at any moment, the same command resumes where it was. Everything is written below --dir: report.html to look
at, summary.json with the figures, the shards, the runs, the exported model."""


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--dir", type=Path, default=Path("runs/demo"), metavar="DIR", help="default %(default)s")
    add("--config", default="configs/demo.yaml", metavar="FILE", help="of the pretraining runs; default %(default)s")
    add("--clips", type=int, default=Plan.clips, metavar="N", help="of each training corpus; default %(default)s")
    add("--test-clips", type=int, default=Plan.test_clips, metavar="N", help="held out; default %(default)s")
    add("--seeds", type=int, default=Plan.seeds, metavar="N", help="runs of each kind; default %(default)s")
    add("--steps", type=int, default=None, metavar="N", help="of each run; default: the configuration's")
    options = parser.parse_args(arguments)
    quiet_warnings()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the runs that it started are stopped, too
    return command.exit_code("demo", lambda: _run(options), "the same command resumes from here")


def _run(options: argparse.Namespace) -> int:
    plan = Plan(options.dir, options.config, options.clips, options.test_clips, options.seeds, options.steps)
    config = plan.run_config()
    ledger = _Ledger(plan, configuration.dump(config))
    with ProgressBars() as bars:
        ledger.once("corpora", lambda: demo.make_corpora(plan, bars))
        ledger.once("pretraining", lambda: pretrain(plan, bars))
        ledger.once("masks", lambda: demo.evaluate_masks(plan, bars))
        ledger.once("features", lambda: demo.probe_features(plan, bars))
        ledger.once("export", lambda: demo.export(plan))
    summary = demo.summarise(plan, ledger.figures, ledger.seconds)
    report = demo.write_report(plan, summary, ledger.figures)
    print("\n".join(str(finding) for finding in check_expectations(summary)))
    print(f"\n{report}  (figures: {report.with_name('summary.json')}; {clock(summary['seconds'])} in all)")
    return 0


class _Ledger:
    """Finished stages, with figures and seconds of each, kept in the demo's folder."""

    def __init__(self, plan: Plan, config: str):
        self.file = plan.folder / "stages.json"
        settings = {"clips": plan.clips, "test_clips": plan.test_clips, "seeds": plan.seeds, "config": config}
        self._state: dict[str, Any] = {"settings": settings, "stages": {}}
        if self.file.is_file():
            self._state = json_object(self.file)
            if self._state["settings"] != settings:
                raise ValueError(
                    f"--dir {plan.folder}: holds a demo of other settings; name another folder, or remove it"
                )

    @property
    def figures(self) -> dict[str, Any]:
        return {name: stage["figures"] for name, stage in self._state["stages"].items()}

    @property
    def seconds(self) -> float:
        return sum(stage["seconds"] for stage in self._state["stages"].values())

    def once(self, name: str, stage: Callable[[], dict[str, Any]]) -> None:
        if name in self._state["stages"]:
            print(f"{name}: done before", file=sys.stderr)
            return
        began = time.monotonic()
        figures = stage()
        self._state["stages"][name] = {"seconds": time.monotonic() - began, "figures": figures}
        demo.write_json(self.file, self._state)


if __name__ == "__main__":
    sys.exit(main())
