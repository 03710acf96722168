"""A corpus of small clips, some broken, and what the loader makes of it, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from loading import clip_loader

from tgm_scale.contracts import Batch, Grid
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video

BROKEN = {"c03": "empty", "c08": "not_a_video", "c11": "truncated", "c17": "no_caption"}
CLIPS = 23


def member_video(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (6 + number % 7, 16, 20, 3)).astype(np.uint8)
    return encode_video(noise, fps=25)


def write_corpus(folder: Path, clips: int, clips_per_shard: int = 5) -> Path:
    with ShardWriter(folder, clips_per_shard=clips_per_shard) as writer:
        for number in range(clips):
            key = f"c{number:02d}"
            video = {"empty": b"", "not_a_video": b"no video", "truncated": member_video(1)[:300]}
            members: dict[str, Any] = {"mp4": video.get(BROKEN.get(key, ""), member_video(number))}
            if BROKEN.get(key) != "no_caption":
                members["json"] = {"captions": [f"{name} of {number}" for name in "abc"]}
            maps = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5) + number
            writer.write(key, members | {"tgm.npy": maps})
    return folder


def load(corpora: list[Corpus], **changes: Any) -> ClipLoader:
    values: dict[str, Any] = {
        "frames": 4,
        "stride": 2,
        "size": 8,
        "grid": Grid.of(4, 8, 2, 4),
        "seed": 7,
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "rank": 0,
        "world_size": 1,
        "workers": 0,
        "stop_step": 3,
        "window_shards": 2,
        "flip": True,
    }
    return clip_loader(corpora, **(values | changes))


def rows(batch: Batch) -> list[tuple]:
    """Each clip with all that is said of it; equal rows are equal to the bit."""
    return [
        (
            batch.keys[i],
            batch.captions[i],
            int(batch.seeds[i]),
            float(batch.weight[i]),
            int(batch.clip_ids[i]),
            tuple(batch.crops[i].tolist()),
            float(batch.starts[i]),
            batch.video[i].contiguous().numpy().tobytes(),
            b"" if batch.relevance is None else batch.relevance[i].numpy().tobytes(),
        )
        for i in range(len(batch))
    ]


def by_step(loader: ClipLoader) -> dict[int, list[list[tuple]]]:
    return {step: [rows(batch) for batch in batches] for step, batches in loader}


def by_global_slot(corpora: list[Corpus], micro: int, world: int, **changes: Any) -> dict[int, list[tuple]]:
    """Each step's clips in the order of their global slots, put together from all ranks."""
    ranks = [
        by_step(load(corpora, micro_batch_size=micro, world_size=world, rank=rank, **changes)) for rank in range(world)
    ]
    accumulation = len(ranks[0][min(ranks[0])])
    return {
        step: [row for micro_step in range(accumulation) for rank in ranks for row in rank[step][micro_step]]
        for step in ranks[0]
    }
