"""Table of all DeepSpeed JSON keys: supported, not used (and what replaces them), or refused with the reason.

DeepSpeed silently accepts unknown keys at the top level, and many known ones would change what the run computes. So
the table is complete for DeepSpeed 0.19.8, and any other key is refused. `tests/training/test_engine_keys.py` walks
DeepSpeed's own classes, so that keys of a new version are noticed there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tgm_scale.runtime.mistakes import nearest

Node = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """Kind of value. `read` returns the value in DeepSpeed's form and raises ValueError or TypeError."""

    wanted: str
    read: Callable[[Any], Any]


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _number(value: Any, whole: bool = False) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise TypeError
    if whole and value != int(value):
        raise ValueError
    return int(value) if whole else value  # 5e8 is a float in JSON


def _one_of(*choices: Any) -> Kind:
    def read(value: Any) -> Any:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise ValueError
        return value

    return Kind(" or ".join(map(repr, choices)), read)


SWITCH = Kind("true or false", _switch)
WHOLE = Kind("a whole number from 0", lambda value: _number(value, whole=True))
NUMBER = Kind("a number from 0", _number)
DTYPE = _one_of("fp32", "bf16")


def _each(keys: str, value: Any) -> Node:
    return dict.fromkeys(keys.split(), value)


SUPPORTED: dict[str, Any] = {
    "train_batch_size": WHOLE,  # these four must agree with the run's own keys: engine/plan.py
    "train_micro_batch_size_per_gpu": WHOLE,
    "gradient_accumulation_steps": WHOLE,
    "gradient_clipping": NUMBER,
    "communication_data_type": DTYPE,
    "data_types": {"grad_accum_dtype": DTYPE},
    "bf16": {"enabled": SWITCH},
    "zero_optimization": {
        "stage": _one_of(0, 1, 2, 3),
        "offload_param": {"device": _one_of("none", "cpu", "nvme"), "pin_memory": SWITCH},
        "offload_optimizer": {"device": _one_of("none", "cpu", "nvme"), "pin_memory": SWITCH},
        **_each(
            "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions overlap_comm "
            "stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential ignore_unused_parameters "
            "round_robin_gradients memory_efficient_linear log_trace_cache_warnings enable_sanity_checks",
            SWITCH,
        ),
        **_each(
            "reduce_bucket_size allgather_bucket_size sub_group_size stage3_prefetch_bucket_size "
            "stage3_param_persistence_threshold stage3_model_persistence_threshold stage3_max_live_parameters "
            "stage3_max_reuse_distance stage3_module_granularity_threshold",
            WHOLE,
        ),
    },
}

# done by the run itself: the key has no effect, and the run prints a notice
NOT_USED = {
    "steps_per_print": "log.every says how often a line is printed",
    "wall_clock_breakdown": "metrics.jsonl has the seconds of each part of a step",
    "memory_breakdown": "metrics.jsonl has the peak of the memory",
    "dump_state": "`tgm-scale config` prints the configuration",
    "log_level": "DeepSpeed's log shows errors alone",
    "dataloader_drop_last": "the loader is the run's own, section data",
    "vocabulary_size": "it serves a warning of DeepSpeed's alone",
    "zero_allow_untested_optimizer": "it is always true: the optimizer is torch's AdamW or timm's Lion",
    "zero_force_ds_cpu_optimizer": "with offload_optimizer it is always DeepSpeed's Adam for CPUs",
}

_OPTIM, _PRECISION = "belongs to the run's own section optim", "belongs to the run's own key train.precision"
_CHECKPOINT = "belongs to the run's own section checkpoint, whose format is not DeepSpeed's"
_ORDER = "belongs to the run's own section data: which clips a step sees is a function of the step"
_LOG = "belongs to the run's own section log (metrics.jsonl, and log.tensorboard)"
_BATCH = "belongs to the run's own keys train.global_batch_size and train.micro_batch_size"
_ABSENT = "the model has no such parts"
_REMOVED = "is no longer in DeepSpeed"
_NVME = "serves NVMe alone, from which a run could not resume"
_RESTORE = "was never tried with this project's checkpoints"
_SCALING = "changes how gradients are averaged, on which the losses of this project count"

