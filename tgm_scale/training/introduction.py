"""What a run says before its first step, of its data and of what it will do; and after its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgm_scale.config import Config
from tgm_scale.data.index import Corpus
from tgm_scale.data.inventory import LEFT_OUT, write_left_out
from tgm_scale.data.replaced import replaced
from tgm_scale.guidance.cache import EXTENSION as MAPS
from tgm_scale.masking.recipes import Masker
from tgm_scale.training import build
from tgm_scale.training.engine_plan import not_used
from tgm_scale.training.metrics import in_words
from tgm_scale.training.waiting import duration

_LOOKED_AT = 8  # samples of a corpus: the first may have been none that could be scored


def introduce(config: Config, folder: Path, opened: list[Corpus]) -> None:
    """Print what was opened, understood and left out, before the first step; RUN/left_out.jsonl names all of it.
    And which files of lists were replaced since the run began, what is there and not used, and what is too little."""
    if any(corpus.left_out for corpus in opened):
        write_left_out(folder / LEFT_OUT, ((corpus.name, corpus.all_problems()) for corpus in opened))
    for inventory in build.inventories(opened, LEFT_OUT):
        print("\n".join(inventory.lines()), flush=True)
    for line in replaced(folder, opened):
        print(f"warning: {line}", flush=True)
    for line in (*_unused_maps(config, opened), *few_clips(sum(map(len, opened)), build.samples_per_step(config))):
        print(line, flush=True)


def _unused_maps(config: Config, opened: list[Corpus]) -> list[str]:
    """Of each corpus whose relevance was scored beforehand, for a run that scores it anew."""
    if config.guidance.cached or "relevance" not in build.masker(config).needs:
        return []
    scored = [
        corpus.name
        for corpus in opened
        if any(MAPS in corpus.sample(0, row).members for row in range(min(_LOOKED_AT, corpus.counts[0])))
    ]
    return [f"{name}: has maps of relevance that are not used: guidance.cached=true reads them" for name in scored]


def few_clips(samples: int, batch: int) -> list[str]:
    """A warning where a batch is more than all samples of the training."""
    if batch <= samples:
        return []
    return [
        f"warning: a batch of {batch} clips (train.global_batch_size) from {samples}: each step has some of them more "
        "than once"
    ]


def announce(config: Config, facts: dict[str, Any], samples: int, masks: Masker, start: int) -> None:
    """Print what the run will do, before its first step."""
    came_to = f"all {start} steps were done before" if start == facts["steps"] else f"going on from step {start}"
    notes = not_used(config.deepspeed.config) + ([came_to] if start else [])
    print(
        f"run {config.run.dir}: {samples} samples, {facts['steps']} steps of {config.train.global_batch_size} clips "
        f"({facts['world_size']} processes x {facts['accumulation']} micro steps x {facts['micro_batch_size']}), "
        f"{facts['precision']}, ZeRO {facts['stage']}, peak learning rate {facts['peak_learning_rate']:.3g}\n"
        + "\n".join([f"masking {masks.describe()}", *notes]),
        flush=True,
    )


def conclude(config: Config, steps: int, seconds: float, last: dict[str, Any] | None) -> None:
    """Print how the run ended, and what comes then. steps, seconds: of this start; last: its last row of metrics."""
    folder = config.run.dir
    did = f"made {steps} steps in {duration(seconds)}" if last is not None else "no step was left to make"
    losses = f", {in_words(last)}" if last is not None else ""
    print(
        f"done: {did}{losses}. The run is in {folder}; its features are judged by: tgm-scale probe "
        f"run.dir={folder}-probe encoder.checkpoint={folder} data.train=LABELLED data.test=LABELLED",
        flush=True,
    )
