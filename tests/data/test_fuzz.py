"""1,000 fuzzed samples among 250 good ones, through the loader and through a real training run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import CERTAIN, files_below, write_corpus
from launch import run
from loading import clip_loader

from tgm_scale.contracts import Grid
from tgm_scale.data.shards.opening import open_corpus

FUZZED, GOOD = 1000, 250
REASONS = {"empty", "not_a_video", "truncated", "damaged", "no_frames", "too_large"}

RUN = """
run: {{dir: {run}}}
data: {{shards: {shards}, frames: 4, stride: 2, size: 32, workers: 2, max_skipped_share: 1.0}}
masking: {{mask_ratio: 0.75}}
model: {{size: tiny}}
objective: {{contrastive_weight: 0}}
train: {{epochs: 1, global_batch_size: 64, micro_batch_size: 64}}
log: {{tensorboard: false}}
"""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("fuzz") / "inside" / "shards"
    folder.parent.mkdir()
    return folder, write_corpus(folder, FUZZED, GOOD)


def test_all_good_samples_arrive_and_each_bad_one_under_its_reason(
    fuzzed: tuple[Path, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, good = fuzzed
    corpus = open_corpus(folder)
    assert len(corpus) == FUZZED + GOOD and not corpus.left_out
    around = list(files_below(folder.parents[1]))
    loader = clip_loader(
        [corpus],
        frames=4,
        stride=2,
        size=16,
        grid=Grid.of(4, 16, 2, 8),
        seed=0,
        global_batch_size=50,
        micro_batch_size=50,
        rank=0,
        world_size=1,
        workers=0,
        stop_step=(FUZZED + GOOD) // 50,
    )
    whole, reasons = [], Counter[tuple[str, str]]()
    for _, [batch] in loader:
        named = {problem.key: problem for problem in batch.problems}
        for key, weight, caption in zip(batch.keys, batch.weight.tolist(), batch.captions):
            assert (weight == 0) == (key in named)
            if weight:
                whole.append(key)
                assert caption == f"clip {''.join(filter(str.isdigit, key.partition('/')[2]))}"
            else:
                reasons[key.rpartition("-")[2], named[key].reason] += 1
    assert set(good) <= set(whole) and len(set(whole)) == len(whole)
    assert {reason for _, reason in reasons} <= REASONS
    assert len(whole) + reasons.total() == FUZZED + GOOD
    passed = Counter(key.rpartition("-")[2] for key in whole)
    assert not CERTAIN & passed.keys() and "frame_bomb" in {kind for kind, _ in reasons}
    assert reasons.total() > 0.6 * FUZZED, "most bytes that are wrong are noticed"
    assert list(files_below(folder.parents[1])) == around, "nothing was written anywhere"
    assert capfd.readouterr() == ("", "")


def test_training_goes_through_an_epoch_of_them(fuzzed: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, good = fuzzed
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(run=tmp_path / "run", shards=folder))
    run(1, ["-m", "tgm_scale", "pretrain", "--config", str(path)])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and all(row["loss"] == row["loss"] for row in rows)
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped_samples"] == len(skipped) > 600
    assert not {row["key"] for row in skipped} & set(good)
    assert {row["reason"] for row in skipped} <= REASONS
