"""Kill a training run at random moments, resume it each time, and compare it with an undisturbed run."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tgm_scale import config as configuration
from tgm_scale.config import Config
from tgm_scale.runs.compare import compare
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime import command
from tgm_scale.runtime.outside.json_text import json_lines, json_of
from tgm_scale.runtime.processes import LocalRun
from tgm_scale.runtime.progress import ProgressBars, Task

EXAMPLES = """examples:
  python tools/fault_drill.py --config configs/debug.yaml --dir runs/drill
  python tools/fault_drill.py --config configs/debug.yaml --dir runs/short --kills 3
  python tools/fault_drill.py --config configs/debug.yaml --dir runs/zero3 deepspeed.stage=3 data.workers=2

SIGKILL meets rank 0, the last rank, or all at once (a lost node); while starting, between steps, or while a checkpoint
is written. As srun --wait=30 does, survivors that do not end by themselves are killed after 30 seconds. In the end the
drill's metrics must equal those of DIR/undisturbed to the last bit, every step once and with the same clips.
DIR/kills.jsonl names each kill; stopped, the same command resumes. Exit code: 0 equal, 1 not, 2 a mistake."""

EVERY = 3  # steps between checkpoints
FIRST_STEPS, STEPS_A_KILL = 20, 6  # of the run, so that it does not end before its last kill
SURVIVORS_MAY_TAKE = 30.0  # seconds, as in slurm/launch.sh; survivors that wait at the start for a lost rank 0 need it
MOMENTS = {"while starting": 1, "between steps": 5, "while a checkpoint is written": 4}
VICTIMS = {"rank 0": slice(1), "the last rank": slice(-1, None), "all ranks": slice(None)}
WAIT = 600.0  # seconds for a moment to come


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE")
    add("--dir", required=True, type=Path, metavar="DIR", help="for the two runs and the list of kills")
    add("--kills", type=int, default=50, metavar="N", help="default %(default)s")
    add("--processes", type=int, default=2, metavar="N", help="of the run; default %(default)s")
    add("--seed", type=int, default=0, help="of the moments and victims; default %(default)s")
    add("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    return command.exit_code("fault_drill", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    drill = Drill(options.config, options.overrides, options.dir, options.kills, options.processes, options.seed)
    try:
        return drill.run()
    except Failed as failure:
        print(f"fault_drill: {failure}", file=sys.stderr)
        return command.FAILED


class Failed(RuntimeError):
    """The run did not behave as it must."""


def wait_for_survivors(life: LocalRun) -> bool:
    """Return whether all ranks end by themselves; those that do not are killed."""
    end = time.monotonic() + SURVIVORS_MAY_TAKE
    while life.running():
        if time.monotonic() > end:
            life.kill()
            return False
        time.sleep(0.1)
    return True


class Drill:
    def __init__(self, file: str, overrides: list[str], folder: Path, kills: int, processes: int, seed: int):
        own = [f"checkpoint.every={EVERY}", f"train.steps={FIRST_STEPS + kills * STEPS_A_KILL}", "checkpoint.keep=2"]
        self.overrides = [*own, *overrides]
        self.file, self.folder, self.kills, self.processes, self.seed = file, folder, kills, processes, seed
        self.list = folder / "kills.jsonl"
        self.run_dir, self.reference_dir = folder / "drill", folder / "undisturbed"
        self.config = self._config(self.run_dir)
        if self.config.train.steps is None:
            raise ValueError("the drill wants train.steps, not train.epochs")
        if self.config.train.global_batch_size % (self.config.train.micro_batch_size * processes):
            self.overrides.append(f"train.micro_batch_size={self.config.train.global_batch_size // processes}")
            self.config = self._config(self.run_dir)

    def _config(self, run_dir: Path) -> Config:
        return configuration.load(self.file, [*self.overrides, configuration.override("run.dir", run_dir)])

    def run(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        with ProgressBars() as bars:
            self._finish(self.reference_dir, bars.task("the undisturbed run", 1))
            kills = bars.task("kills", self.kills)
            made = self._made()
            kills.to(len(made))
            for number in range(len(made), self.kills):
                self._kill_once(number)
                kills.advance()
            self._finish(self.run_dir, bars.task("the rest of the disturbed run", 1))
        return self._judge()

    def _made(self) -> list[dict]:
        return json_lines(self.list) if self.list.is_file() else []

    def _life(self, run_dir: Path) -> LocalRun:
        command = [sys.executable, "-m", "tgm_scale", "pretrain", "--config", self.file, *self.overrides]
        return LocalRun(
            [*command, configuration.override("run.dir", run_dir)], self.processes, self.folder / f"{run_dir.name}.log"
        )

    def _finish(self, run_dir: Path, task: Task) -> None:
        if self._steps(run_dir) < (self.config.train.steps or 0):
            with self._life(run_dir) as life:
                codes = life.wait()
            if any(codes):
                raise Failed(f"exit codes {codes}: look at the end of {self.folder / f'{run_dir.name}.log'}")
        task.advance()

    @staticmethod
    def _steps(run_dir: Path) -> int:
        rows = read_metrics(run_dir) if (run_dir / "metrics.jsonl").is_file() else []
        return rows[-1]["step"] if rows else 0

    def _kill_once(self, number: int) -> None:
        """Start once, end it by SIGKILL, and record the circumstances."""
        draw = random.Random(f"{self.seed} {number}")
        moment = draw.choices(list(MOMENTS), list(MOMENTS.values()))[0]
        victim = draw.choice(list(VICTIMS))
        before = self._steps(self.run_dir)
        with self._life(self.run_dir) as life:
            began = time.monotonic()
            if moment == "while starting":
                delay = draw.uniform(0, 8)
            elif moment == "between steps":
                self._await(life, self._step_counter(draw.randint(1, 2 * EVERY)))
                delay = draw.uniform(0, 0.3)
            else:
                self._await(life, lambda: bool(self._in_writing(life)))
                delay = draw.uniform(0, 0.1)
            time.sleep(delay)
            life.kill(VICTIMS[victim])
            killed = time.monotonic()
            writing = self._in_writing(life)
            by_themselves = wait_for_survivors(life)
            codes = life.wait()
        if 0 in codes:
            raise Failed(f"kill {number}: the run was done before it; give more train.steps")
        row = {"number": number, "moment": moment, "victim": victim, "steps_before": before}
        row |= {"steps": self._steps(self.run_dir), "in_writing": writing, "exit_codes": codes}
        row |= {"by_themselves": by_themselves, "seconds": round(killed - began, 2)}
        row |= {"survived": round(time.monotonic() - killed, 2)}
        with self.list.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def _in_writing(self, life: LocalRun) -> list[str]:
        """Return the checkpoints that this start is writing; leftovers of earlier ones are older."""
        found = []
        for folder in (self.run_dir / "checkpoints").glob(".writing-*"):
            with contextlib.suppress(FileNotFoundError):  # it may be renamed meanwhile
                if folder.stat().st_mtime > life.began:
                    found.append(folder.name)
        return found

    def _step_counter(self, count: int) -> Callable[[], bool]:
        """Return a check whether this start has made `count` steps. It begins by cutting the metrics to its
        checkpoint."""
        starts = self.run_dir / "environment.jsonl"
        lines = len(starts.read_text(encoding="utf-8").splitlines()) if starts.is_file() else 0

        def reached() -> bool:
            rows = starts.read_text(encoding="utf-8").splitlines() if starts.is_file() else []
            return len(rows) > lines and self._steps(self.run_dir) >= json_of(rows[-1])["step"] + count

        return reached

    def _await(self, life: LocalRun, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT
        while not condition():
            if life.ended():
                log = self.folder / f"{self.run_dir.name}.log"
                raise Failed(f"the run ended before it was killed: give more train.steps, or look at {log}")
            if time.monotonic() > end:
                raise Failed(f"nothing to kill came in {WAIT:.0f} s")
            time.sleep(0.002)

    def _judge(self) -> int:
        report, equal = compare(str(self.reference_dir), str(self.run_dir))
        steps = [row["step"] for row in read_metrics(self.run_dir)]
        once = steps == list(range(1, len(steps) + 1))
        skipped = [(run / "skipped.jsonl").read_text(encoding="utf-8") for run in (self.reference_dir, self.run_dir)]
        kills = self._made()
        moments = Counter(kill["moment"] for kill in kills)
        print(report)
        print(f"steps: {len(steps)}, {'each once' if once else 'with gaps or doubles'}")
        print("broken samples: " + ("the same" if skipped[0] == skipped[1] else "others"))
        print(f"kills: {len(kills)}; " + ", ".join(f"{count} {moment}" for moment, count in moments.items()))
        print(f"with a checkpoint's files half written: {sum(bool(kill['in_writing']) for kill in kills)}")
        alone = [kill for kill in kills if kill["victim"] != "all ranks"]
        print(
            f"survivors: {len(alone)} times, ended by themselves {sum(kill['by_themselves'] for kill in alone)} times"
        )
        good = equal and once and skipped[0] == skipped[1]
        print("equal to the last bit" if good else "NOT equal")
        return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
