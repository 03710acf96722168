"""YAML and torch files from outside: every kind of damage is one kind of error."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tgm_scale import config
from tgm_scale.runtime.outside.yaml_text import yaml_of
from tgm_scale.runtime.tensors import load_tensors, weights_of

LAUGHS = "a0: &a0 [x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 4)}]\n" for n in range(1, 30))
YAML = {
    "brackets": "[" * 100_000,
    "objects": "{a: " * 5000,
    "laughs": LAUGHS,
    "itself": "a: &a [*a]",
    "python": "a: !!python/object/apply:os.system [ls]",
    "no date": "a: 2024-13-45",
    "a long number": "a: " + "9" * 5000,
    "a list as a key": "? [1]\n: 2",
    "twice": "a: 1\na: 2",
    "an unknown name": "a: *b",
    "control": "a: \x00",
    "base 60": "a: 1:60:99:99:99:" + "99:" * 400 + "99.5",
}


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_is_none(kind: str, tmp_path: Path) -> None:
    if kind != "base 60":  # a number beyond a float, which its key refuses
        with pytest.raises(ValueError):
            yaml_of(YAML[kind])
    (tmp_path / "a.yaml").write_text(YAML[kind])
    with pytest.raises(ValueError, match=r"a\.yaml"):
        config.load(tmp_path / "a.yaml")


def test_a_whole_torch_file_is_read(tmp_path: Path) -> None:
    whole = {"model": {"w": torch.arange(6.0)}, "args": argparse.Namespace(a=1)}
    for zipped in (True, False):
        torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        found = weights_of(tmp_path / "a.pt", [argparse.Namespace])
        assert torch.equal(found["model"]["w"], whole["model"]["w"]) and found["args"].a == 1
        with pytest.raises(ValueError, match="nothing else is unpickled"):
            weights_of(tmp_path / "a.pt")


class Harmful:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_torch_files(zipped: bool, tmp_path: Path) -> None:
    """200 of each form: cut, or some bytes changed. Damage in a number is not seen: these formats have no digest."""
    file = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.arange(6.0)}}, file, _use_new_zipfile_serialization=zipped)
    whole, random = file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        data = bytearray(whole[: int(random.integers(len(whole)))] if random.random() < 0.3 else whole)
        for place in random.integers(0, max(len(data), 1), 4 * bool(data)).tolist():
            data[place] = int(random.integers(256))
        file.write_bytes(data)
        try:
            weights_of(file)
        except ValueError as error:
            refused += str(error).startswith(f"{file}: ") and len(str(error)) < 500
    assert refused > 60
    file.write_bytes(pickle.dumps(Harmful(tmp_path / "touched")))
    with pytest.raises(ValueError):
        weights_of(file)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("read", [weights_of, load_tensors])
def test_an_empty_file_is_said_to_be_empty(read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "step-00000050").touch()
    with pytest.raises(ValueError, match="step-00000050: an empty file; wanted weights: copy or write it again"):
        read(tmp_path / "step-00000050")


def test_a_file_that_is_not_there_is_the_storage_s_matter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        weights_of(tmp_path / "nowhere.pt")


def test_yaml_merges_and_keys_beside_them_win() -> None:
    text = "base: &b {frames: 16, size: 224}\ndata: {<<: *b, size: 112}\nboth: {<<: [*b, {flip: true}]}"
    tree = yaml_of(text)
    assert tree["data"] == {"frames": 16, "size": 112} and tree["both"] == {"frames": 16, "size": 224, "flip": True}
    assert yaml_of("a: &a {k: 1}\nb: &b {<<: *a, k: 2}\nc: {<<: *b, k: 3}")["c"] == {"k": 3}
    with pytest.raises(ValueError, match="size: given twice, in lines 1 and 1"):
        yaml_of("{size: 1, size: 2}")


def test_yaml_merges_without_end_are_bounded() -> None:
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: {n}" for n in range(10)) + "}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    with pytest.raises(ValueError, match="more than 100,000 values"):
        yaml_of("\n".join(lines))
