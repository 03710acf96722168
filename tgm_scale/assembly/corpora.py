"""The data of a run: opened, described, and recorded in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tgm_scale.assembly.objective import needs_captions
from tgm_scale.checkpoints import folders
from tgm_scale.config import Config, DataConfig
from tgm_scale.config.sections import ObjectiveConfig
from tgm_scale.data.access.disk_cache import DiskCache
from tgm_scale.data.access.mounts import may_stall
from tgm_scale.data.lists.reading import NoList, Selection
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.inventory import (
    LEFT_OUT,
    Inventory,
    corpus_inventory,
    refuse_above,
    refuse_without_captions,
)
from tgm_scale.data.shards.opening import make_names_distinct, open_corpus
from tgm_scale.data.shards.video_list import VideoListCorpus
from tgm_scale.runtime.files import making

MADE_BY = "synthetic.json"  # in a synthetic corpus: the data.synthetic that made it


def make_synthetic(data: DataConfig) -> None:
    """Make the synthetic corpus that the configuration describes, where it does not exist yet."""
    synthetic, folder = data.synthetic, Path(data.corpora()[0].path)
    if synthetic is None or folder.exists():
        return
    from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus

    print(
        f"data.synthetic: there is no {folder}: making a corpus of {synthetic.clips} clips there (for clips of your "
        "own correct data.shards)",
        flush=True,
    )
    with making(folder) as unfinished:
        make_corpus(unfinished, synthetic.clips, SyntheticSpec(seed=synthetic.seed, mode=synthetic.mode))
        (unfinished / MADE_BY).write_text(synthetic.model_dump_json(), encoding="utf-8")


def open_corpora(data: DataConfig, captions: bool, without_captions: Sequence[str] = ()) -> list[Corpus]:
    """Open the corpora of a configuration. captions: whether any are read; without_captions: the keys to set where
    there are none, for the message.

    Raises ValueError where too much is left out, or a corpus has no captions."""
    kept = data.cache
    cache = DiskCache(kept.dir, round(kept.gigabytes * 1e9)) if kept else None
    selection = Selection(wanted="caption", group=data.group, test_groups=data.test_groups)
    settings: dict[str, Any] = {"cache": cache, "root": data.root, "patience": data.patience, "selection": selection}
    try:
        opened = [open_corpus(entry.path, **settings) for entry in data.corpora()]
    except NoList as missing:
        raise ValueError(f"data.shards={missing}") from None
    if data.test_groups is not None and not any(isinstance(corpus, VideoListCorpus) for corpus in opened):
        raise ValueError("data.test_groups leaves groups of a list out, and data.shards names none: leave it out")
    make_names_distinct(opened)
    limit = data.max_left_out_share
    if any(corpus.lost > limit * (len(corpus) + corpus.lost) for corpus in opened):
        refuse_above(inventories(opened), limit)
    if captions and data.max_skipped_share < 1:
        remedy = " ".join(without_captions)
        refuse_without_captions(opened, remedy)
        _refuse_few_captions(data, opened, remedy)
    return opened


def open_of_run(config: Config, captions: bool, without_captions: Sequence[str]) -> list[Corpus]:
    """Open the corpora of a run as `open_corpora` does; once it has a checkpoint, missing captions do not refuse
    it."""
    begun = folders.steps_in(Path(config.run.dir) / "checkpoints")
    return open_corpora(config.data, captions and not begun, without_captions)


def _refuse_few_captions(data: DataConfig, opened: list[Corpus], remedy: str) -> None:
    """Raise ValueError where the lists lack more captions than a run may skip: it would stop after some steps.
    Captions missing in shards are known only when those are read."""
    weights = [entry.weight or float(len(corpus)) for entry, corpus in zip(data.corpora(), opened)]
    bare = [corpus.uncaptioned if isinstance(corpus, VideoListCorpus) else [] for corpus in opened]
    shares = [weight / sum(weights) * len(names) / len(corpus) for weight, names, corpus in zip(weights, bare, opened)]
    if round(sum(shares), 9) <= data.max_skipped_share:
        return
    worst = shares.index(max(shares))
    listed, names = opened[worst], bare[worst]
    assert isinstance(listed, VideoListCorpus)
    known = {listed.prefix + problem.key: problem for problem in listed.listing.problems}
    unfit = next((known[name] for name in names if name in known and known[name].reason == "bad_caption"), None)
    first = f"; {unfit.key} has one that cannot be used: {unfit.detail}" if unfit else ""
    raise ValueError(
        f"{listed.origin}: {len(names):,} of {len(listed):,} clips without a caption (the first: {names[0]}){first}. "
        f"A run would skip {sum(shares):.4g} of its samples, more than data.max_skipped_share="
        f"{data.max_skipped_share:g}: write captions for them (docs/DATA.md#lists-and-folders-of-video-files), or "
        f"raise the limit{f'; to do without captions add {remedy}' if remedy else ''}"
    )


def refuse_one_clip(opened: list[Corpus], objective: ObjectiveConfig) -> None:
    """Raise ValueError where a term contrasts clips and the data has only one."""
    if (coupled := needs_captions(objective)) and sum(map(len, opened)) < 2:
        raise ValueError(
            f"{objective.key(coupled[0])}={objective.weights()[coupled[0]]:g} tells clips from others, and "
            f"{opened[0].origin} has one clip: give more clips, or set {' '.join(objective.without(coupled))}"
        )


def storage_seconds(data: DataConfig) -> float:
    """Return the seconds that a rank may wait for its storage, beyond the limit of a hang; 0 for local disks."""
    return data.patience if may_stall([data.root, *(corpus.path for corpus in data.corpora())]) else 0.0


def inventories(opened: list[Corpus], listed: str = "") -> list[Inventory]:
    return [corpus_inventory(corpus.name, corpus, listed) for corpus in opened]


def corpus_metadata(opened: list[Corpus]) -> list[dict[str, Any]]:
    """Return the entry of each corpus in RUN/data.json: its identity (name, samples, fingerprint, the mark and samples
    of each of its shards, or `content` of a list's captions and labels), and what was left out."""
    found = []
    for corpus, inventory in zip(opened, inventories(opened, LEFT_OUT)):
        facts = {"name": corpus.name, "samples": len(corpus), "fingerprint": corpus.fingerprint}
        content = {"content": corpus.content} if corpus.content else {"shards": corpus.marks}
        left_out = {"left_out": inventory.left_out, "left_out_share": inventory.share, "first": inventory.first}
        found.append({**facts, **content, **(left_out if inventory.left_out else {})})
    return found
