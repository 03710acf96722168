"""Rows other than the pretraining runs: the card, the tests, preflight, several GPUs, data, masks, the demo."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

from gpu_checks import card as cards
from gpu_checks.bench import Bench, Failed, Found, Skipped, failure
from gpu_checks.pretraining import (
    GUIDED,
    TUBE,
    checked,
    compare,
    config_of,
    figures_of,
    overrides,
    pretrain,
    pretrain_command,
    shown,
)
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.rendezvous import SHARED_GPU

NOT_PINNED = "cannot be pinned"  # in a warning that data.shared_memory prints once
DATA_WAIT = 0.1  # share of a step: above it a run waits for the loader


def inputs(bench: Bench) -> Found:
    """Make shards of moving texture and a CLIP with random weights, for all rows."""
    bench.python("-m", "gpu_checks.inputs", "--device", bench.scale.device, "--folder", str(bench.inputs))
    size = sum(file.stat().st_size for file in bench.inputs.rglob("*") if file.is_file())
    return Found(f"{bench.scale.clips} clips, a CLIP of {bench.scale.towers} shape, {size / 1e6:.0f} MB")


def card(bench: Bench) -> Found:
    """Report the GPUs, and the rate of the first one's own matrix products."""
    figures = bench.measured("matrix")
    words, remedy = [f"bf16 products at {figures['matrix_tflops']:.4g} TFLOP/s"], ""
    if bench.scale.device == "cuda":
        first = bench.gpus[0]
        words = [f"{len(bench.gpus)} x {first['name']}, {first['memory_gb']} GB", *words]
        if lines := cards.busy(bench.gpus):
            remedy = "; ".join([*lines, "figures are of a shared card: free it, or choose by CUDA_VISIBLE_DEVICES"])
    return Found(", ".join(words), figures, remedy)


