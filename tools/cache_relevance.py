"""Copy shards with each caption's relevance added, so that training needs no image tower."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tgm_scale.data import rewriting
from tgm_scale.data.annotations import captions_of
from tgm_scale.data.decode import DecodeError, Video
from tgm_scale.data.index import Corpus, SampleRef
from tgm_scale.data.listed import ListedCorpus
from tgm_scale.data.shards import ShardWriter, shard_path
from tgm_scale.guidance.cache import EXTENSION, fingerprint, pack
from tgm_scale.guidance.relevance import Relevance
from tgm_scale.guidance.towers import load_image_tower, load_text_tower
from tgm_scale.runtime import command
from tgm_scale.training.build import tower_folder

EXAMPLES = """examples:
  python tools/cache_relevance.py --shards DIR --towers CLIP --output DIR
  python tools/cache_relevance.py --shards 'DIR/*.tar' --towers CLIP --output DIR --every 0.5 --scorer vv
  python tools/cache_relevance.py ... --task $SLURM_ARRAY_TASK_ID --tasks 16     in each job of an array (0-15)

Training reads the maps with guidance.cached=true alone, and with the towers, scorer and resolution given here.

Every sample gets a member tgm.npy: maps of its captions over whole frames, float16, on the tower's grid (392 bytes
each at 14 x 14), with a fingerprint of the towers and settings. Training takes them through its own crops and at
the frame nearest in time; it stops where the fingerprint is not that of its own towers and settings. Online, the tower
sees a clip after the crop, and so at a higher resolution: maps from here are a little coarser.

Stopped at any moment, the same command goes on with the first unfinished shard, and a shard appears whole; --task I
--tasks N share the shards out, one process a GPU, and the bytes do not depend on N. A video that cannot be decoded is
copied without maps and counted; what could not be opened is printed, and named in OUTPUT/left_out.jsonl. Exit code: 0
done, 2 a mistake in the command or its input."""

FRAMES_PER_PASS = 16


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return command.exit_code(
        "cache_relevance", lambda: _run(options), "finished shards are kept, the same command goes on"
    )


def _parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--shards", required=True, metavar="DIR", help="folder or pattern of shards, as data.shards")
    add("--towers", required=True, metavar="DIR", help="CLIP or SigLIP folder or 'small', as guidance.towers")
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing; not the shards' own folder")
    add("--scorer", default="value", metavar="NAME", help="raw, value (default) or vv, as guidance.scorer")
    add("--resolution", type=int, metavar="N", help="side that the tower sees, as guidance.resolution")
    add("--every", type=float, default=0.25, metavar="S", help="seconds between scored frames (default 0.25)")
    rewriting.add_options(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    rewriting.check(options)
    if options.every <= 0:
        raise ValueError(f"--every {options.every}: wanted seconds above 0")
    corpus = Corpus.open(options.shards)
    if isinstance(corpus, ListedCorpus):
        raise ValueError(
            f"--shards {options.shards}: video files, and a map needs a shard to lie in: make shards of them, with "
            "tools/make_shards.py from spans, or tools/caption_clips.py from a list"
        )
    rewriting.introduce(options, corpus)
    with command.told_as("guidance.", "--"):
        scorer = _Scorer(options, options.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def copy(shard: int, row: int, writer: ShardWriter) -> str:
        return _score(corpus.sample(shard, row), corpus, scorer, writer)

    counts = corpus.counts.tolist()
    rewriting.rewrite(options, counts, copy)
    finished = sum(shard_path(options.output, number).exists() for number in range(len(counts)))
    print(f"{finished} of {len(counts)} shards finished")
    if finished == len(counts):
        made_by = {"towers": options.towers, "scorer": options.scorer, "resolution": options.resolution}
        same = " ".join(f"guidance.{key}={value}" for key, value in made_by.items() if value is not None)
        print(f"train on them with: data.shards={options.output} guidance.cached=true {same}")
    return 0


def _score(ref: SampleRef, corpus: Corpus, scorer: _Scorer, writer: ShardWriter) -> str:
    """Copy a sample with its maps, and without those it had. What became of it, in a word to be counted."""
    members: dict[str, Any] = corpus.read(ref, [extension for extension in ref.members if extension != EXTENSION])
    outcome, maps = scorer(members[ref.video], members)
    if maps is not None:
        members[EXTENSION] = maps
    writer.write(ref.key, members)
    return outcome


class _Scorer:
    """Maps of a clip's captions at even times."""

    def __init__(self, options: argparse.Namespace, device: str):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        towers = tower_folder(options.towers)
        self.text = load_text_tower(towers, device, dtype)
        image = load_image_tower(towers, device, dtype)
        self.relevance = Relevance(image, options.scorer, resolution=options.resolution)
        self.fingerprint = fingerprint(towers, options.scorer, options.resolution)
        self.every = options.every

    def __call__(self, video: bytes, members: dict[str, bytes]) -> tuple[str, bytes | None]:
        """What became of the clip, in a word to be counted, and its maps."""
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


if __name__ == "__main__":
    sys.exit(main())
