"""Introduction that a pretraining run prints before its first step: its data and its plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tgm_scale.assembly.corpora import MADE_BY, inventories
from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.config import DataConfig
from tgm_scale.data.building.annotations import json_fault
from tgm_scale.data.lists.text import shown
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.inventory import LEFT_OUT, captions_of_some, texts_of_some, write_left_out
from tgm_scale.data.shards.video_list import replaced
from tgm_scale.demo.corpus.truth import has_truth
from tgm_scale.engine.plan import not_used
from tgm_scale.evaluation.first_look import caption_notes, short_note, side_note
from tgm_scale.guidance.cache import EXTENSION as MAPS
from tgm_scale.guidance.text import TextTower
from tgm_scale.guidance.tower_folder import SMALL_KNOWS, is_small
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.terminal import without_secrets

_LOOKED_AT = 8  # samples of a corpus: the first ones may be among those that could not be scored


def introduce(folder: Path, opened: list[Corpus], plan: RunPlan | None = None, scored_anew: bool = False) -> None:
    """Print what was opened, understood and left out, before the first step; RUN/left_out.jsonl names all that was
    left out. Also print which list files were replaced since the run began, which relevance maps are unused, and
    whether there are too few clips.

    plan: of the steps; scored_anew: whether the run computes relevance maps itself."""
    if any(corpus.left_out for corpus in opened):
        write_left_out(folder / LEFT_OUT, ((corpus.name, corpus.all_problems()) for corpus in opened))
    for inventory in inventories(opened, LEFT_OUT):
        print("\n".join(inventory.lines()), flush=True)
    for line in replaced(folder, opened):
        print(f"warning: {line}", flush=True)
    for name in _scored(opened) if scored_anew else []:
        print(f"{name}: has maps of relevance that are not used: guidance.cached=true reads them", flush=True)
    for line in few_clips(sum(map(len, opened)), plan.layout.global_batch, plan.repeats) if plan else []:
        print(line, flush=True)


def _scored(opened: list[Corpus]) -> list[str]:
    """Return the names of the corpora whose relevance was scored beforehand."""
    return [
        corpus.name
        for corpus in opened
        if any(MAPS in corpus.sample(0, row).members for row in range(min(_LOOKED_AT, corpus.counts[0])))
    ]


def warn_of_one_caption(opened: list[Corpus], key: str, text: TextTower) -> None:
    """Warn where the text tower takes all captions for one, so that no clip has negatives. key: the contrast's."""
    every = [captions for corpus in opened for captions in captions_of_some(corpus).values() if captions]
    distinct = [caption for captions in every for caption in captions]
    if distinct and len(text.caption_ids(distinct).unique()) == 1:
        print(
            f"warning: all {len(every)} captioned samples looked at have one caption to the text tower, such as "
            f"{shown(distinct[0])}: clips of equal captions are not told apart, so {key} above 0 teaches nothing",
            flush=True,
        )


def warn_of_clips(opened: list[Corpus], data: DataConfig, captions: bool, text: TextTower | None) -> None:
    """Warn of clips and captions, by a look at some, that may be read otherwise than the user means. captions: whether
    any are read; text: the tower that reads them."""
    notes = [short_note(opened, data.frames, data.stride, data.sampling, data.workers)]
    if captions:
        every = [caption for corpus in opened for given in captions_of_some(corpus).values() for caption in given]
        notes += [side_note(every) if data.flip else "", *caption_notes(every, text)]
    first = [corpus.shards[0] for corpus in opened]
    if twice := [place for number, place in enumerate(first) if place in first[:number]]:
        notes.append(f"{without_secrets(twice[0])} is in two entries of data.shards: what both name counts double")
    print("".join(f"warning: {note}\n" for note in notes if note), end="", flush=True)


def warn_of_small_towers(opened: list[Corpus], towers: str | None) -> None:
    """Warn of the packaged CLIP where some clips are not the synthetic ones that it knows."""
    if towers is None or not is_small(towers):
        return
    every = [members for corpus in opened for members in texts_of_some(corpus).values()]
    if all(has_truth(members.get("json")) or json_fault(members) for members in every):  # a broken json proves nothing
        return
    print(
        f"warning: {SMALL_KNOWS}, so what it makes of these clips and captions means nothing: this run tries the "
        "command, and no more; give guidance.towers=FOLDER, a CLIP or SigLIP",
        flush=True,
    )


def few_clips(samples: int, batch: int, repeats: int) -> list[str]:
    """Return a warning where a batch has more samples than the data. batch: clips, `repeats` of each sample."""
    if batch // repeats <= samples:
        return []
    each = f", {repeats} of each video (data.repeated_augmentation)," if repeats > 1 else ""
    return [
        f"warning: a batch of {batch} clips (train.global_batch_size){each} from {samples}: each step has some of "
        "them more than once"
    ]


def other_synthetic(data: DataConfig, made: Corpus) -> list[str]:
    """Return a warning where the corpus was made before, with other settings of data.synthetic."""
    if data.synthetic is None:
        return []
    wanted, file = data.synthetic.model_dump(), Path(data.corpora()[0].path) / MADE_BY
    # a corpus of an earlier version has no such file
    there = json_object(file) if file.is_file() else {"clips": round(len(made) + made.lost)}
    apart = [f"{key} {value}, not {wanted[key]}" for key, value in there.items() if value != wanted.get(key, value)]
    if not apart:
        return []
    by = "made with" if file.is_file() else "with"
    return [
        f"warning: {made.origin} is there, {by} {', '.join(apart)}: data.synthetic makes none; give another "
        "data.shards for other clips"
    ]


def announce(folder: Path, plan: RunPlan, weights: Mapping[str, float], samples: int, start: int) -> None:
    """Print what the run will do, before its first step. weights: of the objective's terms."""
    assert plan.masker is not None
    came_to = f"all {start} steps were done before" if start == plan.steps else f"resuming from step {start}"
    lines = [
        f"run {folder}: {samples} samples, {plan.described()}",
        f"masking {plan.masker.summary()}",
        f"objective {' + '.join(f'{weight:g} {name}' for name, weight in weights.items())}",
        *not_used(plan.engine.config_file),
        *([came_to] if start else []),
    ]
    print("\n".join(lines), flush=True)
