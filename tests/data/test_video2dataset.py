"""A folder as video2dataset leaves it: tars with members of its form, parquet files and statistics beside them."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from loading import clip_loader
from tars import write_tar

from tgm_scale.contracts import Grid
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.encode import encode_video

CAPTIONS: dict[str, str | list[str] | None] = {  # of each row, as the caption column has it
    "000000000": "a man rows",
    "000000001_00000": ["a dog runs", "ein Hund läuft", "un chien court"],
    "000000001_00001": ["a cat", "a cat sits"],
    "-00000002": ["one alone"],
    "000000003": ["never fetched", "and so left out"],
    "000000004": None,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """In each row's text file stands what Python prints of a list: only the json tells the captions apart."""
    shards: dict[int, list[tuple[str, bytes]]] = defaultdict(list)
    for number, (key, caption) in enumerate(CAPTIONS.items()):
        noise = np.random.default_rng(number).integers(0, 256, (8, 16, 20, 3)).astype(np.uint8)
        fetched = key != "000000003"
        meta = {"url": f"https://example.com/{number}", "key": key, "caption": caption, "clips": [[0.0, 0.32]]}
        status = {"status": "success", "error_message": None} if fetched else {"status": "failed_to_download"}
        members = shards[number // 3]
        if fetched:
            members.append((f"{key}.mp4", encode_video(noise, fps=25)))
        members.append((f"{key}.txt", str("" if caption is None else caption).encode()))
        members.append((f"{key}.json", json.dumps(meta | status, indent=4).encode()))
    for number, written in shards.items():
        write_tar(tmp_path / f"{number:05d}.tar", written)
        (tmp_path / f"{number:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{number:05d}_stats.json").write_text("{}")
    return tmp_path


def test_each_of_a_rows_captions_is_drawn_and_what_was_not_fetched_is_counted(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert len(corpus) == 5 and corpus.left_out == {"no_video": 1}
    loader = clip_loader(
        [corpus], frames=4, stride=1, size=16, grid=Grid(2, 2, 2), seed=0, global_batch_size=5, micro_batch_size=5,
        rank=0, world_size=1, workers=0, stop_step=30, caption_sets=True,
    )  # fmt: skip
    drawn, sets, broken = defaultdict(set), {}, set()
    for _, [batch] in loader:  # an epoch each
        assert len(set(batch.keys)) == 5
        broken |= {(problem.key, problem.reason) for problem in batch.problems}
        assert batch.caption_sets is not None
        for key, caption, caption_set in zip(batch.keys, batch.captions, batch.caption_sets):
            drawn[key.partition("/")[2]].add(caption)
            sets[key.partition("/")[2]] = caption_set
    assert broken == {("00001/000000004", "no_caption")}
    del drawn["000000004"], sets["000000004"]
    expected = {key: caption for key, caption in CAPTIONS.items() if key in sets and caption is not None}
    assert sets == {key: caption if isinstance(caption, list) else [caption] for key, caption in expected.items()}
    assert drawn == {key: set(captions) for key, captions in sets.items()}
