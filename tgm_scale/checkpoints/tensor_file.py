"""A safetensors file that is written tensor by tensor: the library's own writer wants all tensors at once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

_ALIGNED = 8  # bytes: where the data begin, as the library has it


class TensorFile:
    """float32 tensors, appended in the order of `shapes`; a context manager. Raises OSError as writing does.

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
