"""Copies of shards with relevance maps of each caption, so that training needs no image tower."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from tgm_scale.data.building import rewriting
from tgm_scale.data.building.annotations import captions_of
from tgm_scale.data.shards.inventory import captions_of_some
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.shards.video_list import VideoListCorpus
from tgm_scale.data.video.decode import DecodeError, Video
from tgm_scale.evaluation.first_look import caption_notes
from tgm_scale.guidance.cache import EXTENSION, fingerprint, pack
from tgm_scale.guidance.maps import Relevance
from tgm_scale.guidance.towers import check_folder, load_image_tower, load_text_tower, tower_folder
from tgm_scale.runtime import command

FRAMES_PER_PASS = 16


def cache(options: argparse.Namespace) -> int:
    """Copy the shards and return the exit code. Raises ValueError for a mistake in the options or their files."""
    rewriting.check_task(options)
    if options.every <= 0:
        raise ValueError(f"--every {options.every}: wanted seconds above 0")
    corpus = open_corpus(options.shards)
    if isinstance(corpus, VideoListCorpus):
        raise ValueError(
            f"--shards {options.shards}: video files, and a map needs a shard to lie in: make shards of them, with "
            "`tgm-scale shards make` from spans, or `tgm-scale shards caption` from a list"
        )
    rewriting.report_input(options, corpus)
    with command.reported_as("guidance.", "--"):
        scorer = _Scorer(options, options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    some = [caption for captions in captions_of_some(corpus).values() for caption in captions]
    print("".join(f"warning: {note}\n" for note in caption_notes(some, scorer.text)), end="", flush=True)

    def copy(shard: int, row: int, writer: ShardWriter) -> str:
        """Copy a sample, with its maps in place of earlier ones. Return the outcome, a fixed phrase to count."""
        ref = corpus.sample(shard, row)
        members: dict[str, Any] = corpus.read(ref, [name for name in ref.members if name != EXTENSION])
        outcome, maps = scorer(members[ref.video], members)
        if maps is not None:
            members[EXTENSION] = maps
        writer.write(ref.key, members)
        return outcome

    counts = corpus.counts.tolist()
    of_scorer = {"scorer": options.scorer, "resolution": options.resolution, "every": options.every}
    rewriting.record(options, corpus, **of_scorer, towers=scorer.fingerprint)
    rewriting.rewrite(options, counts, copy)
    finished = sum(rewriting.finished(options.output, number, count) for number, count in enumerate(counts))
    print(f"{finished} of {len(counts)} shards finished")
    if finished == len(counts):
        made_by = {"towers": options.towers, "scorer": options.scorer, "resolution": options.resolution}
        same = " ".join(f"guidance.{key}={value}" for key, value in made_by.items() if value is not None)
        print(f"train on them with: data.shards={options.output} guidance.cached=true {same}")
    return 0


class _Scorer:
    """Scorer of a clip: relevance maps of its captions at evenly spaced times."""

    def __init__(self, options: argparse.Namespace, device: str):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        towers = tower_folder(options.towers)
        check_folder(towers)
        self.text = load_text_tower(towers, device, dtype)
        image = load_image_tower(towers, device, dtype)
        self.relevance = Relevance(image, options.scorer, resolution=options.resolution)
        self.fingerprint = fingerprint(towers, options.scorer, options.resolution)
        self.every = options.every

    def __call__(self, video: bytes, members: dict[str, bytes]) -> tuple[str, bytes | None]:
        """Return the outcome, a fixed phrase to count, and the maps."""
        captions = captions_of(members)
        if not captions:
            return "without a caption", None
        captions_1KE = self.text.encode(captions)[None]
        maps, seconds, waiting = [], [], []
        try:
            with Video(video) as source:
                indices = np.arange(0, source.count, max(round(self.every * source.rate), 1))
                for index, image in source.frames(indices):
                    seconds.append(source.time(index))
                    waiting.append(torch.from_numpy(np.ascontiguousarray(image)))
                    if len(waiting) == FRAMES_PER_PASS or len(seconds) == len(indices):
                        frames_13FHW = torch.stack(waiting).permute(3, 0, 1, 2)[None].to(self.text.device)
                        maps.append(self.relevance.cosines(frames_13FHW, captions_1KE)[0].cpu().numpy())
                        waiting = []
        except DecodeError as error:
            return f"not decoded ({error.reason})", None
        return "scored", pack(np.concatenate(maps, axis=1), np.array(seconds), self.fingerprint)
