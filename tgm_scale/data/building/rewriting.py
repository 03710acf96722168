"""New shards from existing ones, sample by sample: shared by the commands that add relevance or captions."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tgm_scale.contracts import Problem
from tgm_scale.data.access import storage
from tgm_scale.data.shards.index import Corpus, DamagedMember
from tgm_scale.data.shards.inventory import LEFT_OUT, report_opened, write_left_out
from tgm_scale.data.shards.tars import ShardWriter, is_whole, shard_path
from tgm_scale.runtime.files import check_folder
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import escaped, without_secrets

MADE_FROM = "made_from.json"


def check_task(options: argparse.Namespace) -> None:
    """Raise ValueError for a task that is not among --tasks."""
    if not 0 <= options.task < options.tasks:
        raise ValueError(f"--task {options.task} of --tasks {options.tasks}: wanted 0 to {options.tasks - 1}")


def report_input(options: argparse.Namespace, corpus: Corpus) -> None:
    """Print what was opened and what was left out. Raises ValueError if too much was left out, or if the output
    would be written into the corpus itself or cannot be created."""
    check_folder("--output", options.output)
    if any(Path(shard).resolve().parent == options.output.resolve() for shard in corpus.shards):
        raise ValueError(f"--output {options.output} is the folder of the shards: name another")
    report_opened(options.output, corpus, options.max_left_out)


def record(options: argparse.Namespace, corpus: Corpus, **settings: Any) -> None:
    """Record in the output folder what its shards are made from: each shard is identified by its number alone.
    Raises ValueError where existing ones were made from other shards or with other settings."""
    of = json.dumps(corpus.content or corpus.marks, sort_keys=True)
    digest = hashlib.blake2b(of.encode(), digest_size=8).hexdigest()
    made: dict[str, str | None] = {"shards": f"{len(corpus.shards)} with {corpus.counts.sum()} clips, {digest}"}
    made |= {name: None if value is None else str(value) for name, value in settings.items()}
    folder, file = options.output, options.output / MADE_FROM
    # checked before reading their record, which is written before any shard
    there = any(folder.glob("*.tar")) or storage.being_written(folder, "*.tar.*")
    if there and not file.exists():
        raise ValueError(f"--output {folder} holds shards, and no {MADE_FROM} says what of: name another folder")
    if storage.written_first(file, json.dumps(made, sort_keys=True).encode()):
        return
    before = _recorded(file)
    changed = [f"{name} {before.get(name)} -> {value}" for name, value in made.items() if before.get(name) != value]
    if not changed:
        return
    if there:
        raise ValueError(
            f"--output {folder} holds shards made otherwise ({', '.join(changed)}), or parts of them: restore what "
            "they were made from, or name another folder"
        )
    if options.tasks > 1:
        raise ValueError(
            f"--output {folder} was begun otherwise ({', '.join(changed)}): start all tasks alike, or name another "
            f"folder; where no other task is at work, remove {file}"
        )
    storage.write_atomically(file, json.dumps(made, sort_keys=True).encode())


def _recorded(file: Path) -> dict[str, Any]:
    try:
        return json_object(file)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{file}: nothing tells what the shards beside it are made from ({error}): name another --output, or "
            "remove them and it"
        ) from None


def content_of(path: Path | None) -> str | None:
    """Return a digest of all bytes of a file or of a model's folder, independent of its location."""
    if path is None:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        beside = path.is_dir() and (file.suffix == ".md" or file.name.startswith("."))  # a model card, and the like
        if file.is_file() and not beside:
            digest.update(file.name.encode() if path.is_dir() else b"")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def rewrite(
    options: argparse.Namespace,
    counts: Sequence[int],
    copy: Callable[[int, int, ShardWriter], str],
) -> None:
    """Write this task's share of the new shards, with `counts` clips each, except finished ones. `copy` writes the
    clip of a shard and a row, and returns its outcome as a phrase to be counted. A clip with damaged bytes is left
    out, since a new checksum would make it pass as intact, and is named in NNNNN.left_out.jsonl. Raises ValueError
    where all shards are finished, and lack more than --max-left-out."""
    mine = range(options.task, len(counts), options.tasks)
    todo = [number for number in mine if not finished(options.output, number, counts[number])]
    print(f"{sum(counts)} clips in {len(counts)} shards; {len(todo)} of this task's {len(mine)} are to be made")
    done: Counter[str] = Counter()
    with ProgressBars() as bars:
        task = bars.task("clips", sum(counts[number] for number in todo))
        for number in todo:
            storage.drop_left_over(options.output, f"{number:05d}.*")
            damaged: list[Problem] = []
            with ShardWriter(options.output, clips_per_shard=counts[number], first=number) as writer:
                for row in range(counts[number]):
                    try:
                        outcome = copy(number, row, writer)
                    except DamagedMember as error:
                        damaged.append(error.problem)
                        sys.stderr.write(escaped(f"left out: {error}", keep="") + "\n")
                        outcome = f"left out ({error.problem.reason})"
                    done[outcome] += 1
                    task.advance()
                _name(options, number, damaged)  # before the tar exists, which marks the shard as finished
    print(", ".join(f"{count} clips {outcome}" for outcome, count in done.most_common()) or "nothing to do")
    _judge(options, counts)


def finished(folder: Path, number: int, count: int) -> bool:
    """Return whether a shard of this many clips was made: its tar is whole, or all its clips were damaged."""
    return is_whole(shard_path(folder, number)) or _lost(folder, number) == count


def _name(options: argparse.Namespace, number: int, damaged: list[Problem]) -> None:
    names = _names(options.output, number)
    if damaged:
        write_left_out(names, [(without_secrets(options.shards), damaged)])
    else:
        names.unlink(missing_ok=True)


def _names(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.{LEFT_OUT}"


def _lost(folder: Path, number: int) -> int:
    names = _names(folder, number)
    return len(names.read_bytes().splitlines()) if names.is_file() else 0


def _judge(options: argparse.Namespace, counts: Sequence[int]) -> None:
    """Check the loss of the whole output, so that neither a stop nor other tasks change the result. Raises
    ValueError."""
    lost = sum(_lost(options.output, number) for number in range(len(counts)))
    if not lost:
        return
    said = (
        f"{lost} of {sum(counts)} clips are damaged and were left out: {options.output}/NNNNN.{LEFT_OUT} names them; "
        "once they are mended, remove it and the NNNNN.tar beside it, and the same command makes them anew"
    )
    whole = all(finished(options.output, number, count) for number, count in enumerate(counts))
    if whole and lost > options.max_left_out * sum(counts):
        raise ValueError(f"{said}; more than --max-left-out={options.max_left_out}")
    print(said)
