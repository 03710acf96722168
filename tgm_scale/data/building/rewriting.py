"""New shards from old ones, sample by sample: shared by the commands that add relevance or captions."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tgm_scale.data.access import storage
from tgm_scale.data.shards.index import Corpus, DamagedMember
from tgm_scale.data.shards.inventory import report_opened
from tgm_scale.data.shards.tars import ShardWriter, is_whole, shard_path
from tgm_scale.runtime.files import check_folder
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import escaped

MADE_FROM = "made_from.json"


def check_task(options: argparse.Namespace) -> None:
    """Raises ValueError for a task that is not among --tasks."""
    if not 0 <= options.task < options.tasks:
        raise ValueError(f"--task {options.task} of --tasks {options.tasks}: wanted 0 to {options.tasks - 1}")


def report_input(options: argparse.Namespace, corpus: Corpus) -> None:
    """Print what was opened and what was left out. Raises ValueError if that is too much, or the output would be
    written into the corpus itself, or cannot be made."""
    check_folder("--output", options.output)
    if any(Path(shard).resolve().parent == options.output.resolve() for shard in corpus.shards):
        raise ValueError(f"--output {options.output} is the folder of the shards: name another")
    report_opened(options.output, corpus, options.max_left_out)


def left_out(damaged: DamagedMember) -> str:
    """Name a sample that is not copied, since with a new sum its bytes would pass for what was meant; returns the word
    that it is counted by."""
    sys.stderr.write(escaped(f"left out: {damaged}", keep="") + "\n")
    return f"left out ({damaged.problem.reason})"


def record(folder: Path, corpus: Corpus, **settings: Any) -> None:
    """Record in the output what its shards are made from: each is found there by its number. Raises ValueError where
    they were made from other shards, or with other settings."""
    shards = [[os.path.basename(shard), int(count)] for shard, count in zip(corpus.shards, corpus.counts)]
    digest = hashlib.blake2b(json.dumps(shards).encode(), digest_size=8).hexdigest()
    made: dict[str, str | None] = {"shards": f"{len(shards)} with {corpus.counts.sum()} clips, {digest}"}
    made |= {name: None if value is None else str(value) for name, value in settings.items()}
    there = any(folder.glob("*.tar*"))  # looked for before their record, which is written before any of them
    file = folder / MADE_FROM
    before = json_object(file) if file.exists() else {}
    if there and not before:
        raise ValueError(f"--output {folder} holds shards, and no {MADE_FROM} says what of: name another folder")
    changed = [f"{name} {before.get(name)} -> {value}" for name, value in made.items() if before.get(name) != value]
    if there and changed:
        raise ValueError(
            f"--output {folder} holds shards made otherwise ({', '.join(changed)}): restore what they were made from, "
            "or name another folder"
        )
    if changed or not before:
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_atomically(file, json.dumps(made, sort_keys=True).encode())


def rewrite(
    options: argparse.Namespace,
    counts: Sequence[int],
    copy: Callable[[int, int, ShardWriter], str],
) -> None:
    """Write this task's share of new shards of so many clips each, but those that are whole there. `copy` writes the
    clip of a shard and a row, and says in a word to be counted what became of it."""
    mine = range(options.task, len(counts), options.tasks)
    todo = [number for number in mine if not is_whole(shard_path(options.output, number))]
    print(f"{sum(counts)} clips in {len(counts)} shards; {len(todo)} of this task's {len(mine)} are to be made")
    done: Counter[str] = Counter()
    with ProgressBars() as bars:
        task = bars.task("clips", sum(counts[number] for number in todo))
        for number in todo:
            storage.drop_left_over(options.output, f"{number:05d}.*")
            with ShardWriter(options.output, clips_per_shard=counts[number], first=number) as writer:
                for row in range(counts[number]):
                    done[copy(number, row, writer)] += 1
                    task.advance()
    print(", ".join(f"{count} clips {outcome}" for outcome, count in done.most_common()) or "nothing to do")
