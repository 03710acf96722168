"""Video files that were replaced under their names since a run began: a start reports it and continues.

The index of a shard shows it; of a loose file only the name is in the list. The first start notes bytes and time of
change of files from all over a list, a stat of each, and later ones compare: what was replaced as a whole is seen,
a single file among millions is not."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tgm_scale.data.access import storage
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.inventory import NAMED
from tgm_scale.data.shards.video_list import VideoListCorpus
from tgm_scale.runtime.outside.json_text import json_object

FILE = "files.json"  # in the run folder
SAMPLED = 1000  # files of a list: where a hundredth was replaced, none of these was once in 20,000 times
Marks = dict[str, list[int]]  # of each file by its name: bytes, nanoseconds of the last change


def replaced(folder: Path, opened: Sequence[Corpus]) -> list[str]:
    """In words, which files of lists are others than at the run's first start, which this notes in FOLDER/files.json
    where nothing is noted."""
    file = folder / FILE
    try:
        known = json_object(file) if file.is_file() else {}
    except ValueError:  # it is rewritten
        known = {}
    lists = [(n, corpus) for n, corpus in enumerate(opened) if isinstance(corpus, VideoListCorpus)]
    now = {f"{n} {corpus.name}": _marks(corpus) for n, corpus in lists}
    if now and not known:
        storage.write_atomically(file, json.dumps(now).encode())
    return [line for name, marks in now.items() if (line := _compared(name, marks, known.get(name)))]


def _marks(corpus: VideoListCorpus) -> Marks:
    found = {}
    for place in sorted({len(corpus) * k // SAMPLED for k in range(SAMPLED)}):
        if storage.is_url(corpus.shards[place]):
            continue
        try:
            stat = os.stat(corpus.shards[place])
        except OSError:  # it stops the run when it is read
            continue
        found[corpus.first_names[place]] = [stat.st_size, stat.st_mtime_ns]
    return found


def _compared(name: str, now: Marks, before: object) -> str:
    if not isinstance(before, dict):
        return ""
    others = [file for file, mark in now.items() if before.get(file, mark) != mark]
    if not others:
        return ""
    said = ", ".join(others[:NAMED]) + ", ..." * (len(others) > NAMED)
    return (
        f"{name.partition(' ')[2]}: {len(others):,} of {len(now):,} files that were looked at have another size or "
        f"time than when the run began ({said}): it continues with them as they are now"
    )
