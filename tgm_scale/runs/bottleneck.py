"""The bottleneck of a run, the rank that causes it, and the remedy, from the ranks' heartbeats (RUN/ranks/NNNNN)."""

from __future__ import annotations

import time
from math import ceil, isfinite
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from tgm_scale.data.access.patience import Wait
from tgm_scale.runtime.outside.json_text import json_file
from tgm_scale.runtime.terminal import message

DECAY = 0.98  # per step, of the seconds in heartbeats: they cover about the last 50 steps
RECENT = 50  # steps for the median speed, and about as many for the ranks' shares of time
_SHARES = {"data": 0.1, "checkpoint": 0.1, "network": 0.1, "guidance": 0.25}  # above these a remedy pays off
_LAGGING = 0.1


class Rank(NamedTuple):
    """A rank and the shares of its recent time by phase, which add up to 1."""

    number: int
    host: str
    shares: dict[str, float]

    def __str__(self) -> str:
        return f"rank {self.number} on {self.host}"


def read_ranks(folder: Path, world_size: int) -> list[Rank]:
    """Return the ranks of the run in this folder; empty before the first heartbeats with times."""
    ranks = []
    for number in range(world_size):
        beat = read_heartbeat(folder / "ranks" / f"{number:05d}")
        whole = sum(beat.get("seconds", {}).values())
        if whole:
            shares = {phase: seconds / whole for phase, seconds in beat["seconds"].items()}
            ranks.append(Rank(number, beat["host"], shares))
    return ranks


def read_heartbeat(file: Path) -> dict[str, Any]:
    """Return a rank's heartbeat; empty if its file is missing or damaged."""
    try:
        beat = json_file(file)
    except (OSError, ValueError):
        return {}
    return beat if isinstance(beat, dict) and isinstance(beat.get("seconds"), dict) else {}


def from_metrics(rows: list[dict[str, Any]]) -> list[Rank]:
    """Return the main rank by its metrics.jsonl, for a run without heartbeats."""
    whole = sum(row["step_seconds"] for row in rows)
    data, guidance = (sum(row[name] for row in rows) / whole for name in ("data_seconds", "guidance_seconds"))
    return [Rank(0, "its host", {"data": data, "guidance": guidance, "update": 1 - data - guidance})]


def recent_shares(
    root: Path, world_size: int, rows: list[dict[str, Any]], starts: list[dict[str, Any]]
) -> tuple[list[Rank], int]:
    """Return the ranks' shares of time, and about how many of the newest steps they cover: from the heartbeats, which
    cover the newest start, else from metrics.jsonl, which covers the main rank only. No ranks where no row is whole.

    The first step of each start is left out, unless it is the only one: it compiles, and starts the workers."""
    firsts = {start["step"] + 1 for start in starts}
    whole = [row for row in rows[-RECENT - len(firsts) :] if is_whole(row)]
    steady = [row for row in whole if row["step"] not in firsts][-RECENT:] or whole
    newest = [row for row in steady if not starts or row["step"] > starts[-1]["step"] + 1]
    if newest and _covered(root, newest) and (ranks := read_ranks(root, world_size)):
        return ranks, len(newest)
    return from_metrics(steady) if steady else [], len(steady)


def _covered(root: Path, rows: list[dict[str, Any]]) -> bool:
    """Return whether the main rank's heartbeat counts at least half of the time of these steps. The last heartbeat of
    a young run that was killed may count a part of one step."""
    counted = sum(read_heartbeat(root / "ranks" / "00000").get("seconds", {}).values())
    return counted >= sum(row["step_seconds"] * DECAY**age for age, row in enumerate(reversed(rows))) / 2


def is_whole(row: dict[str, Any]) -> bool:
    """Return whether a row of metrics.jsonl has valid times and counts."""
    figures = [row.get(name) for name in ("step_seconds", "data_seconds", "guidance_seconds")]
    counts = [row.get(name) for name in ("samples", "skipped_samples")]
    return (
        all(isinstance(value, (int, float)) and isfinite(value) for value in figures)
        and all(isinstance(value, int) for value in counts)
        and row["step_seconds"] > 0
    )


def counted(steps: int) -> str:
    """Return a phrase for the number of newest steps that a share of time covers."""
    return "the last step" if steps == 1 else f"about the last {steps} steps"


