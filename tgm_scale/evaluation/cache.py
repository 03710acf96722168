"""Rows of numbers for every sample of a labelled corpus, cached on disk chunk by chunk.

Shapes: N samples, K tokens, D width, V views."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from tgm_scale.contracts import Problem
from tgm_scale.data.access import storage
from tgm_scale.data.shards.video_list import VideoListCorpus
from tgm_scale.evaluation import finite
from tgm_scale.evaluation.clips import chunks, fitting, own_samples, run_models, stopping_together
from tgm_scale.evaluation.labelled import LabelledCorpus
from tgm_scale.evaluation.views import Decoder, Decoding
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.runtime.files import replacing
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.tensors import load_with_metadata, save_tensors


class Clips(NamedTuple):
    """The usable clips of a corpus, in the order of their keys."""

    features: list[Tensor]  # one per encoder: float32 [N, D], or float16 [N, K, D]
    labels: list[str]  # N
    keys: list[str]  # N
    problems: list[Problem]  # of those left out
    groups: list[str] | None = None  # N; None unless all have one


@dataclass(frozen=True)
class RowModel:
    """A function that computes a row for each clip, with its identity for the cache."""

    rows_of: Callable[[Tensor], Tensor]  # clips uint8 [B, 3, T, H, W] -> [B, D], or tokens [B, K, D]
    module: nn.Module  # module that it runs
    identity: tuple[str, ...]  # what else the rows depend on, such as a digest of the weights
    dtype: torch.dtype = torch.float32  # dtype of the cached rows


def cached_rows(
    folder: Path, model: RowModel, source: LabelledCorpus, decoding: Decoding, collectives: HostCollectives
) -> Clips:
    """Return the model's rows of every labelled sample, averaged over its views, or the tokens of all its views.

    Rows are read from `folder` if cached there. Collective: each process computes every world-size-th chunk. A chunk
    is one file, written atomically, so that an interrupted pass resumes. Raises ValueError if no sample can be used,
    and if a row is not finite; Stopped, on all processes, if one was asked to stop."""
    refs = source.refs
    digest = hashlib.blake2b(digest_size=8)
    facts = (*model.identity, source.corpus.fingerprint, str(len(refs)), str(decoding.views), str(model.dtype))
    for fact in facts:
        digest.update(fact.encode() + b"\n")
    for ref in refs:  # the same number of others may have another label
        digest.update(ref.name.encode("utf-8", "surrogateescape") + b"\n")
    if isinstance(source.corpus, VideoListCorpus):  # lists may name other files under the same paths
        for ref in refs:
            digest.update(f"{os.path.abspath(ref.shard)} {ref.members[ref.video][1]} {_changed(ref.shard)}\n".encode())
    folder = folder / digest.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with stopping_together(collectives):
        _make_chunks(folder, model, source, decoding, collectives.process)
    return _gather(folder, len(chunks(refs)), source)


def _make_chunks(
    folder: Path, model: RowModel, source: LabelledCorpus, decoding: Decoding, process: ProcessInfo
) -> None:
    """Compute this process's chunks that are not cached yet. Raises the errors of `cached_rows`."""
    own = own_samples(source.refs, process.rank, process.world_size)
    with Decoder(replace(decoding, workers=fitting(decoding.workers, own))) as decoder:
        for number, part in enumerate(chunks(source.refs)):
            file = folder / f"{number:06d}.safetensors"
            if number % process.world_size != process.rank or file.is_file():
                continue
            found = run_models(lambda video: [model.rows_of(video)], source.corpus, part, decoder, [model.module])
            rows = _over_views(found.rows[0]) if found.names else torch.zeros(0)
            rows = rows.to(model.dtype)
            finite.refuse(rows, found.names, f"its features, as {model.dtype},")
            metadata = {"names": found.names, "problems": [asdict(problem) for problem in found.problems]}
            with replacing(file) as work:
                save_tensors({"rows": rows.contiguous()}, work, {"facts": json.dumps(metadata)})


def _changed(place: str) -> int:
    """Return when a file last changed, in nanoseconds, since another of the same size may replace it.

    0 for a URL, and for a missing file, which is reported when it is read."""
    try:
        return 0 if storage.is_url(place) else os.stat(place).st_mtime_ns
    except OSError:
        return 0


def _over_views(rows_NV: Tensor) -> Tensor:
    """Combine views: [N, V, D] by their mean; [N, V, K, D] by keeping all tokens, since a place differs between
    crops."""
    return rows_NV.flatten(1, 2) if rows_NV.ndim == 4 else rows_NV.mean(dim=1)


def _gather(folder: Path, count: int, source: LabelledCorpus) -> Clips:
    rows, names, problems = [], [], list(source.problems)
    for number in range(count):
        found, facts = _read(folder / f"{number:06d}.safetensors")
        if facts.names:
            rows.append(found)
            finite.refuse(found, facts.names, f"its features in {folder}")
        names += facts.names
        problems += facts.problems
    refuse_empty(names, source, problems)
    grouped = source.groups
    groups = [grouped[name] for name in names] if all(name in grouped for name in names) else None
    return Clips([torch.cat(rows)], [source.labels[name] for name in names], names, problems, groups)


class _Facts(BaseModel):
    names: list[str]
    problems: list[Problem]


def _read(file: Path) -> tuple[Tensor, _Facts]:
    try:
        tensors, metadata = load_with_metadata(file)
        facts = _Facts.model_validate(json_of(metadata["facts"]))
        rows = tensors["rows"]
        if len(rows) != len(facts.names):
            raise ValueError(f"{len(rows)} rows of {len(facts.names)} names")
        return rows, facts
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file} is damaged: delete it, it is rebuilt ({error})") from None


def refuse_empty(names: list[str], source: LabelledCorpus, problems: list[Problem]) -> None:
    """Raise ValueError if no sample could be used."""
    if not names:
        corpus = source.corpus
        raise ValueError(
            f"corpus {corpus.name!r}: none of its {len(corpus)} clips can be used; the first: "
            f"{problems[0].key}: {problems[0].reason}: {problems[0].detail}; correct data.root, or the list or shards"
        )
