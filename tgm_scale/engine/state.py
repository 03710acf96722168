"""Engine state by parameter name: the whole fp32 weight and optimizer moments (two for Adam, one for Lion), at any
ZeRO stage.

This makes a checkpoint independent of stage, world size and offload. DeepSpeed's public tensor-fragment calls do the
gathering and scattering; the rest is done here through its internals, which setup.cfg pins and
tests/training/test_engine_state.py checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq")


def parts_of(engine: Any) -> tuple[str, ...]:
    """Return the names of the tensors kept per parameter: "weight" and the optimizer's moments."""
    state = next(iter(adam(engine).state.values()))
    return ("weight", *(moment for moment in _MOMENTS if moment in state))


def named_parameters(engine: Any) -> list[tuple[str, nn.Parameter]]:
    return list(engine.module.named_parameters())


def read(engine: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (name, {part: fp32 tensor of the whole parameter}), one parameter at a time. Collective."""
    source, (_, *moments) = _plain_pairs(engine), parts_of(engine)
    for name, parameter in named_parameters(engine):
        if source is None:
            yield name, _read_fragments(parameter, moments)
        else:
            master = source[name][1]
            yield name, {"weight": master.data, **{part: adam(engine).state[master][part] for part in moments}}


def masters(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, fp32 weight of the whole parameter), one at a time, at stages 0 to 2. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    source = _plain_pairs(engine)
    for name, parameter in named_parameters(engine):
        if source is not None:
            yield name, source[name][1].detach()
        elif parameter.dtype == torch.float32:  # equals its master
            yield name, parameter.detach()
        else:
            yield name, safe_get_full_fp32_param(parameter).detach()


def write(engine: Any, step: int, updates: int, tensor_of: Callable[[str, str], Tensor]) -> None:
    """Set every weight and moment from `tensor_of(name, part)`, and the counts. `updates`, Adam's count for bias
    correction, is less than `step` where updates were refused. Collective."""
    source, (_, *moments) = _plain_pairs(engine), parts_of(engine)
    for name, parameter in named_parameters(engine):
        if source is None:
            _write_fragments(parameter, name, moments, tensor_of)
            continue
        working, master = source[name]
        master.data.copy_(tensor_of(name, "weight"))
        if working is not master:
            working.data.copy_(master.data)
        for part in moments:
            adam(engine).state[master][part].copy_(tensor_of(name, part))
    if source is None:
        _refresh_working_weights(engine)
    _set_updates(adam(engine), updates)
    engine.global_steps = step


def whole_weights(engine: Any, parameters: list[nn.Parameter]) -> AbstractContextManager[object]:
    """Return a context in which the working weights are whole on every process, for reading. Collective."""
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def adam(engine: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside DeepSpeed's wrapper, or the engine's optimizer where there is no wrapper."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _plain_pairs(engine: Any) -> dict[str, tuple[nn.Parameter, nn.Parameter]] | None:
    """Return name -> (working parameter, fp32 parameter that Adam updates) at stage 0; None under ZeRO."""
    if engine.zero_optimization_stage() > 0:
        return None
    names = {id(parameter): name for name, parameter in named_parameters(engine)}
    if not hasattr(engine.optimizer, "fp32_groups"):  # fp32: Adam updates the module's own parameters
        return {name: (parameter, parameter) for name, parameter in named_parameters(engine)}
    working = [p for group in engine.optimizer.fp16_groups for p in group]
    masters = [p for group in engine.optimizer.fp32_groups for p in group]
    return {names[id(w)]: (w, m) for w, m in zip(working, masters, strict=True)}


def _read_fragments(parameter: nn.Parameter, moments: list[str]) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    weight = safe_get_full_fp32_param(parameter)
    found = {part: safe_get_full_optimizer_state(parameter, part) for part in moments}
    return {"weight": weight.detach(), **{part: moment.detach() for part, moment in found.items()}}


def _write_fragments(parameter: Any, name: str, moments: list[str], tensor_of: Callable[[str, str], Tensor]) -> None:
    from deepspeed import utils

    device = parameter.device
    if not hasattr(parameter, "ds_tensor"):
        if parameter._hp_mapping is None:
            return  # belongs to another rank: not read here; _refresh_working_weights gathers it
        utils.safe_set_full_fp32_param(parameter, tensor_of(name, "weight").to(device))
        for part in moments:
            utils.safe_set_full_optimizer_state(parameter, tensor_of(name, part).to(device), part)
        return
    # ZeRO-3: the calls for whole tensors fail where the world size does not divide the tensor, so set this rank's
    # slice
    utils.safe_set_local_fp32_param(parameter, _own_slice(parameter, tensor_of(name, "weight")).to(device))
    for part in moments:
        utils.safe_set_local_optimizer_state(parameter, _own_slice(parameter, tensor_of(name, part)).to(device), part)


def _own_slice(parameter: Any, value: Tensor) -> Tensor:
    """Return this rank's slice of a whole tensor under ZeRO-3, padded with zeros at the end."""
    length = parameter.ds_tensor.numel()
    flat = value.flatten()[length * dist.get_rank() : length * (dist.get_rank() + 1)]
    return torch.nn.functional.pad(flat, (0, length - flat.numel()))


def allocate_moments(engine: Any) -> None:
    """Allocate the optimizer state as its first step would: a checkpoint may come earlier, and a refused first step
    allocates none. Called once, after the engine is built."""
    inner = adam(engine)
    if engine.zero_optimization_stage() == 3:
        masters = engine.optimizer.fp32_partitioned_groups_flat
    else:
        masters = [parameter for group in inner.param_groups for parameter in group["params"]]
    for master in masters:
        state = inner.state[master]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(master.data)
            if _is_adam(inner):
                state["step"] = _no_updates(inner, master)
                state["exp_avg_sq"] = torch.zeros_like(master.data)
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        # ZeRO-1/2 find a parameter's moments by links, which they would make after the first step of the first group
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _is_adam(inner: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer has Adam's second moment and count, torch's or DeepSpeed's; Lion has neither."""
    return "eps" in inner.defaults


def _no_updates(inner: torch.optim.Optimizer, master: Tensor) -> Tensor | int:
    """Return Adam's initial step count: fused kernels read it on the parameter's device, torch's others on the host,
    and DeepSpeed's Adam for CPUs counts in Python."""
    if not isinstance(inner, torch.optim.AdamW):
        return 0
    fused = inner.defaults["fused"] or inner.defaults["capturable"]
    return torch.zeros((), dtype=torch.float32, device=master.device if fused else "cpu")


def _refresh_working_weights(engine: Any) -> None:
    """Copy the fp32 weights to the working weights of the module, which setting the former leaves unchanged."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        optimizer.update_lp_params()
        return
    for index, master in enumerate(optimizer.fp32_partitioned_groups_flat):
        flat = optimizer.fp16_partitioned_groups_flat[index]
        if flat is not None and master.numel() and master.numel() == flat.numel():
            flat.data.copy_(master.data)
        partitions = optimizer.fp16_partitioned_groups[index]
        for partition, fresh in zip(partitions, optimizer.unflatten(flat, partitions), strict=True):
            partition.data = fresh.data
    if len(optimizer.persistent_parameters) > 0:
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def _set_updates(inner: torch.optim.Optimizer, updates: int) -> None:
    for state in inner.state.values():
        if "step" in state:
            # one tensor each, on its own device: a shared one would be incremented once per group
            count = state["step"]
            state["step"] = torch.full_like(count, float(updates)) if torch.is_tensor(count) else updates
    for group in inner.param_groups:
        if "step" in group:
            group["step"] = updates