# key -> (reason, the value that means "off" and counts as an absent key)
UNSUPPORTED: dict[str, tuple[str, Any]] = {
    **_each("optimizer scheduler zero_optimization.save_muon_momentum_buffer_in_memory", (_OPTIM, None)),
    **_each(
        "amp torch_autocast data_types.param_dtype data_types.buffer_dtype data_types.keep_in_fp32_modules",
        (_PRECISION, None),
    ),
    **_each("elasticity", (_BATCH, None)),
    **_each(
        "checkpoint datastates_ckpt nebula zero_optimization.elastic_checkpoint "
        "zero_optimization.pipeline_loading_checkpoint "
        "zero_optimization.stage3_gather_16bit_weights_on_model_save "
        "zero_optimization.stage3_gather_fp16_weights_on_model_save",
        (_CHECKPOINT, None),
    ),
    **_each("curriculum_learning data_efficiency", (_ORDER, None)),
    **_each(
        "progressive_layer_drop compression_training quantize_training eigenvalue sparse_attention "
        "sparse_gradients graph_harvesting zero_optimization.legacy_stage1 "
        "zero_optimization.mics_hierarchical_params_gather zero_optimization.zeropp_loco_param",
        (_REMOVED, None),
    ),
    **_each(
        "tensor_parallel expert_parallel use_data_before_expert_parallelism pipeline zero_optimization.leaf_module",
        (_ABSENT, None),
    ),
    **_each("prescale_gradients", (_SCALING, None)),
    **_each(
        "disable_allgather zero_optimization.zenflow zero_optimization.parameter_alignment "
        "zero_optimization.zero_quantized_weights zero_optimization.zero_quantized_nontrainable_weights "
        "zero_optimization.zero_quantized_gradients zero_optimization.offload_optimizer.super_offload",
        (_RESTORE, None),
    ),
    **_each(
        "aio zero_optimization.offload_param.nvme_path zero_optimization.offload_optimizer.nvme_path "
        "zero_optimization.offload_optimizer.pipeline_read zero_optimization.offload_optimizer.pipeline_write "
        "zero_optimization.offload_optimizer.fast_init",
        (_NVME, None),
    ),
    **_each("timers tensorboard wandb csv_monitor comet", (_LOG, None)),
    "activation_checkpointing": ("belongs to the run's own key model.activation_checkpointing", None),
    "compile": ("belongs to the run's own key model.compile", None),
    "fp16": ("is not supported: no checkpoint has its loss scale (use train.precision=bf16 or fp32)", None),
    "bfloat16": ('is the old name of "bf16"', None),
    "managed_gradient_accumulation": (_BATCH, True),
    "random_ltd": ("tokens are dropped by section masking", None),
    "weight_quantization": ("serves inference alone", None),
    "hybrid_engine": ("serves text generation alone", None),
    "seq_parallel_communication_data_type": (_ABSENT, "fp32"),
    "gradient_allreduce_op": (_SCALING, "mean"),
    "gradient_predivide_factor": (_SCALING, 1),
    "disable_python_gc": ("was never tried with this project's loop", None),
    "autotuning": ("is done by `tgm-scale tune`", None),
    "flops_profiler": ("is counted by the run: metrics.jsonl, and `tgm-scale plan`", None),
    "comms_logger": ("would make each collective wait; torch's profiler shows them", None),
    "bf16.check_grad_overflow": ("would let Adam's moments take what is not finite", True),
    "bf16.immediate_grad_update": ("is what every run in bf16 does at stage 1", None),
    "bf16.bf16_master_weights_and_grads": ("would leave no fp32 weights for the checkpoint", None),
    "bf16.bf16_optimizer_states": ("would leave no fp32 moments for the checkpoint", None),
    "zero_optimization.compute_grad_norm": ("the run's gradient norm is read there", True),
    "zero_optimization.load_from_fp32_weights": (_CHECKPOINT, True),
    "zero_optimization.cpu_offload": ('is the old name of "offload_optimizer"', None),
    "zero_optimization.cpu_offload_param": ('is the old name of "offload_param"', None),
    "zero_optimization.cpu_offload_use_pin_memory": ('is the old name of "pin_memory"', None),
    "zero_optimization.zero_hpz_partition_size": (_RESTORE, 1),
    "zero_optimization.mics_shard_size": (_REMOVED, -1),
    "zero_optimization.override_module_apply": ("weights are made before the engine", True),
    "zero_optimization.offload_param.buffer_count": (_NVME, 5),
    "zero_optimization.offload_param.buffer_size": (_NVME, 100_000_000),
    "zero_optimization.offload_param.max_in_cpu": (_NVME, 1_000_000_000),
    "zero_optimization.offload_optimizer.buffer_count": (_NVME, 4),
    "zero_optimization.offload_optimizer.ratio": (_RESTORE, 1),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": ("serves super_offload alone", 0.8),
}


