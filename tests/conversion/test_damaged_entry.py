"""What a file says of its own model, where it is of another form: named with the file, and no stack trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import OWN_ENTRY
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.vit import SIZES

WHOLE = {"kind": "classifier", "model": {"heads": 4}, "frames": 4, "image_size": 32}


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": 3}, "model: found 3, input should be a mapping"),
        ({"model": {"heads": "x"}}, "model.heads: found x, "),
        ({"frames": -4}, "frames: found -4, "),
        ({"image_size": [1]}, r"image_size: found \[1\], "),
        ({"positions": [1]}, "positions.1: missing"),
        ({"labels": 5}, "labels: found 5, "),
        ({"config": 3}, "config: found 3, "),
        ({"config": {"objective": [1]}}, r"config.objective: found \[1\], input should be a mapping"),
        ({"config": {"finetune": "x"}}, "config.finetune: found x, input should be a mapping"),
        ({"config": {"data": {"mean": [1]}}}, "config.data.mean.1: missing"),
        ({"config": {"data": {"stride": "x"}}}, "config.data.stride: found x, "),
        ({"frames": 10**9}, "frames: found 1000000000, input should be less than or equal to 4096"),
        ({"image_size": 10**30}, "image_size: found 10+, input should be less than or equal to 4096"),
    ],
)
def test_an_entry_of_another_form_is_named(tmp_path: Path, change: dict[str, Any], said: str, ending: str) -> None:
    file, facts = tmp_path / f"model.{ending}", WHOLE | change
    state = VideoClassifier(SIZES["tiny"], 4, 32, classes=5).state_dict()
    if ending == "pth":
        torch.save({"model": state, OWN_ENTRY: facts}, file)
    else:
        save_file(state, file, metadata={OWN_ENTRY: json.dumps(facts)})
    with pytest.raises(ValueError, match=rf"model\.{ending}: its {OWN_ENTRY} entry is damaged: {said}"):
        read(file)
