"""Health check of every node in seconds, before a run; bad nodes are named.

Four rounds, each ended by rank 0's verdict over all reports: checks of each process alone; what the nodes share; a
trial of what the run will use; an all-reduce. Reports go through a TCP store with a timeout, not through collectives,
so that a node that hangs or never came up is named like one that reports a problem."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta

import torch
import torch.distributed as dist

from tgm_scale.engine.extensions import BUILD_SECONDS
from tgm_scale.preflight import node_checks
from tgm_scale.preflight.node_checks import Report, inspect_node, inspect_shared, node_name, token_file
from tgm_scale.preflight.task_checks import TaskChecks
from tgm_scale.preflight.verdict import diagnose, summary, untested
from tgm_scale.runs import environment
from tgm_scale.runtime import launch
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo, choose_device, process_of, set_rendezvous
from tgm_scale.runtime.files import trouble_at
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.rendezvous import connect

SETUP_MISTAKE = 2  # wrong on every node: excluding nodes would not help
BAD_NODE = 3  # some nodes are wrong: lines `bad node NAME: why` name them
_INDEXING_SECONDS = 6 * 3600  # rank 0 may index foreign shards, once
_REDUCED_BYTES = {"cuda": 256 << 20, "cpu": 16 << 20}


def preflight(task: TaskChecks, patience: float, clear_locks: bool = False) -> int:
    """Check all nodes of this job; every process of it calls this. Returns 0, SETUP_MISTAKE or BAD_NODE.

    patience: seconds within which every process must answer a round; clear_locks: remove the lock of a killed build of
    DeepSpeed's Adam."""
    began = time.perf_counter()
    process, no_gpu = _find_process()
    set_rendezvous(process)
    report = inspect_node(task, process, no_gpu)
    try:
        rounds = Rounds(process, patience)
        code = rounds.end("alone", report) or _shared(task, process, rounds)
        code = code or _try(task, process, rounds, clear_locks) or _reduce(process, rounds)
    except (dist.DistError, TimeoutError):
        print(
            f"bad node {launch.node_of(0, process.world_size)}: rank 0 did not answer rank {process.rank}", flush=True
        )
        return BAD_NODE
    except OSError as error:  # MASTER_ADDR or MASTER_PORT: no node's fault
        print(trouble_at(error) or error, flush=True)
        return SETUP_MISTAKE
    if process.is_main and not code:
        tried = (f"tried {line}" for found in rounds.reports if found.rank == 0 for line in found.tried)
        for line in (*tried, *untested(environment.versions())):
            print(line, flush=True)
        print(f"preflight: {summary(rounds.reports)}, {time.perf_counter() - began:.1f} s", flush=True)
    rounds.leave()
    return code


def _find_process() -> tuple[ProcessInfo, str | None]:
    """Return this process's place, and why it has no GPU, on a node with too few, so that the node can be named."""
    found = launch.read(os.environ)
    try:
        return process_of(found, choose_device(found.local_rank, found.local_size, torch.cuda.device_count())), None
    except ValueError as mistake:
        return process_of(found, 0), str(mistake)


def _shared(task: TaskChecks, process: ProcessInfo, rounds: Rounds) -> int:
    released = time.time()  # all wait for the first verdict and learn it within milliseconds
    token = f"{os.environ.get('SLURM_JOB_ID', os.getpid())}-{int(released)}"
    if process.is_main:
        file = token_file(task.config, token)
        made = [folder for folder in file.parents if not folder.exists()]  # the run's folder and its new parents
        with suppress(OSError, ValueError):  # every rank meets the same mistake, and reports it
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            task.corpora(process)
        rounds.store.set("token", token)
    rounds.store.wait(["token"], timedelta(seconds=_INDEXING_SECONDS))
    report = inspect_shared(task, process, rounds.store.get("token").decode())
    report.measurements["clock"] = released
    code = rounds.end("shared", report)
    if process.is_main:
        file.unlink(missing_ok=True)
        with suppress(OSError):  # used by another process by now
            for folder in made:
                folder.rmdir()
    return code


