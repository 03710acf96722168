"""The pipeline of SPDL decodes the frames and cuts the boxes of the others'."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tgm_scale.benchmarks import pipelines, spdl
from tgm_scale.benchmarks.clips import VideoFormat, make_shards
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
