"""Rows that are real pretraining runs: ViT-B and L, attention kernels, compilation, checkpointing, ZeRO, offload."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gpu_checks.bench import Bench, Failed, Found, OutOfMemory, Skipped, failure
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.tuning.trials import LOSS_TOLERANCE, loss_difference

if TYPE_CHECKING:
    from tgm_scale.planning.cost import Cost

PROMISED_GB = 79  # a card of the size in configs/pretrain_vit*.yaml (80 GB) holds their micro batch
GUIDED = ("masking.recipe=text_guided", "masking.mask_ratio=0.6")
TUBE = ("masking.recipe=tube", "masking.mask_ratio=0.9", "objective.contrastive_weight=0")


def config_of(size: str) -> str:
    return f"configs/pretrain_vit{size.lower()}.yaml"


def overrides(bench: Bench, run_dir: Path, micro: int, steps: int, *own: str) -> list[str]:
    """Return the overrides of every run here: one micro step of `micro` clips per step, no TensorBoard."""
    return [
        *bench.scale.model,
        f"run.dir={run_dir}",
        f"data.shards={bench.inputs / 'shards'}",
        f"guidance.towers={bench.inputs / 'towers'}",
        f"data.workers={bench.scale.workers}",
        f"train.steps={steps}",
        f"train.global_batch_size={micro}",
        f"train.micro_batch_size={micro}",
        "log.tensorboard=false",
        "model.attention=sdpa",
        *own,
    ]


def pretrain_command(size: str, words: Sequence[str]) -> list[str]:
    return ["-m", "tgm_scale", "pretrain", "--config", config_of(size), *words]


def pretrain(bench: Bench, name: str, size: str, micro: int, steps: int, *own: str) -> list[dict[str, Any]]:
    """Return the metrics of one run in the row's folder. Its checkpoint is removed after writing: ViT-L's are 4 GB."""
    run_dir = bench.folder / name
    bench.python(*pretrain_command(size, overrides(bench, run_dir, micro, steps, *own)))
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return checked(run_dir, steps)


def checked(run_dir: Path, steps: int) -> list[dict[str, Any]]:
    """Return a run's metrics. Raises Failed where a step is missing or a loss is not a number."""
    rows = read_metrics(run_dir)
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        raise Failed(f"{len(rows)} steps in metrics.jsonl, wanted {steps}")
    wrong = [row["step"] for row in rows if row["loss"] is None or not math.isfinite(row["loss"])]
    if wrong or any(row["update_refused"] for row in rows):
        raise Failed(f"losses that are no numbers at steps {wrong}, or a refused update")
    return rows


