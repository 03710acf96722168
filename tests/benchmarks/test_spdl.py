"""The pipeline of SPDL decodes the frames and cuts the boxes of the others'."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tgm_scale.benchmarks import pipelines, spdl
from tgm_scale.benchmarks.clips import VideoFormat, make_shards
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.opening import open_corpus


def test_it_makes_the_same_clips(tmp_path: Path) -> None:
    if why := spdl.missing():
        pytest.skip(why)
    corpus = open_corpus(str(make_shards(tmp_path / "clips", 4, VideoFormat(128, 96))))
    for data, seed in itertools.islice(pipelines.draws(corpus), 4):
        theirs = spdl.clip(data, seed).float()
        ours, others = (pipelines.clip(data, of).float() for of in (seed, seed + 1))
        near, far = ((theirs - clip).abs().mean() for clip in (ours, others))
        assert theirs.shape == ours.shape and near < 0.5 * far, "other frames, or another box"
    assert list(itertools.islice(spdl.clips_of(corpus, 2), 16)) == [1] * 16


@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_is_ready_than_is_thrown_away_before_a_turn(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a turn would count clips that were decoded before it."""
    if why := spdl.missing():
        pytest.skip(why)
    corpus = open_corpus(str(make_shards(tmp_path / "clips", 4, VideoFormat(64, 48))))
    drawn: list[int] = []

    def counted(corpus: Corpus) -> Iterator[tuple[bytes, int]]:
        for data, seed in pipelines.draws(corpus):
            drawn.append(seed)
            yield data, seed

    monkeypatch.setattr(spdl, "draws", counted)
    clips = spdl.clips_of(corpus, threads)
    asked = pipelines.BATCH
    assert list(itertools.islice(clips, asked)) == [1] * asked
    before = -1
    while len(drawn) != before:
        before = len(drawn)
        time.sleep(1)
    assert asked < len(drawn) <= asked + spdl.ahead(threads)
