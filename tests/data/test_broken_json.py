"""A sample whose json is none is left out as such, by the loader and where labels are read; the others are not."""

from __future__ import annotations

import pytest
from loading import clip_loader
from tars import write_tar

from tgm_scale.contracts import Grid
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.evaluation.labelled import read_labels

BROKEN = {
    "nested": b"[" * 100_000,
    "closed": b'{"label": ' + b"[" * 600 + b"]" * 600 + b"}",
    "bytes": b'{"caption": "\xff"}',
    "cut": b'{"caption": "a do',
    "list": b"[]",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    members = [("whole.mp4", b"no video"), ("whole.json", b'{"caption": "a", "label": "x", "score": NaN}')]
    for name, data in BROKEN.items():
        members += [(f"{name}.mp4", b"no video"), (f"{name}.json", data)]
    return open_corpus(write_tar(tmp_path_factory.mktemp("corpus") / "0.tar", members))


def test_the_loader_counts_it(corpus: Corpus) -> None:
    size = len(corpus)
    loader = clip_loader(
        [corpus], frames=2, stride=1, size=8, grid=Grid.of(2, 8, 2, 4), seed=0, global_batch_size=size,
        micro_batch_size=size, rank=0, world_size=1, workers=0, stop_step=1,
    )  # fmt: skip
    _, [batch] = next(iter(loader))
    reasons = {problem.key: problem.reason for problem in batch.problems}
    assert reasons == {"0/whole": "not_a_video", **{f"0/{name}": "broken_json" for name in BROKEN}}


def test_labels_count_it(corpus: Corpus) -> None:
    labels, problems = read_labels(corpus, "label")
    assert labels == {"0/whole": "x"}
    assert {problem.key: problem.reason for problem in problems} == {f"0/{name}": "broken_json" for name in BROKEN}
    assert all(len(problem.detail) < 200 for problem in problems)
