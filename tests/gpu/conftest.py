"""The device of the tests marked `gpu`: TGM_TEST_GPU=1 takes the first GPU, TGM_TEST_GPU=cpu runs them on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "training"), str(TESTS.parent / "tools")]


@pytest.fixture(scope="session")
def device() -> torch.device:
    wanted = os.environ.get("TGM_TEST_GPU")
    if wanted not in ("1", "cpu"):
        pytest.skip("needs a GPU: `make gpu` runs it (TGM_TEST_GPU=1; TGM_TEST_GPU=cpu runs it on the CPU)")
    return torch.device("cuda" if wanted == "1" else "cpu")
