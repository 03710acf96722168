"""RUN/events.jsonl: events in the run's own files, for `tgm-scale status` and `tgm-scale check`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tgm_scale.runtime.outside.json_text import json_of

FILE = "events.jsonl"


def append(folder: Path, kind: str, **facts: Any) -> None:
    """Add an event. Raises OSError."""
    with (folder / FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **facts}) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the events so far, oldest first; invalid lines are left out."""
    file = folder / FILE
    found = []
    for line in file.read_text(errors="replace", encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            event = json_of(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(event)
    return found
