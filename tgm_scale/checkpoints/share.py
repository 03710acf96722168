"""The parameters that each rank writes, their state as it is gathered, and a safetensors file written one tensor at a
time."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgm_scale.engine import state as engine_state
from tgm_scale.runtime.distributed import ProcessInfo


class RankShare:
    """This rank's share of the state: whole parameters, in shares of similar size.

    No rank holds the whole model: iteration gathers one parameter at a time and yields this rank's own on the CPU. It
    is collective: every rank iterates to the end."""

    def __init__(self, engine: Any, process: ProcessInfo):
        named = dict(engine_state.named_parameters(engine))
        owner = _owners({name: _size(p) for name, p in named.items()}, process.world_size)
        self._engine, self._own = engine, {name for name in named if owner[name] == process.rank}
        self.files = min(process.world_size, len(named))  # files of all ranks: ranks beyond have nothing to write
        self._parts = engine_state.parts_of(engine)
        self.bytes = sum(4 * len(self._parts) * _size(named[name]) for name in self._own)
        # under ZeRO-3 a parameter's own shape is empty
        self.shapes = {
            f"{name}.{part}": tuple(getattr(p, "ds_shape", p.shape))
            for name, p in named.items()
            if name in self._own
            for part in self._parts
        }

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, parts in engine_state.read(self._engine):
            if name in self._own:
                for part in self._parts:
                    yield f"{name}.{part}", parts[part].to("cpu", torch.float32).contiguous()


def _size(parameter: torch.nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # under ZeRO-3 numel() counts the partition only


def _owners(sizes: dict[str, int], world_size: int) -> dict[str, int]:
    """Return each parameter's rank: the largest first, to the rank with the least so far. Ranks with any come
    first."""
    loads = [(0, rank) for rank in range(world_size)]  # a heap
    owner = {}
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        load, owner[name] = loads[0]
        heapq.heapreplace(loads, (load + sizes[name], owner[name]))
    return owner


_ALIGNED = 8  # bytes: alignment of the data, as in the library


class TensorFile:
    """float32 tensors, appended in the order of `shapes`; a context manager. Raises OSError where writing fails. The
    library's own writer needs all tensors at once.

    Format: https://github.com/huggingface/safetensors, a length of 8 bytes, a JSON header, the data without gaps."""

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]):
        self._waiting = list(shapes)
        header, end = {}, 0
        for name, shape in shapes.items():
            begin, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNED)
        self._stream = path.open("wb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def append(self, name: str, tensor: Tensor) -> None:
        assert name == self._waiting.pop(0), "tensors come in the order of the header"
        self._stream.write(tensor.detach().to("cpu", torch.float32).contiguous().flatten().numpy().data)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        assert any(error) or not self._waiting, "every tensor of the header was written"
