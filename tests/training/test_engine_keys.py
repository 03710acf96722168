"""Each key of a DeepSpeed JSON is supported, said to be unused, or refused; DeepSpeed's own classes are walked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
from launch import ROOT, answers, run

from tgm_scale.engine.keys import (
    DTYPE,
    NOT_USED,
    NUMBER,
    SUPPORTED,
    SWITCH,
    UNSUPPORTED,
    WHOLE,
    not_used,
    supported_keys,
)
from tgm_scale.engine.plan import not_used as not_used_in

WORKER = str(Path(__file__).with_name("step_worker.py"))
NO_DEEPSPEED_KEY = {"random_ltd"}  # nested in data_efficiency there; people write it at the top


def known_paths(known: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for key, kind in known.items():
        if isinstance(kind, dict):
            yield place + key, None
            yield from known_paths(kind, f"{place}{key}.")
        else:
            yield place + key, kind


OURS = dict(known_paths(SUPPORTED))


class Recorder(dict):
    """A configuration that notes which keys DeepSpeed asks for."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self  # `key in config.keys()` asks, too

    def __copy__(self) -> Recorder:
        return self


def sections() -> dict[str, type]:
    """DeepSpeed's class of each section of the JSON that the run supports, in part at least."""
    from deepspeed.runtime import precision_config
    from deepspeed.runtime.zero import config, offload_config

    return {
        "bf16": precision_config.DeepSpeedBF16Config,
        "zero_optimization": config.DeepSpeedZeroConfig,
        "zero_optimization.offload_param": offload_config.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
    }


def fields() -> dict[str, Any]:
    """Each key of those sections, by the name that DeepSpeed's documents give it."""
    return {
        f"{section}.{field.alias or name}": field
        for section, kind in sections().items()
        for name, field in kind.model_fields.items()
    }


def test_every_key_that_deepspeed_reads_has_its_row() -> None:
    from deepspeed.runtime import constants
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, _REMOVED_ZERO_CONFIG_KEYS, DeepSpeedConfig

    recorder = Recorder({"train_batch_size": 4})
    DeepSpeedConfig(recorder)
    assert len(recorder.asked) > 40, "the recorder sees what is read"
    data_types = {"GRAD_ACCUM_DTYPE", "PARAM_DTYPE", "BUFFER_DTYPE", "KEEP_IN_FP32_MODULES"}
    there = (
        recorder.asked
        | set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)
        | {f"zero_optimization.{key}" for key in _REMOVED_ZERO_CONFIG_KEYS}
        | {f"data_types.{getattr(constants, name)}" for name in data_types}
        | set(fields())
    )
    here = OURS.keys() | NOT_USED.keys() | UNSUPPORTED.keys()
    assert there - here == set(), "DeepSpeed has keys that engine_keys.py does not decide on"
    assert here - there == NO_DEEPSPEED_KEY, "engine_keys.py has rows that DeepSpeed has no key for"
    assert len(OURS) + len(NOT_USED) + len(UNSUPPORTED) == len(here), "a key has one row"


