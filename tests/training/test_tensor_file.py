"""A file written tensor by tensor is what the library writes and reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tgm_scale.checkpoints.share import TensorFile

TENSORS = {
    "b.weight": torch.randn(3, 5).T,
    "a": torch.tensor(2.5),
    "c": torch.zeros(0, 4),
    "d": torch.randn(7).bfloat16(),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def test_the_library_reads_what_was_appended(tmp_path: Path) -> None:
    with TensorFile(tmp_path / "x.safetensors", SHAPES) as file:
        for name, tensor in TENSORS.items():
            file.append(name, tensor)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(
        torch.equal(found[name], tensor.float()) and found[name].shape == tensor.shape
        for name, tensor in TENSORS.items()
    )


def test_a_disk_that_takes_no_more_is_an_oserror() -> None:
    with pytest.raises(OSError, match="No space left"), TensorFile(Path("/dev/full"), SHAPES) as file:
        for name, tensor in TENSORS.items():
            file.append(name, tensor)
