"""What SLURM's variables say of a job, read without its commands: in a container there are none."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping

_BRACKETS = re.compile(r"\[([^\]]*)\]")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_COMMAS = re.compile(r",(?![^\[]*\])")  # those outside of brackets


def node_names(nodelist: str) -> list[str]:
    """The nodes of a list as SLURM writes it, in order: `gpu[08-10],login1` are gpu08, gpu09, gpu10 and login1."""
    names = []
    for part in _COMMAS.split(nodelist):
        pieces = _BRACKETS.split(part)  # literal, ranges, literal, ranges, ..., literal
        choices = [_numbers(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return names


def _numbers(ranges: str) -> list[str]:
    numbers = []
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        numbers += [f"{n:0{len(first)}d}" for n in range(int(first), int(last or first) + 1)]
    return numbers


def node_of(rank: int, world_size: int) -> str:
    """The node of a rank, also of one that does not answer: srun deals ranks out in blocks, a node at a time."""
    nodelist = os.environ.get("SLURM_JOB_NODELIST")
    if not nodelist:
        return f"the host of rank {rank}"
    nodes = node_names(nodelist)
    return nodes[rank * len(nodes) // world_size]


def job() -> dict[str, str | None]:
    """Id, nodes and restarts of the job this process is in; None and "0" outside of one."""
    env = os.environ
    return {
        "slurm_job": env.get("SLURM_JOB_ID"),
        "slurm_nodes": env.get("SLURM_JOB_NODELIST"),
        "restart": env.get("SLURM_RESTART_COUNT", "0"),
    }


def tasks_of_this_node(env: Mapping[str, str]) -> int | None:
    """How many tasks of the step are on this node, from `4(x2),3` and the node's number; None where SLURM does not
    say."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE")
    counts: list[int] = []
    for count, times in _TASKS.findall(text or ""):
        counts += [int(count)] * int(times or 1)
    node = env.get("SLURM_NODEID", "0" if len(counts) == 1 else "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def gpus_of_job(env: Mapping[str, str]) -> str | None:
    """The GPUs that SLURM gave this job or step, with the variable that says so; None where there are none."""
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if env.get(name):
            return f"SLURM gave this job GPUs ({name}={env[name]})"
    return None