def test_kinds_and_values_that_mean_off_are_those_of_deepspeeds_fields() -> None:
    kinds = {bool: SWITCH, int: WHOLE, float: NUMBER}
    for path, field in fields().items():
        union = get_args(field.annotation) if get_origin(field.annotation) is Union else (field.annotation,)
        plain = [part for part in union if part is not type(None)]
        if path in OURS and OURS[path] is not None:
            [kind] = plain
            if issubclass(kind, Enum):
                for member in kind:
                    assert OURS[path].read(member.value) == member.value
            else:
                assert OURS[path] is kinds[kind], path
        elif path in UNSUPPORTED and UNSUPPORTED[path][1] is not None:
            assert UNSUPPORTED[path][1] == field.default, path
        elif path in UNSUPPORTED and field.default_factory is None:
            assert field.default in (None, False) or "cpu_offload" in path, path


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, ["'torch_autocast'", "train.precision"]),
        ({"zero_optimisation": {"stage": 2}}, ["'zero_optimisation' is unknown", "did you mean zero_optimization?"]),
        ({"gradient_cliping": 1.0}, ["did you mean gradient_clipping?"]),
        ({"stage": 2}, ["'stage' is unknown", "did you mean zero_optimization.stage?"]),
        ({"zero_optimization": {"stage": "2"}}, ["zero_optimization.stage='2': wanted 0 or 1 or 2 or 3"]),
        ({"zero_optimization": {"stage": True}}, ["zero_optimization.stage=True: wanted"]),
        ({"zero_optimization": {"stage": 4}}, ["zero_optimization.stage=4: wanted"]),
        ({"zero_optimization": 3}, ["zero_optimization=3: wanted an object"]),
        ({"zero_optimization": {"overlap_comms": True}}, ["did you mean zero_optimization.overlap_comm?"]),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, ["offload_optimizer.device?"]),
        ({"zero_optimization": {"offload_param": {"device": "gpu"}}}, ["'none' or 'cpu' or 'nvme'"]),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, ["reduce_bucket_size=-1: wanted a whole number"]),
        ({"zero_optimization": {"reduce_bucket_size": 1.5}}, ["reduce_bucket_size=1.5"]),
        ({"zero_optimization": {"reduce_bucket_size": float("inf")}}, ["reduce_bucket_size=inf"]),
        ({"zero_optimization": {"contiguous_gradients": "yes"}}, ["'yes': wanted true or false"]),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, ["never tried with this project's checkpoints"]),
        ({"zero_optimization": {"mics_shard_size": 8}}, ["no longer in DeepSpeed"]),
        ({"progressive_layer_drop": {"enabled": True, "theta": 0.5}}, ["no longer in DeepSpeed"]),
        ({"compression_training": {"weight_quantization": {}}}, ["no longer in DeepSpeed"]),
        ({"curriculum_learning": {"enabled": True}}, ["section data"]),
        ({"data_efficiency": {"enabled": True}}, ["section data"]),
        ({"random_ltd": {"enabled": True}}, ["section masking"]),
        ({"tensor_parallel": {"autotp_size": 4}}, ["no such parts"]),
        ({"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupLR"}}, ["'optimizer'", "'scheduler'"]),
        ({"amp": {"enabled": True}}, ["train.precision"]),
        ({"flops_profiler": {"enabled": True}}, ["`tgm-scale plan`"]),
        ({"wandb": {"enabled": True}}, ["section log"]),
        ({"communication_data_type": "float32"}, ["wanted 'fp32' or 'bf16'"]),
        ({"communication_data_type": "fp16"}, ["wanted 'fp32' or 'bf16'"]),
        ({"fp16": {"enabled": True}}, ["'fp16' is not supported", "train.precision=bf16 or fp32"]),
        ({"data_types": {"param_dtype": "bf16"}}, ["train.precision"]),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, ["no fp32 weights"]),
        ({"train_batch_size": "64"}, ["train_batch_size='64'"]),
        ({"": 1, "a.b": 2}, ["'' is unknown", "'a.b' is unknown"]),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_named_with_the_file(given: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        supported_keys(given, "ds.json")
    for word in ["ds.json:", *words]:
        assert word in str(caught.value)


def test_what_is_off_auto_or_null_is_as_if_it_were_not_there() -> None:
    off = {"amp": {"enabled": "auto"}, "flops_profiler": {"enabled": False}, "sparse_gradients": False}
    kept = supported_keys(
        {**off, "communication_data_type": "auto", "bf16": None, "gradient_predivide_factor": 1.0}, "x"
    )
    assert kept == {}
    zero = {"reduce_bucket_size": 5e8, "zero_hpz_partition_size": 1, "overlap_comm": None}
    assert supported_keys({"zero_optimization": zero}, "x") == {
        "zero_optimization": {"reduce_bucket_size": 500_000_000}
    }


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    assert supported_keys({"steps_per_print": 2000, "wall_clock_breakdown": False}, "x") == {}
    assert not_used({"steps_per_print": 2000, "wall_clock_breakdown": False}, "x") == [
        "x: steps_per_print=2000 is not used: log.every says how often a line is printed"
    ]
    file = tmp_path / "ds.json"
    file.write_text('{"dump_state": true}')
    assert not_used_in(None) == [] and "tgm-scale config" in not_used_in(str(file))[0]


@pytest.mark.parametrize(
    ("text", "word"),
    [('{"bf16": {}, "bf16": {}}', "given twice"), ("[" * 5000, "not valid JSON"), ("[]", "wanted an object")],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=word) as caught:
        not_used_in(str(file))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("command", ["pretrain", "preflight"])
def test_a_command_ends_with_code_2_before_anything_is_made(tmp_path: Path, command: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimisation": {"stage": 2}}')
    given = [f"deepspeed.config={file}", f"run.dir={tmp_path}/run", f"data.shards={tmp_path}/shards"]
    given.append("data.synthetic.clips=64")
    ended = run(1, ["-m", "tgm_scale", command, "--config", str(ROOT / "configs/debug.yaml"), *given], code=2)
    assert f"{file}: 'zero_optimisation' is unknown; did you mean zero_optimization?" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr and not (tmp_path / "shards").exists()


OTHERS = {
    "contiguous_gradients": False,
    "reduce_scatter": False,
    "use_multi_rank_bucket_allreduce": False,
    "allgather_partitions": False,
    "overlap_comm": False,
    "ignore_unused_parameters": False,
    "round_robin_gradients": True,
    "memory_efficient_linear": False,
    "log_trace_cache_warnings": True,
    "enable_sanity_checks": True,
    "reduce_bucket_size": 3000,
    "allgather_bucket_size": 3000,
    "sub_group_size": 10000,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
    "stage3_model_persistence_threshold": 0,
    "stage3_max_live_parameters": 3000,
    "stage3_max_reuse_distance": 0,
    "stage3_module_granularity_threshold": 100,
    "stage3_use_all_reduce_for_fetch_params": True,
    "stage3_allgather_sequential": True,
}


def test_the_losses_are_the_same_with_every_supported_key_changed(tmp_path: Path) -> None:
    """At each stage on two processes, and over a restart."""
    untried = {"stage", "offload_param", "offload_optimizer"}  # of test_matrix.py
    assert OTHERS.keys() == SUPPORTED["zero_optimization"].keys() - untried
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": OTHERS, "communication_data_type": "fp32"}))
    common = {"model": "less", "precision": "fp32", "steps": 4, "micro": 2}
    cases = {"plain": {**common, "stage": 0}}
    for stage in (1, 2, 3):
        changed = {**common, "stage": stage, "json": str(file)}
        cases[f"{stage}"] = {**changed, "save_at": 2, "save": str(tmp_path / f"{stage}")}
        cases[f"{stage}, again"] = {**changed, "load": str(tmp_path / f"{stage}")}
    results = answers(WORKER, tmp_path, 2, cases)
    for stage in ("1", "2", "3"):
        for row, there in zip(results[stage]["curve"], results["plain"]["curve"], strict=True):
            assert row == pytest.approx(there, rel=1e-5, abs=1e-5), stage
        assert results[f"{stage}, again"]["curve"] == results[stage]["curve"][2:]


def test_the_kinds_read_what_they_say() -> None:
    assert WHOLE.read(2e8) == 200_000_000 and isinstance(WHOLE.read(2e8), int)
    assert DTYPE.read("bf16") == "bf16" and NUMBER.read(0.5) == 0.5