def _try(task: TaskChecks, process: ProcessInfo, rounds: Rounds, clear_locks: bool) -> int:
    """Try what the run will use; the first process of each node prepares the extensions."""
    report, plan = Report(process.rank, node_name()), task.plan(process)
    if process.world_size > 1:
        report.attempt("InfiniBand", node_checks.check_infiniband)
    if process.local_rank == 0:
        report.attempt(
            "extensions", lambda: report.tried.extend(node_checks.try_extensions(plan, process, clear_locks))
        )
    report.attempt("trial run", lambda: report.tried.extend(task.try_run(process)))
    return rounds.end("trial", report, BUILD_SECONDS if node_checks.offloads(plan) else 0)


def _reduce(process: ProcessInfo, rounds: Rounds) -> int:
    if process.world_size == 1:
        return 0
    report = Report(process.rank, node_name())
    report.attempt("all-reduce", lambda: _all_reduce(report, process, rounds))
    return rounds.end("reduce", report)


def _all_reduce(report: Report, process: ProcessInfo, rounds: Rounds) -> None:
    """Sum over the processes by the libraries that training uses; bandwidth counts as in NCCL's tests (bus)."""
    on_gpu = process.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(process.device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("reduce", rounds.store),
        rank=process.rank,
        world_size=process.world_size,
        timeout=timedelta(seconds=rounds.patience),
    )
    size = _REDUCED_BYTES[process.device.type]
    for repeat in range(3):  # the first opens the connections
        values = torch.full((size // 4,), process.rank + 1.0, device=process.device)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        if on_gpu:
            torch.cuda.synchronize(process.device)
        seconds = time.perf_counter() - began
        if values[repeat].item() != process.world_size * (process.world_size + 1) / 2:
            raise ValueError("an all-reduce gave a wrong sum")
    # a run is controlled over gloo between hosts, on an interface that gloo chooses
    if HostCollectives(process, rounds.patience).sum([1.0]) != [process.world_size]:
        raise ValueError("a sum over the hosts by gloo came out wrong")
    dist.destroy_process_group()
    report.measurements["bytes/s"] = 2 * (process.world_size - 1) / process.world_size * size / seconds


class Rounds:
    """Rounds of reports to rank 0 and of its verdicts, over a store on rank 0."""

    def __init__(self, process: ProcessInfo, patience: float):
        self.process, self.patience = process, patience
        self.store = dist.PrefixStore("preflight", connect(process, patience))
        self.reports: list[Report] = []  # of all rounds; on rank 0 only

    def end(self, name: str, own: Report, at_least: float = 0) -> int:
        """Submit a report and wait for the verdict, which rank 0 makes and prints. at_least: seconds for the round."""
        patience = max(self.patience, at_least)
        self.store.set(f"{name}/{own.rank}", json.dumps(asdict(own)))
        if self.process.is_main:
            reports, silent = self._collect(name, patience)
            bad, common = diagnose(reports, silent)
            for line in (*common, *(f"bad node {node}: {'; '.join(problems)}" for node, problems in bad.items())):
                print(line, flush=True)
            self.reports += reports
            self.store.set(f"{name}/verdict", str(BAD_NODE if bad else SETUP_MISTAKE if common else 0))
        self.store.wait([f"{name}/verdict"], timedelta(seconds=2 * patience))
        return int(self.store.get(f"{name}/verdict"))

    def _collect(self, name: str, patience: float) -> tuple[list[Report], list[str]]:
        """Return the reports that arrived, and the nodes of the missing ones."""
        deadline = time.monotonic() + patience
        reports, silent = [], []
        for rank in range(self.process.world_size):
            try:
                self.store.wait([f"{name}/{rank}"], timedelta(seconds=max(0.1, deadline - time.monotonic())))
                reports.append(Report(**json_of(self.store.get(f"{name}/{rank}"))))
            except dist.DistError:
                silent.append(launch.node_of(rank, self.process.world_size))
        return reports, silent

    def leave(self) -> None:
        """Leave the store. Rank 0 holds it, so it leaves last, without waiting for silent processes."""
        self.store.set(f"left/{self.process.rank}", "")
        if self.process.is_main:
            others = [f"left/{report.rank}" for report in {r.rank: r for r in self.reports}.values()]
            try:
                self.store.wait(others, timedelta(seconds=5))
            except dist.DistError:
                return  # one of them died after its report; the job's own exit code says so