def explain(ranks: list[Rank], tree: dict[str, Any]) -> str:
    """Return one line: the bottleneck, its rank, and the remedy. tree: the run's configuration."""
    worst = {
        phase: max(ranks, key=lambda rank: rank.shares.get(phase, 0)) for phase in ("data", "guidance", "checkpoint")
    }
    found = {phase: rank.shares.get(phase, 0.0) for phase, rank in worst.items()}
    # Ranks meet on the host after guidance. The last to arrive waits for nobody, so its time there is the network's.
    last = min(ranks, key=lambda rank: rank.shares.get("meeting", 0))
    found["network"] = last.shares.get("meeting", 0.0)
    over = {phase: share for phase, share in found.items() if share > _SHARES[phase]}
    if over:
        phase = max(over, key=lambda phase: over[phase] / _SHARES[phase])
        return f"{phase}: " + _remedy(phase, worst.get(phase, last), ranks, tree)
    waiting = max(ranks, key=lambda rank: rank.shares.get("meeting", 0))
    if waiting.shares.get("meeting", 0) - found["network"] > _LAGGING:
        return (
            f"{last}: {waiting} waits {waiting.shares['meeting']:.0%} of its time for it; "
            f"it spends {last.shares['update']:.0%} in the model: look at its GPU's clock and its neighbours"
        )
    return f"none: {min(rank.shares['update'] for rank in ranks):.0%} of the time goes into the model"


def _remedy(phase: str, rank: Rank, ranks: list[Rank], tree: dict[str, Any]) -> str:
    share = rank.shares.get("meeting" if phase == "network" else phase, 0.0)
    if phase == "data":
        workers = tree["data"]["workers"]
        wanted = workers_wanted(workers, share)
        least = min(other.shares.get("data", 0) for other in ranks)
        among = f" (least of all ranks: {least:.0%})" if len(ranks) > 1 else ""
        return (
            f"{rank} waits for clips {share:.0%} of its time{among}; data.workers={wanted} instead of {workers} would "
            f"cure it ({wanted - workers} more cores for each rank), or shards made with a lower --gop or "
            "--short-side (`tgm-scale shards make`)"
        )
    if phase == "guidance":
        return f"{share:.0%} of the time of {rank}; {_cheaper_guidance(tree)}"
    if phase == "checkpoint":
        return f"{share:.0%} of the time of {rank}; raise checkpoint.every, or write to a faster disk"
    return f"even {rank}, for which all others wait, spends {share:.0%} on meeting them; check the hosts' network"


def _cheaper_guidance(tree: dict[str, Any]) -> str:
    """Return the ways to make guidance cheaper that the run does not use yet."""
    guidance = tree.get("guidance") or {}  # absent in a run of an earlier version
    if guidance.get("towers") is None:
        return "masks without towers take it: docs/RECIPES.md says what each recipe costs"
    if guidance.get("cached"):
        return "relevance is cached: what is left are the shards' reading and the masks"
    ways = [] if guidance.get("frames_per_tubelet") == "one" else ["set guidance.frames_per_tubelet=one"]
    ways.append(
        "set guidance.resolution=N below the tower's own side"
        if guidance.get("resolution") is None
        else f"lower guidance.resolution={guidance['resolution']}"
    )
    cached = "make relevance once: `tgm-scale shards cache`, then its output as data.shards and guidance.cached=true"
    return f"{', or '.join(ways)}, or {cached}"


def workers_wanted(workers: int, waiting: float) -> int:
    """Return how many workers decode as fast as the rest of a step takes, if the step waits `waiting` of its time for
    `workers` of them.

    As the bottleneck they are always busy, so clips per second grow with their number. Without workers, the waiting is
    the decoding itself."""
    rest = max(1 - waiting, 0.01)
    return ceil(waiting / rest) if workers == 0 else ceil(workers / rest)


_NAMED = 4
_FRESH = 60.0  # seconds: an older heartbeat belongs to a rank that died or hangs


class _Beat(BaseModel):
    state: str
    time: float
    waiting: list[Wait] = []


def waiting(folder: Path) -> str:
    """Return a text on the processes that wait for a shard, the longest first, for how long and why; "" if none
    waits."""
    found: dict[tuple[str, str], tuple[float, str]] = {}
    for file in sorted((folder / "ranks").glob("[0-9]*")):
        try:
            beat = _Beat.model_validate(json_file(file))
        except (OSError, ValueError):  # half written, or of an earlier version
            continue
        silent = time.time() - beat.time
        since = f", told {duration(silent)} ago" if silent > _FRESH else ""
        for wait in beat.waiting if beat.state == "running" else ():
            seconds = beat.time - wait.since
            words = message(f"{wait.who} for {wait.what}, {duration(seconds)} by now{since}: {wait.why}")
            key = wait.who, wait.what  # the threads of a process wait together
            found[key] = max((seconds, words), found.get(key, (0.0, words)))
    texts = [words for _, words in sorted(found.values(), reverse=True)]
    more = [f"{len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return "; ".join([*texts[:_NAMED], *more])


def duration(seconds: float) -> str:
    """Return a text such as 2 d 3:04:05."""
    days, rest = divmod(round(max(seconds, 0.0)), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02d}:{rest:02d}"
