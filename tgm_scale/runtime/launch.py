"""This process's rank and job from the launcher's environment variables: torchrun's, srun's, or none.

Incomplete or contradictory variables are refused: otherwise several processes would each train alone into one folder,
or one process would wait for ranks that were never started. Facts on a SLURM job come from its variables, not from its
commands, which containers lack."""

from __future__ import annotations

import bisect
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_REMEDY = {
    _TORCHRUN: "torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; unset all three for a run of one process",
    _SRUN: "srun sets them: pass all SLURM_ variables on into the container; unset SLURM_STEP_ID to run alone",
}
# _OTHERS: variables of unsupported launchers, (number of processes, name)
_SPECIAL_STEPS = 0xFFFF_FFF0  # from here on: the batch script (...FB), the shell that salloc opens on a node (...FA)
_OTHERS = (("OMPI_COMM_WORLD_SIZE", "mpirun"), ("PMI_SIZE", "an MPI launcher"), ("MV2_COMM_WORLD_SIZE", "mpirun_rsh"))


@dataclass(frozen=True)
class Launch:
    """This process's place among those that the launcher started."""

    rank: int
    world_size: int
    local_rank: int  # among those of its host
    local_size: int | None  # processes on its host; None where no variable tells
    variables: tuple[str, ...]  # the variables used


def read(env: Mapping[str, str]) -> Launch:
    """Return the launch by torchrun's variables where one of them is set, else by srun's, else a run of one process.

    Raises ValueError that names the variables where they are incomplete, not numbers, out of range or
    contradictory."""
    if any(name in env for name in _TORCHRUN):
        found = _read(env, _TORCHRUN)
        _refuse_contradiction(env, found)
        return found
    if in_step(env):  # in a batch script or a shell of salloc SLURM_PROCID is always 0
        return _read(env, _SRUN)
    if number(env, "SLURM_PROCID", "0") != 0:
        raise ValueError(
            f"SLURM_PROCID={env['SLURM_PROCID']} without SLURM_STEP_ID: {_REMEDY[_SRUN]}, or unset SLURM_PROCID"
        )
    for name, launcher in _OTHERS:
        if number(env, name, "1") > 1:
            raise ValueError(
                f"{name}={env[name]}: started by {launcher}, whose variables are not read, so every process would "
                "train alone: start with torchrun or srun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and "
                "MASTER_PORT"
            )
    return Launch(0, 1, 0, 1, ())


def in_step(env: Mapping[str, str]) -> bool:
    """Return whether srun started this process as a task. Raises ValueError where SLURM_STEP_ID is not a number."""
    return "SLURM_STEP_ID" in env and number(env, "SLURM_STEP_ID") < _SPECIAL_STEPS


def number(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    """Return the whole number in a variable. Raises ValueError that names the variable."""
    text = env.get(name, default)
    try:
        return int(str(text))
    except ValueError:
        raise ValueError(f"{name}={text!r}: wanted a whole number; unset it, or start with torchrun or srun") from None


def _read(env: Mapping[str, str], names: tuple[str, str, str]) -> Launch:
    rank_name, size_name, local_name = names
    given = ", ".join(f"{name}={env[name]}" for name in names if name in env)
    alone = env.get(size_name, "").strip() == "1"
    missing = [name for name in names if name not in env and not (name == local_name and alone)]
    if missing:
        raise ValueError(f"{given or 'SLURM_STEP_ID is set'}: without {' and '.join(missing)}: {_REMEDY[names]}")
    rank, world_size = number(env, rank_name), number(env, size_name)
    local_rank, local_size = number(env, local_name, "0"), None
    if names == _SRUN:
        local_size = tasks_of_this_node(env)
    elif "LOCAL_WORLD_SIZE" in env:
        local_size = number(env, "LOCAL_WORLD_SIZE")
    if not 0 <= rank < world_size:
        raise ValueError(f"{given}: {rank_name} must be from 0 to {size_name} - 1: {_REMEDY[names]}")
    if not 0 <= local_rank < (local_size or world_size):
        among = f"{local_size} processes of this host" if local_size else f"{size_name} processes"
        raise ValueError(f"{given}: {local_name} must be from 0 on and below the {among}: {_REMEDY[names]}")
    return Launch(rank, world_size, local_rank, local_size, names)


def _refuse_contradiction(env: Mapping[str, str], found: Launch) -> None:
    """Raise ValueError where tasks started by srun have torchrun variables left over in the shell. torchrun under srun
    is fine: its agent sets TORCHELASTIC_RUN_ID."""
    if "TORCHELASTIC_RUN_ID" in env or not in_step(env) or not all(name in env for name in _SRUN):
        return
    tasks, task = number(env, "SLURM_NTASKS"), number(env, "SLURM_PROCID")
    if tasks > 1 and (found.world_size, found.rank) != (tasks, task):
        raise ValueError(
            f"RANK={found.rank}, WORLD_SIZE={found.world_size}, but srun started this as task {task} of {tasks} "
            "(SLURM_PROCID, SLURM_NTASKS): unset RANK, WORLD_SIZE and LOCAL_RANK, which are left from another start"
        )


_BRACKETS = re.compile(r"\[([^\]]*)\]")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_COMMAS = re.compile(r",(?![^\[]*\])")  # those outside of brackets


def node_names(nodelist: str) -> list[str]:
    """Return the nodes of a SLURM list in order: `gpu[08-10],login1` gives gpu08, gpu09, gpu10 and login1."""
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
    """Return the node of a rank, even of one that does not answer: srun assigns ranks in blocks, node by node."""
    nodelist = os.environ.get("SLURM_JOB_NODELIST")
    if not nodelist:
        return f"the host of rank {rank}"
    nodes = node_names(nodelist)
    tasks = _tasks_per_node(os.environ)
    if len(tasks) == len(nodes) and sum(tasks) == world_size:
        return nodes[bisect.bisect_right([*itertools.accumulate(tasks)], rank)]
    return nodes[rank * len(nodes) // world_size]


def job() -> dict[str, str | None]:
    """Return id, nodes and restart count of this process's job; None and "0" outside of one."""
    env = os.environ
    return {
        "slurm_job": env.get("SLURM_JOB_ID"),
        "slurm_nodes": env.get("SLURM_JOB_NODELIST"),
        "restart": env.get("SLURM_RESTART_COUNT", "0"),
    }


def tasks_of_this_node(env: Mapping[str, str]) -> int | None:
    """Return the number of the step's tasks on this node, from `4(x2),3` and the node's number; None where SLURM does
    not tell."""
    counts = _tasks_per_node(env)
    node = env.get("SLURM_NODEID", "0" if len(counts) == 1 else "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def _tasks_per_node(env: Mapping[str, str]) -> list[int]:
    """Return the tasks on each node of the step, from `4(x2),3`; [] where SLURM does not tell."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or ""
    return [int(count) for count, times in _TASKS.findall(text) for _ in range(int(times or 1))]


def gpus_of_job(env: Mapping[str, str]) -> str | None:
    """Return a text on the GPUs that SLURM gave this job or step, with the variable; None where there are none."""
    given = (name for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS") if env.get(name))
    return next((f"SLURM gave this job GPUs ({name}={env[name]})" for name in given), None)
