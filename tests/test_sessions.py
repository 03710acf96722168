"""Which tests a session of pytest runs, and whether they see a GPU: all of them, or none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INNER = """
import os, subprocess, sys
import pytest

def seen():
    code = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['DS_ACCELERATOR'])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()

def test_on_the_cpu():
    import torch
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and seen() == ["cpu"]

@pytest.mark.gpu
def test_on_a_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1" and seen() == ["0,1", "cuda"]
"""


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_session_is_of_the_cpu_or_of_gpus(tmp_path: Path, on_gpu: bool) -> None:
    """The shell names two GPUs; what of them a test sees is the session's choice."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    (tmp_path / "test_inner.py").write_text(INNER)
    inherited = {"CUDA_VISIBLE_DEVICES": "0,1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(tmp_path)],
        env={**os.environ, **inherited, "TGM_TEST_GPU": str(int(on_gpu))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "1 passed, 1 deselected" in done.stdout, done.stdout + done.stderr