def largest(bench: Bench, size: str, steps: int, *own: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the largest micro batch that fits, by halving the configuration's, and the metrics with it."""
    micro = bench.scale.micro
    while True:
        try:
            return micro, pretrain(bench, f"run-{micro}", size, micro, steps, *own)
        except OutOfMemory as short:
            if micro <= 2:  # clips of one sample share a micro batch: data.repeated_augmentation=2
                raise Failed(
                    f"does not fit even with {micro} clips a pass: {short}",
                    "deepspeed.config=configs/deepspeed/zero3_offload.json or model.activation_checkpointing=true",
                ) from None
            micro //= 2
            bench.note(f"{2 * micro} clips a pass do not fit; trying {micro}")


def figures_of(
    bench: Bench, size: str, micro: int, rows: list[dict[str, Any]], *own: str, processes: int = 1
) -> dict[str, Any]:
    """Return speed, shares, memory per rank and MFU of a run of `micro` clips per step: medians after its first
    steps."""
    kept = rows[bench.scale.warm :]
    step = median(row["step_seconds"] for row in kept)
    working = median(row["step_seconds"] - row["data_seconds"] for row in kept)
    found = {
        "micro_batch": micro // processes,
        "processes": processes,
        "step_ms": round(1000 * step, 2),
        "clips_per_second": round(micro / step, 2),
        "clips_per_second_without_data_wait": round(micro / working, 2),
        "data_wait_share": round(median(row["data_seconds"] / row["step_seconds"] for row in kept), 4),
        "guidance_share": round(median(row["guidance_seconds"] / row["step_seconds"] for row in kept), 4),
        "losses": [row["loss"] for row in rows],
        "data_digests": [row["data_digest"] for row in rows],
    }
    cost = planned(bench, size, micro, *own, processes=processes)
    found |= memory(rows, cost)
    rate = bench.earlier.get("card", {}).get("matrix_tflops")
    if rate:
        found["mfu_of_own_matrix_rate"] = round(6 * cost.forward * micro / working / (processes * rate * 1e12), 4)
    return found


def planned(bench: Bench, size: str, micro: int, *own: str, processes: int = 1) -> Cost:
    """Return the planner's costs of a run."""
    from tgm_scale import config as configuration
    from tgm_scale.planning.cost import CostQuery, cost_of

    config = configuration.load(config_of(size), overrides(bench, bench.folder / "none", micro, 1, *own))
    return cost_of(CostQuery.pretraining(config), processes)


def memory(rows: list[dict[str, Any]], cost: Cost) -> dict[str, float]:
    """Return the peak GB of a GPU, measured and planned; empty on a CPU."""
    from tgm_scale.planning.cost import device_bytes

    if "device_memory_gb" not in rows[-1]:
        return {}
    most = device_bytes(cost, cost.passes == 4)  # the fourth pass is due to checkpointing
    return {"peak_memory_gb": round(rows[-1]["device_memory_gb"], 2), "planned_memory_gb": round(most / 1e9, 2)}


def memory_shown(figures: dict[str, Any]) -> list[str]:
    if "peak_memory_gb" not in figures:
        return []
    return [f"{figures['peak_memory_gb']:.1f} GB (planned {figures['planned_memory_gb']:.1f})"]


def shown(figures: dict[str, Any]) -> str:
    words = [f"{figures['clips_per_second_without_data_wait']:g} clips/s, micro batch {figures['micro_batch']}"]
    words += memory_shown(figures)
    if "mfu_of_own_matrix_rate" in figures:
        words.append(f"MFU {figures['mfu_of_own_matrix_rate']:.0%}")
    words.append(f"guidance {figures['guidance_share']:.0%}, data wait {figures['data_wait_share']:.0%}")
    return ", ".join(words)


def speed(bench: Bench, size: str, *own: str) -> Found:
    """Measure a run as configured, at the micro batch that fits."""
    micro, rows = largest(bench, size, bench.scale.steps, *own)
    figures = figures_of(bench, size, micro, rows, *own)
    remedy = ""
    if micro < bench.scale.micro:
        remedy = f"train.micro_batch_size={micro} fits, {bench.scale.micro} does not"
        if bench.gpus and bench.gpus[0]["memory_gb"] >= PROMISED_GB:
            raise Failed(f"{config_of(size)} does not fit a card of 80 GB", remedy, figures)
    return Found(shown(figures), figures, remedy)


def variant(bench: Bench, baseline: str, *own: str, same_masks: bool = True) -> Found:
    """Compare the guided ViT-B run under a change that must not affect its curve with the row `baseline`: losses
    within the tolerance of bf16, and equal clips and masks."""
    base = bench.earlier.get(baseline, {})
    micro = base.get("micro_batch", bench.scale.micro)
    rows = pretrain(bench, "run", "B", micro, bench.scale.steps, *GUIDED, *own)
    figures = figures_of(bench, "B", micro, rows, *GUIDED, *own)
    if not base:
        return Found(f"{shown(figures)}; not compared: row {baseline} has no figures", figures)
    compare(figures, base, baseline, same_masks)
    ratio = figures["clips_per_second_without_data_wait"] / base["clips_per_second_without_data_wait"]
    figures["speed_ratio"] = round(ratio, 3)
    return Found(f"{ratio:.2f} times the speed of {baseline}; {shown(figures)}", figures)


def compare(figures: dict[str, Any], base: dict[str, Any], baseline: str, same_masks: bool = True) -> None:
    """Raise Failed where two runs on the same clips differ by more than bf16 allows."""
    figures["losses_apart"] = loss_difference(figures["losses"], base["losses"])
    if same_masks and figures["data_digests"] != base["data_digests"]:
        raise Failed(f"other clips or masks than row {baseline}", "tgm-scale compare of the two runs", figures)
    if figures["losses_apart"] > LOSS_TOLERANCE["bf16"]:
        raise Failed(
            f"losses {figures['losses_apart']:.1e} apart from row {baseline}, wanted {LOSS_TOLERANCE['bf16']:g}",
            "",
            figures,
        )


def flash(bench: Bench) -> Found:
    """Compare flash-attn's kernels with torch's, where they import: an installed package is no proof."""
    with bench.start([sys.executable, "-c", "import flash_attn; print(flash_attn.__version__)"]) as process:
        if process.wait():
            raise Skipped(f"flash-attn does not import here: {failure(1, process.output())}")
    return variant(bench, "vitb-guided", "model.attention=flash")


def zero(bench: Bench, stage: int, offload: str = "none") -> Found:
    """Compare a ViT-B run with two micro steps per step at one ZeRO stage with the same at stage 0."""
    device = {"device": "cpu", "pin_memory": True}
    sections = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}[
        offload
    ]
    file = bench.folder / "deepspeed.json"
    file.write_text(
        json.dumps({"zero_optimization": {"stage": stage, **dict.fromkeys(sections, device)}}), encoding="utf-8"
    )
    few, steps = bench.scale.few, max(bench.scale.steps // 2, 3)
    own = (*GUIDED, f"deepspeed.config={file}", f"train.global_batch_size={2 * few}")
    rows = pretrain(bench, "run", "B", few, steps, *own)
    figures: dict[str, Any] = {
        "losses": [row["loss"] for row in rows],
        "data_digests": [row["data_digest"] for row in rows],
    }
    figures["step_ms"] = round(1000 * median(row["step_seconds"] for row in rows[1:]), 2)
    words = [f"{figures['step_ms']:.0f} ms a step of 2 x {few} clips"]
    figures |= memory(rows, planned(bench, "B", few, *own))
    words += memory_shown(figures)
    base = bench.earlier.get("zero0")
    if base is None and (stage or sections):
        words.append("not compared: row zero0 has no figures")
    elif base is not None:
        compare(figures, base, "zero0")
        words.append(f"losses {figures['losses_apart']:.1e} apart from stage 0")
    return Found(", ".join(words), figures)
