"""The clips shown, read as in a run: its crops, captions and seeds of masks.

Shapes: T frames, H W pixels, S slots, R rows, C columns of the token grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tgm_scale.assembly.run_plan import shape_of
from tgm_scale.config import Config
from tgm_scale.contracts import Problem
from tgm_scale.data.building.annotations import CAPTION_EXTENSIONS, captions_of
from tgm_scale.data.loading.order import SampleAddress
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.shards.index import Corpus, DamagedMember, SampleRef
from tgm_scale.demo.corpus.truth import has_truth
from tgm_scale.runtime.progress import Task

_BROKEN_FOR_A_WHOLE = 4  # most samples tried for each clip asked for


@dataclass(frozen=True)
class Clip:
    """A clip that is shown."""

    name: str
    video: Tensor  # uint8 [3, T, H, W]
    captions: list[str]  # used by masks: the drawn one, or all (guidance.captions=mean); without them for display
    seed: int  # of its masks
    motion_SRC: Tensor | None
    synthetic: bool  # from the project's own synthetic corpora


def sampling_of(config: Config, needs: set[str], speaks: bool) -> Sampling:
    """Return the sampling of a run with this configuration (assembly.parts.clip_loader), one clip of each sample."""
    data = config.data
    return Sampling(
        data.frames,
        data.stride,
        data.size,
        shape_of(config).grid,
        config.run.seed,
        crop=data.crop,
        flip=data.flip,
        captions=speaks,
        segments=data.sampling == "segments",
        time_jitter=data.time_jitter,
        standardise=data.standardise,
        motion="motion" in needs,
        caption_sets=speaks and config.guidance.captions == "mean",
    )


def read_clips(
    config: Config, opened: list[Corpus], sampling: Sampling, count: int, keys: Sequence[str], task: Task
) -> tuple[list[Clip], list[Problem]]:
    """Return the first `count` usable clips of a run with this seed, or those of `keys`, and the others' problems.

    Raises ValueError for a key of no sample, OSError if a shard cannot be read."""
    weights = [entry.weight for entry in config.data.corpora() if entry.weight is not None]
    samples = Samples.in_order(opened, sampling, config.data.window_shards, weights or None)
    clips: list[Clip] = []
    problems: list[Problem] = []
    for address in _named(opened, keys) if keys else _drawn(samples, count):
        found = _read(samples, address)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            clips.append(found)
            task.advance()
        if len(clips) == count and not keys:
            break
    return clips, problems


def _drawn(samples: Samples, count: int) -> Iterator[SampleAddress]:
    """Yield each sample at most once, in the order of the run."""
    seen = set()
    most = min(sum(map(len, samples.corpora)), count * _BROKEN_FOR_A_WHOLE)
    for position in range(sum(map(len, samples.corpora)) * 2):
        address = samples.mixture.locate(position)
        if (where := (address.corpus, address.shard, address.row)) not in seen:
            seen.add(where)
            yield address
        if len(seen) == most:
            return


def _read(samples: Samples, address: SampleAddress) -> Clip | Problem:
    sampling = samples.sampling
    fetched = samples.fetch_at(address)
    pixels_1THW3 = torch.empty(1, sampling.frames, sampling.size, sampling.size, 3, dtype=torch.uint8)
    sample = samples.decode(fetched, pixels_1THW3)
    if sample.problem is not None:
        return sample.problem
    members = fetched.members if sampling.captions else _texts(samples.corpora[address.corpus], fetched.ref)
    captions = sample.caption_set or (sample.captions if sampling.captions else captions_of(members)[:1])
    return Clip(
        sample.key,
        pixels_1THW3[0].permute(3, 0, 1, 2).contiguous(),
        captions,
        sample.seeds[0],
        None if sample.motion is None else torch.from_numpy(sample.motion[0]),
        has_truth(members.get("json")),
    )


def _texts(corpus: Corpus, ref: SampleRef) -> dict[str, bytes]:
    """Return the members that hold captions, for a clip that is used without them."""
    try:
        return corpus.read(ref, CAPTION_EXTENSIONS)
    except DamagedMember:
        return {}


def _named(opened: Sequence[Corpus], keys: Sequence[str]) -> list[SampleAddress]:
    """Return the samples whose name, or key within the shard, is one of `keys`. Raises ValueError."""
    wanted = dict.fromkeys(keys)
    whole: dict[str, SampleAddress] = {}
    bare: dict[str, dict[str, SampleAddress]] = {key: {} for key in wanted}
    first: list[str] = []
    for number, corpus in enumerate(opened):
        for shard in _likely_first(corpus, wanted):
            for row in range(int(corpus.counts[shard])):
                ref = corpus.sample(shard, row)
                address = SampleAddress(number, 0, shard, row)
                first += [ref.name] * (len(first) < 3)
                if ref.name in wanted:
                    whole[ref.name] = address
                for name in {ref.key, ref.name.rpartition("/")[2], ref.name.rpartition(".")[0]} & wanted.keys():
                    bare[name][ref.name] = address
            if len(whole) == len(wanted):
                return [whole[key] for key in wanted]
    for key in wanted:
        if key not in whole and len(bare[key]) != 1:
            some = list(bare[key])[:3] or first
            why = "is the name of several samples" if bare[key] else "is the name of no sample"
            raise ValueError(f"--keys {key}: {why}; names are such as {', '.join(some)}")
    return [whole[key] if key in whole else next(iter(bare[key].values())) for key in wanted]


def _likely_first(corpus: Corpus, keys: Iterable[str]) -> list[int]:
    """Return all shards, first those whose name begins a key: of millions of samples few are then searched."""
    starts = [f"{corpus.prefix}{name}" for name in corpus.first_names]
    likely = {shard for shard, start in enumerate(starts) if any(key.startswith(start) for key in keys)}
    return sorted(range(len(starts)), key=lambda shard: shard not in likely)
