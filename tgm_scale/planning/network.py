"""Time of a step's collectives: bytes over a given bandwidth, and a given latency for each message."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.planning.update_memory import BUCKET, MAX_LIVE, PREFETCH


@dataclass(frozen=True)
class Network:
    """Network of one GPU. within, between: bytes a second that it sends inside a node and between nodes; latency:
    seconds of a message from one GPU to another; overlap: the share of the time that is hidden behind arithmetic."""

    within: float = 100e9
    between: float = 25e9
    latency: float = 20e-6
    overlap: float = 0.0

    def rate(self, nodes: int) -> float:
        return self.within if nodes == 1 else self.between

    def seconds(self, sent: float, messages: int, gpus: int, nodes: int) -> float:
        """Return the seconds of all collectives, overlapped or not; a message goes up and down a tree of the GPUs."""
        if gpus == 1:
            return 0.0
        return sent / self.rate(nodes) + messages * 2 * math.ceil(math.log2(gpus)) * self.latency

    def assumed(self, nodes: int) -> str:
        where = "within a node" if nodes == 1 else "between nodes"
        return (
            f"assumed: {self.rate(nodes) / 1e9:.0f} GB/s a GPU {where}, {1e6 * self.latency:.0f} us from one to the "
            f"next, {self.overlap:.0%} of it hidden behind arithmetic"
        )


def messages_of(run: RunPlan, count: int) -> int:
    """Return the number of collectives in a step, by the sizes of DeepSpeed's buckets."""
    zero, passes = run.engine.zero, run.layout.accumulation
    reduces = math.ceil(count / float(zero.get("reduce_bucket_size", BUCKET)))
    if run.stage == 0:
        return reduces
    if run.stage < 3:
        gathers = math.ceil(count / float(zero.get("allgather_bucket_size", BUCKET)))
        return reduces * (passes if run.stage == 2 else 1) + gathers
    kept = min(1.0, zero.get("stage3_max_live_parameters", MAX_LIVE) / count)
    gathers = math.ceil(count / max(1.0, zero.get("stage3_prefetch_bucket_size", PREFETCH)))
    return reduces * passes + math.ceil(gathers * (kept + 2 * passes * (1 - kept)))
