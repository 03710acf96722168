"""Forward passes of models over the samples of a labelled corpus, in fixed chunks.

So the numbers do not depend on the number of processes, and a stopped pass resumes at the chunk that it had
reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tgm_scale.contracts import WEEK, Problem
from tgm_scale.data.access import patience
from tgm_scale.data.shards.index import Corpus, SampleRef
from tgm_scale.evaluation import finite
from tgm_scale.evaluation.views import Decoder
from tgm_scale.runtime.distributed import HostCollectives
from tgm_scale.runtime.processes import own_cores

CHUNK = 256  # samples of one file of features
_WORTH_A_PROCESS = 64
# Seconds that processes wait for one another: rank 0 fits alone, for hours with a large corpus, and computes all its
# chunks while the others may find theirs cached
PATIENCE = WEEK
PASS = 32  # clips of one forward pass; samples of different chunks never share one

# uint8 [B, 3, T, H, W] -> one row for each clip, from each of several models
Models = Callable[[Tensor], list[Tensor]]


class Rows(NamedTuple):
    """Outputs of the models for the samples that could be read."""

    rows: list[Tensor]  # one per model: [samples, views, ...], on the CPU
    names: list[str]
    problems: list[Problem]


@contextmanager
def stopping_together(collectives: HostCollectives) -> Iterator[None]:
    """Raise Stopped on all processes at the end of the block if one was asked to stop within it. Collective."""
    stopped: patience.Stopped | None = None
    try:
        yield
    except patience.Stopped as error:
        stopped = error
    if collectives.any(stopped is not None):
        raise stopped or patience.Stopped("stopped with another process")


def chunks(refs: Sequence[SampleRef]) -> list[Sequence[SampleRef]]:
    return [refs[start : start + CHUNK] for start in range(0, len(refs), CHUNK)]


def own_samples(refs: Sequence[SampleRef], rank: int, world_size: int) -> int:
    """Return how many samples a process sees that has every world-size-th chunk."""
    return sum(len(part) for part in chunks(refs)[rank::world_size])


def fitting(workers: int, samples: int) -> int:
    """Return how many decoding processes are worth starting: at most this process's cores, and one per 64 samples.

    A process takes about 2 s to start, as long as 64 small clips take to decode."""
    return min(workers, own_cores(), samples // _WORTH_A_PROCESS)


def run_models(
    models: Models,
    corpus: Corpus,
    refs: Sequence[SampleRef],
    decoder: Decoder,
    modules: Sequence[nn.Module] = (),
) -> Rows:
    """Run the models on every view of these samples, PASS clips at a time.

    modules: what the models run. Raises ValueError that names the clip and the first layer if an output is not finite;
    Stopped if this process was asked to stop."""
    views = len(decoder.views)
    names: list[str] = []
    problems: list[Problem] = []
    given: list[list[Tensor]] = []
    waiting: list[Tensor] = []

    def run(count: int) -> None:
        clips = torch.cat(waiting)
        rows = [rows.cpu() for rows in models(clips[:count])]
        for bad in (finite.first_not_finite(of_model) for of_model in rows):
            if bad is not None:
                done = sum(len(before[0]) for before in given)
                finite.refuse_clip(names[(done + bad) // views], models, clips[bad : bad + 1], modules)
        given.append(rows)
        waiting[:] = [clips[count:]]

    for ref, found in zip(refs, decoder.decode(corpus, refs)):
        patience.stop_where_asked("a pass over the clips")
        if isinstance(found, Problem):
            problems.append(found)
            continue
        names.append(ref.name)
        waiting.append(found)
        while sum(map(len, waiting)) >= PASS:
            run(PASS)
    if left := sum(map(len, waiting)):
        run(left)
    return Rows([torch.cat(rows).unflatten(0, (-1, views)) for rows in zip(*given)], names, problems)


def inference(device: torch.device) -> AbstractContextManager:
    """Return the autocast context: bf16 on a GPU, fp32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
