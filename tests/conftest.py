"""Shared by all tests: third-party imports prepared, threads capped, the local real material found by name."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from tgm_scale.runtime.compat import prepare_torchvision

prepare_torchvision()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real videos, captions, masks and tokenizer files; tests that need it skip by name without it."""
    folder = os.environ.get("TGM_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TGM_REAL_DATA does not name the folder of real test material")
    return Path(folder)
