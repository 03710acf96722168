"""Trials of what a run uses other than data and model: DeepSpeed's extensions, InfiniBand."""

from __future__ import annotations

import ctypes
from pathlib import Path

from tgm_scale.engine import extensions
from tgm_scale.planning.run_plan import RunPlan
from tgm_scale.runtime.distributed import ProcessInfo

_VERBS = "libibverbs.so.1"


def try_extensions(plan: RunPlan, process: ProcessInfo, clear: bool) -> list[str]:
    """Load DeepSpeed's Adam for CPUs where the plan offloads, building it where it is missing.

    clear: remove the lock of a build that was killed."""
    lines = []
    if clear:
        folder = extensions.build_folder(extensions.CPU_ADAM)
        left = extensions.left_lock(folder)
        if left is not None:
            extensions.clear_lock(left)
            lines.append(f"{left}: removed")
    if offloads(plan):
        extensions.prepare_deepspeed(process.device)
        seconds = extensions.load_cpu_adam(verbose=process.is_main)
        lines.append(f"DeepSpeed's Adam for CPUs, ready in {seconds:.0f} s")
    return lines


def offloads(plan: RunPlan) -> bool:
    return "offload_optimizer" in plan.engine.zero


def check_infiniband(cards: Path = Path("/sys/class/infiniband"), library: str = _VERBS) -> None:
    """Raises ValueError where the machine has InfiniBand cards that NCCL will not be able to use."""
    found = sorted(card.name for card in cards.iterdir()) if cards.is_dir() else []
    if not found:
        return
    try:
        ctypes.CDLL(library)
    except OSError:
        raise ValueError(
            f"InfiniBand cards {', '.join(found)}, but {library} cannot be loaded: NCCL would fall back to sockets; "
            "install libibverbs1, ibverbs-providers and librdmacm1 (in a container, in its image)"
        ) from None
