"""Which parameters each rank writes, and their state as it is gathered."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tgm_scale.engine import state as engine_state
from tgm_scale.runtime.distributed import ProcessInfo


class RankShare:
    """This rank's share of the state: whole parameters, distributed in shares of similar size.

    No rank holds the whole model: iteration gathers one parameter at a time and yields this rank's, on the CPU. It is
    collective: every rank iterates to the end."""

    def __init__(self, engine: Any, process: ProcessInfo):
        named = dict(engine_state.named_parameters(engine))
        owner = _owners({name: _size(p) for name, p in named.items()}, process.world_size)
        self._engine, self._own = engine, {name for name in named if owner[name] == process.rank}
        self.files = min(process.world_size, len(named))  # that all ranks write: the others have nothing
        self.bytes = sum(12 * _size(named[name]) for name in self._own)
        # under ZeRO-3 a parameter's own shape is that of nothing
        self.shapes = {
            f"{name}.{part}": tuple(getattr(p, "ds_shape", p.shape))
            for name, p in named.items()
            if name in self._own
            for part in engine_state.PARTS
        }

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, parts in engine_state.read(self._engine):
            if name in self._own:
                for part in engine_state.PARTS:
                    yield f"{name}.{part}", parts[part].to("cpu", torch.float32).contiguous()


def _size(parameter: torch.nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # under ZeRO-3 numel() is that of the partition


def _owners(sizes: dict[str, int], world_size: int) -> dict[str, int]:
    """Each parameter to the rank with the least so far, the largest first: those that get any are the first ranks."""
    loads = [(0, rank) for rank in range(world_size)]  # a heap
    owner = {}
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        load, owner[name] = loads[0]
        heapq.heapreplace(loads, (load + sizes[name], owner[name]))
    return owner