def tests(bench: Bench) -> Found:
    """Run the tests marked `gpu` on the device."""
    report = bench.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    wanted = "1" if bench.scale.device == "cuda" else "cpu"
    with bench.start(command, TGM_TEST_GPU=wanted, DS_ACCELERATOR=bench.scale.device) as process:
        code, output = process.wait(), process.output()
    if not report.is_file():
        raise failure(code, output)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    bad = [
        f"{case.get('classname', '').replace('.', '/')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - len(bad) - counts["skipped"]
    if bad:
        raise Failed(f"{len(bad)} of {counts['tests']} tests failed: {', '.join(bad)}"[:600], "see its log", counts)
    if code or not passed:
        raise Failed(f"pytest's exit code {code}, {passed} tests passed", "see its log", counts)
    return Found(f"{passed} passed, {counts['skipped']} skipped", counts | {"passed": passed})


def preflight(bench: Bench) -> Found:
    words = overrides(bench, bench.folder / "run", bench.scale.few, 1)
    output = bench.python("-m", "tgm_scale", "preflight", "--config", config_of("B"), *words)
    lines = [line for line in output.splitlines() if line.startswith("preflight:")]
    if not lines:
        raise Failed("preflight ended well and said nothing")
    return Found(lines[-1].removeprefix("preflight: "))


def several(bench: Bench) -> Found:
    """Compare all visible GPUs over NCCL by torchrun (on a CPU two processes over gloo) with one process at the same
    global batch: the same clips and masks, and losses as close as bf16 allows."""
    count = len(bench.gpus) if bench.scale.device == "cuda" else 2
    if count < 2:
        raise Skipped(f"{count} GPU is visible here: NCCL between GPUs was not tried")
    few, steps = bench.scale.few, bench.scale.steps
    own = (*GUIDED, f"train.global_batch_size={count * few}")
    run_dir = bench.folder / "torchrun"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    bench.python(*launcher, *pretrain_command("B", overrides(bench, run_dir, few, steps, *own)))
    rows = checked(run_dir, steps)
    alone = pretrain(bench, "alone", "B", few, steps, *own)
    base = figures_of(bench, "B", count * few, alone, *own)
    figures = figures_of(bench, "B", count * few, rows, *own, processes=count)
    compare(figures, base, "alone")
    ratio = figures["clips_per_second_without_data_wait"] / base["clips_per_second_without_data_wait"]
    figures["speed_ratio"] = round(ratio, 3)
    return Found(f"{count} processes, {ratio:.2f} times one's speed, clips and masks equal", figures)


def shared_gpu(bench: Bench) -> Found:
    """Check that two ranks given one GPU are refused before anything starts, instead of hanging."""
    if bench.scale.device != "cuda":
        raise Skipped("needs a GPU")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = overrides(bench, bench.folder / "run", bench.scale.few, 1, "faults.hang_seconds=20")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with bench.start([*launcher, *pretrain_command("B", words)], CUDA_VISIBLE_DEVICES=first) as process:
        code, output = process.wait(), process.output()
    return refused(code, output, bench.folder / "run")


def refused(code: int, output: str, run_dir: Path) -> Found:
    """Return the result of `shared_gpu`: the message of the rendezvous, and no step. Raises Failed otherwise."""
    if code == 0 or (run_dir / "metrics.jsonl").exists():
        raise Failed("two ranks trained on one GPU")
    told = [line for line in output.splitlines() if SHARED_GPU in line]
    if not told:
        raise Failed("ended by something else than the check of GPUs at the start", "see the end of its log")
    return Found(f"refused: {told[0].strip()[:160]}")


def data(bench: Bench) -> Found:
    """Measure clips from shards through worker processes into device memory, with the step that needs the most clips
    per second."""
    workers = max(bench.scale.workers, 1)
    micro = bench.earlier.get("vitb-tube", {}).get("micro_batch", bench.scale.micro)
    rows = pretrain(bench, "run", "B", micro, 2 * bench.scale.steps, *TUBE, f"data.workers={workers}")
    figures = figures_of(bench, "B", micro, rows, *TUBE) | {"workers": workers}
    wait, needed = figures["data_wait_share"], figures["clips_per_second_without_data_wait"]
    figures["pinned"] = NOT_PINNED not in bench.log.read_text(encoding="utf-8")
    remedy = "" if figures["pinned"] else "batches cannot be pinned: raise the limit of locked memory (ulimit -l)"
    if wait > DATA_WAIT and bench.scale.device == "cuda":
        got = figures["clips_per_second"]
        remedy = (
            f"{workers} workers bring {got:g} clips/s, the step would take {needed:g}: about "
            f"{round(workers * needed / max(got, 1e-9))} workers, data.repeated_augmentation, or smaller videos"
        )
    return Found(f"{workers} workers, {shown(figures)}", figures, remedy)


def masks(bench: Bench) -> Found:
    """Measure every recipe's maps and mask relative to a training step: tgm-scale benchmark masking."""
    file = bench.folder / "masking.json"
    clips, turns = (32, 3) if bench.scale.device == "cuda" else (2, 1)
    options = ["--config", config_of("B"), "--clips", str(clips), "--turns", str(turns)]
    options += ["--towers", bench.scale.towers, "--json", str(file)]
    bench.python("tools/benchmark.py", "masking", *options, *bench.scale.model)
    figures = json_object(file)
    shares = {row["what"]: row["share"] for row in figures["rows"]}
    wanted = ("text_guided", "relevance: bf16, own stream")
    return Found(", ".join(f"{name} {shares[name]} of a step" for name in wanted), {"shares": shares} | figures)


def demo(bench: Bench) -> Found:
    """Run the demo's short form: corpus, runs, figures, export and report."""
    folder = bench.folder / "demo"
    bench.python("tools/demo.py", "--dir", str(folder), *bench.scale.demo)
    if not (folder / "report.html").is_file():
        raise Failed(f"the demo ended well, but there is no {folder / 'report.html'}")
    summary = json_object(folder / "summary.json")
    return Found(f"report and summary in {summary['seconds']:.0f} s", {"seconds": summary["seconds"]})


def versus(bench: Bench) -> Found:
    """Compare our step's speed with transformers.VideoMAEForPreTraining's, eager and compiled, on the same work."""
    figures = bench.measured("versus")
    words = [f"{name}: {figures[f'{name}_ratio']:.2f} times its speed" for name in ("eager", "compiled")]
    words.append(f"MFU {figures['mfu_eager']:.0%} and {figures['mfu_compiled']:.0%} of its own matrix rate")
    return Found(", ".join(words), figures)
