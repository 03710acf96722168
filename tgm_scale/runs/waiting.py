"""Which processes of a run wait for which shard, by the heartbeats of its ranks (RUN/ranks/NNNNN)."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import BaseModel

from tgm_scale.data.access.waits import Wait
from tgm_scale.runtime.outside.json_text import json_file
from tgm_scale.runtime.terminal import message

_NAMED = 4
_FRESH = 60.0  # seconds: an older heartbeat is of a rank that died or hangs


class _Beat(BaseModel):
    state: str
    time: float
    waiting: list[Wait] = []


def waiting(folder: Path) -> str:
    """The processes of a run that wait for a shard, the longest first, for how long, and why; "" where none does."""
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
    """In words, such as 2 d 3:04:05."""
    days, rest = divmod(round(max(seconds, 0.0)), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02d}:{rest:02d}"
