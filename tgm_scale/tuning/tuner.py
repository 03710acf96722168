"""Search for the fastest way to run a configuration that fits: ZeRO stage, offload, micro batch, checkpointing."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tgm_scale import config as configuration
from tgm_scale.assembly.checks import check
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.engine.plan import resolve_precision
from tgm_scale.planning import cards
from tgm_scale.planning.footprint import OFFLOADS, ROOM, footprint
from tgm_scale.runtime import memory
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.files import check_folder, replace_file
from tgm_scale.runtime.mistakes import refuse_damaged
from tgm_scale.runtime.outside.json_text import json_lines
from tgm_scale.runtime.processes import LocalRun
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import message, tree_without_secrets
from tgm_scale.tuning import trials
from tgm_scale.tuning.prospects import prospects
from tgm_scale.tuning.search import Search
from tgm_scale.tuning.steps import StepRun
from tgm_scale.tuning.trials import Candidate, Trial

NOTHING_FITS = 4  # the same command would find this again, so slurm/launch.sh does not restart it


class Tuner:
    def __init__(self, options: argparse.Namespace):
        self.options, self.folder = options, options.dir
        check_folder("--dir", options.dir)
        if not 0 <= options.warm < options.steps:
            raise ValueError(f"--warm {options.warm}: wanted fewer than the --steps {options.steps}")
        gpus, self.nodes = torch.cuda.device_count(), options.nodes or 1
        self.processes = max(gpus, 1) if options.processes is None else options.processes
        self.per_node = self.processes // self.nodes
        if options.nodes is not None and (options.nodes < 1 or self.processes % options.nodes):
            raise ValueError(f"--nodes {options.nodes}: wanted a divisor of --processes {self.processes}")
        if self.processes < 1 or 0 < gpus < self.per_node:
            raise ValueError(
                f"--processes {self.processes}: wanted at least 1, and no more on a node than the {gpus} GPUs here"
            )
        self.config = trials.load_dividing(options.config, options.overrides, self.processes)
        self.process = ProcessInfo(0, self.processes, 0, torch.device("cuda" if gpus else "cpu"))
        check(self.config, plan_pretraining(self.config, self.process))
        micros = _numbers("--micro-batches", options.micro_batches, range(1, self.config.train.global_batch_size + 1))
        trials.check_micros(self.config, self.processes, micros)
        offloads = options.offloads.split(",")
        if unknown := sorted(set(offloads) - set(OFFLOADS)):
            raise ValueError(f"--offloads {unknown[0]}: known are {', '.join(OFFLOADS)}")
        stages = _numbers("--stages", options.stages, range(4))
        self.first = trials.current_candidate(self.config, self.process)
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.search = Search(
            self.first,
            trials.ways_of(self.first, stages, offloads),
            sorted(set(micros)) or trials.micro_batches(self.config, self.processes),
            bool(micros),
            trials.variants(self.config, gpus > 0),
            self.outcomes,
        )
        self.candidates: list[Candidate] = []  # the candidates with an outcome, in order
        self.until = math.inf
        self.file = self.folder / "outcomes.jsonl"

    def run(self) -> int:
        self._claim()
        earlier = self._outcomes()
        began = time.monotonic()
        self.until = began + 60 * self.options.minutes
        with ProgressBars() as bars:
            task = bars.task("seconds", math.ceil(60 * self.options.minutes))
            for candidate in self.search:
                outcome = earlier.get(candidate.name, {"outcome": "failed"})
                if outcome["outcome"] == "failed":
                    found = self._skipped(candidate) or self._try(
                        candidate,
                        lambda step, name=candidate.name: task.to(
                            int(time.monotonic() - began), f"{len(self.candidates)} tried, {name}, {step}"
                        ),
                    )
                    if found is None:
                        print(
                            f"--minutes {self.options.minutes:g} are over: the same command goes on", file=sys.stderr
                        )
                        break
                    outcome = found
                    if outcome["outcome"] != "left out":  # decided anew at every start
                        with self.file.open("a", encoding="utf-8") as stream:
                            stream.write(json.dumps({"name": candidate.name} | outcome) + "\n")
                self.outcomes[candidate.name] = outcome
                self.candidates.append(candidate)
        return self._print_results()

    def _claim(self) -> None:
        """Create the folder, or recognise it. Raises ValueError where it holds trials of something else."""
        settings = {"config": tree_without_secrets(self.config.model_dump(mode="json")), "processes": self.processes}
        settings |= {"nodes": self.nodes}
        settings |= {"steps": self.options.steps, "warm": self.options.warm, "json": trials.json_of(self.config)}
        text = json.dumps(settings, indent=1)
        file = self.folder / "settings.json"
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            raise ValueError(f"--dir {self.folder}: holds trials of another configuration: choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(file, text)

    def _outcomes(self) -> dict[str, dict[str, Any]]:
        """Return the outcomes of earlier starts, by candidate."""
        rows = json_lines(self.file) if self.file.is_file() else []
        refuse_damaged(list[trials.Line], rows, self.file, "move it away, or name another --dir")
        return {row["name"]: row for row in rows}

    def _overrides(self, candidate: Candidate, file: Path) -> list[str]:
        return [*self.options.overrides, *candidate.overrides(file)]

    def _skipped(self, candidate: Candidate) -> dict[str, Any] | None:
        """Return an outcome without a trial, where a smaller micro batch ran out of memory or arithmetic rules it
        out."""
        for other in self.candidates:
            smaller = other.micro < candidate.micro and replace(other, micro=candidate.micro) == candidate
            if smaller and self.outcomes[other.name]["outcome"] in ("out of memory", "left out"):
                return {"outcome": "left out", "why": f"micro batch {other.micro} did not fit"}
        file = self._write_json(candidate)
        config = configuration.load(self.options.config, self._overrides(candidate, file))
        need = footprint(plan_pretraining(config, self.process), config.model.activation_checkpointing)
        device = None
        if self.process.device.type == "cuda":
            device = ROOM * torch.cuda.get_device_properties(0).total_memory
        free = memory.free_bytes()
        if device is None and (limit := self._limit()) is not None:
            free = min(free, self.per_node * limit)
        why = trials.obstacle(need, self.per_node, device, free)
        return {"outcome": "left out", "why": why} if why else None

    def _write_json(self, candidate: Candidate) -> Path:
        folder = self.folder / candidate.name
        shutil.rmtree(folder, ignore_errors=True)  # left by a start that was stopped
        folder.mkdir()
        file = folder / "deepspeed.json"
        replace_file(file, json.dumps(candidate.deepspeed(trials.json_of(self.config)), indent=2) + "\n")
        return file

    def _try(self, candidate: Candidate, report: Any) -> dict[str, Any] | None:
        """Return a trial's outcome; None where the minutes are over."""
        if time.monotonic() > self.until:
            return None
        folder, options = self.folder / candidate.name, self.options
        quiet = ["log.tensorboard=false", "log.wandb=null", "log.pictures_every=null", "knn.every=null"]
        own = [configuration.override("run.dir", folder / "run"), f"train.steps={options.steps}", *quiet]
        words = trials.words(options.config, [*self._overrides(candidate, folder / "deepspeed.json"), *own])
        run: trials.Run
        if options.nodes is None:
            command = [sys.executable, *words]
            run = LocalRun(command, self.processes, folder / "output.log", limit=self._limit())
        else:
            run = StepRun(words, self.folder / "steps", folder, self._limit())
        keep = options.keep_free * trials.GIB
        trial = Trial(run, folder, options.steps, options.warm, keep, options.patience, self.until)
        outcome = trial.outcome(report)
        shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
        return outcome

    def _limit(self) -> int | None:
        """Return the memory limit of each process, bytes."""
        return None if self.options.limit is None else int(self.options.limit * trials.GIB)

    def _print_results(self) -> int:
        outcomes = self.outcomes
        ran = [candidate for candidate in self.candidates if outcomes[candidate.name]["outcome"] == "ran"]
        reference = outcomes[ran[0].name]["losses"] if ran else []
        limit = trials.LOSS_TOLERANCE[resolve_precision(self.config.train.precision, self.process.device)]
        apart = {c.name: trials.loss_difference(outcomes[c.name]["losses"], reference) for c in ran}
        of_nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        given = " ".join([self.options.config, *self.options.overrides])
        print(message(f"{headline()}; {given}; {self.processes} processes{of_nodes}"))
        on_gpu = self.process.device.type == "cuda"
        memory = ["GB of a GPU"] * on_gpu + ["GB of host"]
        header = ["ZeRO", "offload", "micro batch", "checkpointing", "varied", "clips/s", *memory, "losses apart"]
        rows = [self._row(c, outcomes[c.name], apart.get(c.name, 0.0), limit, on_gpu) for c in self.candidates]
        print(table(header, rows))
        agreeing = [c for c in ran if apart[c.name] <= limit]
        if not agreeing:
            if outcomes:
                print("nothing fits: see output.log in the trials' folders", file=sys.stderr)
            return NOTHING_FITS
        best = max(agreeing, key=lambda c: outcomes[c.name]["clips_per_second"])
        self._write_best(best)
        gain = outcomes[best.name]["clips_per_second"] / outcomes[ran[0].name]["clips_per_second"]
        print(f"fastest that fits: {best.name}, {gain:.2f} times the speed of {ran[0].name}")
        config = configuration.load(self.options.config, self._overrides(best, self.folder / "best.json"))
        card = cards.of_device(torch.cuda.get_device_name()) if on_gpu else None
        for line in prospects(config, (self.nodes, self.per_node), card, outcomes[best.name]["clips_per_second"]):
            print(line)
        words = ["tgm-scale", "pretrain", "--config", self.options.config, *self.options.overrides]
        print(message(f"{shlex.join(words)} $(cat {shlex.quote(str(self.folder / 'best.overrides'))})"))
        return 0

    def _row(self, candidate: Candidate, outcome: dict, apart: float, limit: float, on_gpu: bool) -> list[str]:
        checkpointing = "yes" if candidate.checkpointing else "no"
        named = [str(candidate.stage), candidate.offload, str(candidate.micro), checkpointing]
        named.append(" ".join(candidate.varied))
        if outcome["outcome"] != "ran":
            return [*named, outcome["outcome"], *[""] * (1 + on_gpu), outcome["why"]]
        differ = f"{apart:.1e}" + ("" if apart <= limit else f", more than {limit:g}: not taken")
        device = [f"{outcome['device_GB']:.1f}"] if on_gpu else []
        return [*named, f"{outcome['clips_per_second']:.2f}", *device, f"{outcome['host_GB']:.2f}", differ]

    def _write_best(self, best: Candidate) -> None:
        file = self.folder / "best.json"
        replace_file(file, json.dumps(best.deepspeed(trials.json_of(self.config)), indent=2) + "\n")
        replace_file(self.folder / "best.overrides", "\n".join(best.overrides(file)) + "\n")


def _numbers(option: str, text: str | None, known: range) -> list[int]:
    """Return the numbers of a comma-separated list; empty for none."""
    words = text.split(",") if text else []
    for word in words:
        if not word.isdecimal() or int(word) not in known:
            raise ValueError(f"{option} {text}: found {word!r}, wanted numbers from {known[0]} to {known[-1]}")
    return [int(word) for word in words]
