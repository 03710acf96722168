"""Facts on the GPUs here, whether they are usable, and who else uses them. `python -m gpu_checks.card` collects them
in its own process, which occupies some of a GPU's memory as long as it lives."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

BUSY_GB = 1.5  # in use besides our own context of about 0.5 GB
CPU_INSTEAD = "`--device cpu` runs the same rows at tiny size without one; that proves the code, and nothing of a GPU"


def look() -> dict[str, Any]:
    """Return facts about torch, the driver and every GPU that is visible to this process."""
    import torch

    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "built_for": torch.version.cuda or torch.version.hip,
        "driver": next(iter(_smi("--query-gpu=driver_version")), None),
        "driver_cuda": driver_cuda(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "error": None,
        "gpus": [],
    }
    try:
        torch.cuda.init()
        facts["gpus"] = [_gpu(index) for index in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        facts["error"] = str(error).strip().splitlines()[0]
    return facts


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    probe = torch.ones(64, 64, device=f"cuda:{index}")
    assert float((probe @ probe).sum()) == 64.0**3  # fails on a card for which this torch has no kernels
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(total / 1e9, 1),
        "in_use_gb": round((total - free) / 1e9, 1),
        "users": users_of(str(getattr(properties, "uuid", ""))),
    }


def driver_cuda() -> str | None:
    """Return the newest CUDA that the driver supports, even if too old for this torch; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def users_of(uuid: str) -> list[str]:
    """Return the processes that use a GPU, as nvidia-smi names them; in a container it may see none."""
    rows = [row.split(", ") for row in _smi("--query-compute-apps=gpu_uuid,pid,process_name,used_memory")]
    own = str(os.getpid())
    return [f"{name} (pid {pid}, {used})" for gpu, pid, name, used in rows if uuid and uuid in gpu and pid != own]


def _smi(query: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [row for row in done.stdout.splitlines() if row.strip()]


def obstacle(facts: dict[str, Any]) -> str | None:
    """Return why no GPU is usable here, and the remedy; None where one is."""
    if facts["built_for"] is None:
        return f'torch {facts["torch"]} is built without CUDA: install one with it (pytorch.org, "Get started")'
    if facts["error"] is None and facts["gpus"]:
        return None
    if facts["driver_cuda"] is None:
        return (
            f"no GPU: no CUDA driver is installed, or its device is not passed into this container ({facts['error']})"
        )
    if int(facts["driver_cuda"].split(".")[0]) < int(str(facts["built_for"]).split(".")[0]):
        driver = f"driver {facts['driver']}" if facts["driver"] else "the driver"
        return (
            f"{driver} speaks CUDA {facts['driver_cuda']} and is older than torch {facts['torch']}, built for "
            f"CUDA {facts['built_for']}: update the driver, or install a torch built for CUDA {facts['driver_cuda']}"
        )
    if facts["visible"] is not None:
        return f"no GPU is visible: CUDA_VISIBLE_DEVICES={facts['visible']!r} ({facts['error'] or 'none found'})"
    return f"no GPU can be used: {facts['error'] or 'none found'}"


def busy(gpus: list[dict[str, Any]]) -> list[str]:
    """Return a line for each GPU that others use."""
    lines = []
    for index, gpu in enumerate(gpus):
        if gpu["in_use_gb"] > BUSY_GB or gpu["users"]:
            by = f": {', '.join(gpu['users'])}" if gpu["users"] else ""
            lines.append(f"GPU {index} is in use by others, {gpu['in_use_gb']} of {gpu['memory_gb']} GB{by}")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", required=True, type=Path)
    parser.parse_args().json.write_text(json.dumps(look(), indent=1), encoding="utf-8")
