"""Rows that kill and resume a run: in bf16 within its tolerance, in deterministic fp32 to the last bit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_checks.bench import Bench, Failed, Found, Process, Skipped, failure
from gpu_checks.pretraining import GUIDED, checked, overrides, pretrain_command
from tgm_scale.runs import run_folder
from tgm_scale.runs.compare import compare
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.tuning.trials import LOSS_TOLERANCE, loss_difference

STEPS, EVERY = 8, 3  # the run is killed after its first checkpoint and before its end
# cuBLAS is deterministic with its own workspace (torch.use_deterministic_algorithms)
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONHASHSEED": "0"}
NO_SUCH_KERNEL = "does not have a deterministic implementation"


def bf16(bench: Bench) -> Found:
    """Kill ViT-B as configured after a checkpoint, and resume it with the same command."""
    once, again = _pair(bench, ["-m", "tgm_scale"], bench.scale.few, GUIDED, {})
    losses = [[row["loss"] for row in checked(run, STEPS)] for run in (once, again)]
    clips = [[row["data_digest"] for row in checked(run, STEPS)] for run in (once, again)]
    figures: dict[str, Any] = {"losses_apart": loss_difference(*losses), "undisturbed": losses[0], "killed": losses[1]}
    figures["starts"] = [start["step"] for start in run_folder.starts(again)]
    if clips[0] != clips[1]:
        raise Failed("other clips or masks after the restart", "tgm-scale compare of the two runs", figures)
    if figures["losses_apart"] > LOSS_TOLERANCE["bf16"]:
        raise Failed(
            f"losses {figures['losses_apart']:.1e} apart after the restart, wanted {LOSS_TOLERANCE['bf16']:g}",
            "",
            figures,
        )
    return Found(
        f"went on from step {figures['starts'][-1]}, losses {figures['losses_apart']:.1e} apart, clips equal", figures
    )


def exact(bench: Bench) -> Found:
    """Check a tiny model in fp32 with deterministic kernels, at each ZeRO stage that allows it: equal to the last
    bit."""
    reports = at_once(bench, _at_stage, bench.scale.exact_stages)  # start-up takes longer than the work
    figures = {f"stage_{stage}": report for stage, report in zip(bench.scale.exact_stages, reports)}
    return Found(f"equal to the last bit at ZeRO {', '.join(map(str, bench.scale.exact_stages))}", figures)


def at_once(bench: Bench, check: Callable[[Bench, int], str], stages: Sequence[int]) -> list[str]:
    """Return the results of `check` for each stage, run in parallel. Once all have ended, raises what one raised,
    failures before skips. On an interrupt their processes are stopped."""
    with ThreadPoolExecutor(len(stages)) as threads:
        try:
            running = [threads.submit(check, bench, stage) for stage in stages]
            errors = [error for one in running if (error := one.exception())]
        except BaseException:
            bench.stopped.set()
            raise
    for error in sorted(errors, key=lambda error: isinstance(error, Skipped)):
        raise error
    return [one.result() for one in running]


def _at_stage(bench: Bench, stage: int) -> str:
    """Return the last line of `tgm-scale compare` on the two runs of one stage. Raises Failed where they are not
    equal."""
    own_log = replace(bench, log=bench.log.with_name(f"{bench.log.stem}-zero{stage}.log"))
    own_log.log.unlink(missing_ok=True)
    file = bench.folder / f"zero{stage}.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}), encoding="utf-8")
    own = ["model.size=tiny", "data.frames=8", "data.stride=2", "data.size=64", "data.workers=0"]
    own += [*GUIDED, "train.precision=fp32", f"deepspeed.config={file}"]
    try:
        runs = _pair(own_log, ["-m", "gpu_checks.deterministic"], 8, own, DETERMINISTIC, f"zero{stage}-")
    except Failed as failed:
        if NO_SUCH_KERNEL in str(failed):
            raise Skipped(f"torch has no deterministic kernel here for all of it: {failed}") from None
        raise
    report, equal = compare(*map(str, runs))
    last = report.splitlines()[-1]
    if not equal:
        raise Failed(f"ZeRO-{stage}: not equal after the restart: {last}", "", {f"stage_{stage}": last})
    return last


def _pair(
    bench: Bench, script: list[str], micro: int, own: Sequence[str], variables: dict[str, str], name: str = ""
) -> tuple[Path, Path]:
    """Make an undisturbed run, and one killed after its first checkpoint and resumed; return their folders."""
    once, again = bench.folder / f"{name}undisturbed", bench.folder / f"{name}killed"

    def command(run_dir: Path) -> list[str]:
        words = overrides(bench, run_dir, micro, STEPS, f"checkpoint.every={EVERY}", *own)
        return [sys.executable, *script, *pretrain_command("B", words)[2:]]

    with ExitStack() as processes:
        undisturbed = processes.enter_context(bench.start(command(once), **variables))
        with bench.start(command(again), **variables) as killed:
            _kill_after_checkpoint(killed, again)
        bench.note("killed by SIGKILL; the same command again")
        second = processes.enter_context(bench.start(command(again), **variables))
        for process in (second, undisturbed):
            if code := process.wait():
                raise failure(code, process.output())
    return once, again


def _kill_after_checkpoint(process: Process, run_dir: Path) -> None:
    """Wait for the first whole checkpoint and a step after it, and leave the kill to the caller."""
    while process.code is None:
        whole = any((run_dir / "checkpoints").glob("step-*/manifest.json"))
        rows = read_metrics(run_dir) if (run_dir / "metrics.jsonl").is_file() else []
        if whole and rows and rows[-1]["step"] > EVERY:
            break
        process.tick()
    if process.code:
        raise failure(process.code, process.output())
    if process.code == 0:
        raise Failed("the run was done before it could be killed")