def supported_keys(given: Node, origin: str) -> Node:
    """Return the effective keys of a DeepSpeed JSON, with values in DeepSpeed's form; "auto" and null are left out.
    Raises ValueError that lists every key that is unknown, refused, or has an invalid value."""
    mistakes: list[str] = []
    accepted = _section(given, SUPPORTED, "", mistakes)
    if mistakes:
        raise ValueError("\n  ".join([f"{origin}:", *mistakes]) if len(mistakes) > 1 else f"{origin}: {mistakes[0]}")
    return accepted


def not_used(given: Node, origin: str) -> list[str]:
    """Return a line for each key without effect, because the run itself does the same."""
    return [
        f"{origin}: {key}={value} is not used: {NOT_USED[key]}"
        for key, value in given.items()
        if key in NOT_USED and not _is_off(value, None)
    ]


def _section(given: Node, known: dict[str, Any], place: str, mistakes: list[str]) -> Node:
    accepted: Node = {}
    for key, value in given.items():
        name = place + key
        kind = known.get(key)
        if kind is None:
            mistakes += _without_effect(name, value, known, place)
        elif value is None or value == "auto":
            continue
        elif isinstance(kind, Kind):
            try:
                accepted[key] = kind.read(value)
            except (TypeError, ValueError):
                mistakes.append(f"{name}={value!r}: wanted {kind.wanted}")
        elif isinstance(value, dict):
            accepted[key] = _section(value, kind, name + ".", mistakes)
        else:
            example = ', such as {"device": "cpu"}' if "device" in kind else ""
            mistakes.append(f"{name}={value!r}: wanted an object{example}")
    return accepted


def _without_effect(name: str, value: Any, known: dict[str, Any], place: str) -> list[str]:
    """Return the mistake in an unsupported key, if it is one."""
    if name in NOT_USED:
        return []
    if name in UNSUPPORTED:
        why, off = UNSUPPORTED[name]
        return [] if _is_off(value, off) else [f"'{name}' {why}: remove it from the JSON"]
    return [f"'{name}' is unknown; {nearest(name.removeprefix(place), sorted(known), place, _paths(SUPPORTED))}"]


def _is_off(value: Any, off: Any) -> bool:
    if isinstance(value, dict):
        return value.get("enabled") in (False, "auto")
    return value is None or value is False or value == "auto" or (off is not None and value == off)


def _paths(known: dict[str, Any], place: str = "") -> list[str]:
    found = []
    for key, kind in known.items():
        found += _paths(kind, f"{place}{key}.") if isinstance(kind, dict) else [place + key]
    return found
