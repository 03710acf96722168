"""Frozen features: the definition, every sample once, broken samples and labels, a checkpoint beside a fresh model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import encoder_of
from tgm_scale.data.access import patience
from tgm_scale.data.lists.reading import Selection
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.decode import decode_clip
from tgm_scale.demo.corpus.make import SyntheticSpec, make_sample
from tgm_scale.evaluation import clips, finite
from tgm_scale.evaluation.cache import Clips
from tgm_scale.evaluation.clips import fitting
from tgm_scale.evaluation.features import FrozenEncoder, cached, extract
from tgm_scale.evaluation.labelled import SYNTHETIC_MOTION, open_labelled
from tgm_scale.evaluation.views import Decoding, Views
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions, ModelSize
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo

SIZE = ModelSize(24, 1, 2, 48, 16, 1, 2, 32, patch=8)  # as in conftest.py
SPEC = SyntheticSpec(size=32, frames=8, mode="one_mover")
CLIPS = 37


@pytest.mark.parametrize("shape", [(0,), (0, 24), (0, 4, 24)])
def test_a_chunk_of_which_no_clip_can_be_decoded_has_no_bad_row(shape: tuple[int, ...]) -> None:
    assert finite.first_not_finite(torch.zeros(shape)) is None


def test_features_are_the_mean_token_of_the_decoded_clip(shards: str, checkpoint: Path) -> None:
    corpus = open_corpus(shards)
    encoder = FrozenEncoder.load(checkpoint)
    assert encoder.stride == 2
    found = extract([encoder], corpus, SYNTHETIC_MOTION)
    model = MaskedVideoAutoencoder(SIZE, frames=4, image_size=32, options=ModelOptions("sdpa"), seed=7)
    for shard, row in ((0, 0), (3, 6)):
        ref = corpus.sample(shard, row)
        members = corpus.read(ref, ["mp4", "json"])
        clip = decode_clip(members["mp4"], 4, 2, 0.5)
        video = torch.from_numpy(clip.video).permute(3, 0, 1, 2)[None]
        wanted = model.encode(video).mean(1)[0]
        assert (wanted - found.features[0][found.keys.index(ref.name)]).abs().max() < 1e-5
        truth = json.loads(members["json"])["truth"]["objects"][0]["motion"]
        assert found.labels[found.keys.index(ref.name)] == truth


def test_every_sample_is_there_once_whatever_the_workers(shards: str, checkpoint: Path) -> None:
    encoder = FrozenEncoder.load(checkpoint)
    counted: list[int] = []
    one = extract([encoder], open_corpus(shards), SYNTHETIC_MOTION, progress=counted.append)
    other = extract([encoder], open_corpus(shards), SYNTHETIC_MOTION, workers=2)
    assert len(set(one.keys)) == len(one.keys) == CLIPS == sum(counted)
    assert one.keys == other.keys and one.labels == other.labels and not one.problems
    assert torch.equal(one.features[0], other.features[0])


@pytest.mark.parametrize(
    ("cores", "ranks", "workers", "samples", "wanted"),
    [(2, 1, 8, 72, 1), (2, 1, 8, 10_000, 2), (64, 8, 8, 10_000, 8), (64, 8, 16, 10_000, 8), (2, 8, 8, 10_000, 1),
     (64, 1, 8, 63, 0), (64, 1, 0, 10_000, 0), (64, 1, 8, 200, 3)],
)  # fmt: skip
def test_decoding_processes_go_by_the_cores_and_the_clips(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, workers: int, samples: int, wanted: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert fitting(workers, samples) == wanted


def test_several_encoders_share_one_pass(shards: str, checkpoint: Path) -> None:
    encoder = FrozenEncoder.load(checkpoint)
    fresh = encoder.fresh(seed=7)
    found = extract([encoder, fresh, encoder.fresh(seed=8)], open_corpus(shards), SYNTHETIC_MOTION)
    assert torch.equal(found.features[0], found.features[1]), "the checkpoint is the fresh model of seed 7"
    assert not torch.allclose(found.features[0], found.features[2])


def test_broken_clips_and_missing_labels_are_named_and_left_out(tmp_path: Path, checkpoint: Path) -> None:
    with ShardWriter(tmp_path, clips_per_shard=100) as writer:
        for index in range(6):
            key, members = make_sample(index, SPEC)
            if index == 1:
                members["mp4"] = members["mp4"][:200]
            if index == 2:
                members["json"] = {"caption": "no truth here"}
            writer.write(key, members)
    found = extract([FrozenEncoder.load(checkpoint)], open_corpus(str(tmp_path)), SYNTHETIC_MOTION)
    assert len(found.keys) == 4
    named = {(problem.key.rsplit("/")[-1], problem.reason) for problem in found.problems}
    assert {("one_mover_000002", "no_label")} < named and len(named) == 2
    assert {key for key, _ in named} == {"one_mover_000001", "one_mover_000002"}


def test_a_label_that_no_sample_has_is_a_mistake(shards: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"no sample's json has a value at 'lable'"):
        extract([FrozenEncoder.load(checkpoint)], open_corpus(shards), "lable")
    with pytest.raises(ValueError, match="is no single value"):
        extract([FrozenEncoder.load(checkpoint)], open_corpus(shards), "truth.objects")


def test_features_kept_are_of_the_same_positions(checkpoint: Path) -> None:
    plain, moved = FrozenEncoder.load(checkpoint), FrozenEncoder.load(checkpoint, frames=8)
    assert moved.positions is not None and moved.digest != plain.digest
    other_heads = replace(plain, size=replace(plain.size, heads=plain.size.heads * 2))
    assert other_heads.digest != plain.digest == FrozenEncoder.load(checkpoint).digest


def test_positions_that_a_file_brings_are_known(checkpoint: Path) -> None:
    moved = encoder_of(read(checkpoint)).at(8, read(checkpoint).image_size)
    assert FrozenEncoder.of(moved, checkpoint).positions == moved.positions is not None
    assert FrozenEncoder.of(moved, checkpoint).digest == FrozenEncoder.load(checkpoint, frames=8).digest


def test_a_pass_that_is_asked_to_stop_keeps_its_chunks_and_goes_on_from_them(
    shards: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finetuning's test did not hear the signal before a time limit."""
    monkeypatch.setattr(clips, "CHUNK", 2)
    source, decoded = open_labelled(shards, Selection(label=SYNTHETIC_MOTION)), list[int]()
    decoding = Decoding(Views(4, 32, 2), 0, decoded.append)
    alone = HostCollectives(ProcessInfo(0, 1, 0, torch.device("cpu")))

    def made(asked: Callable[[], bool]) -> Clips:
        decoded.clear()
        with patience.waits_end_when(asked):
            return cached(tmp_path, FrozenEncoder.load(checkpoint), source, decoding, "mean", alone)

    with pytest.raises(patience.Stopped, match=r"^stopped during a pass over the clips$"):
        made(lambda: sum(decoded) >= 5)
    assert sum(decoded) == 5, "no clip more is decoded"
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert len(kept) == 2
    assert len(made(lambda: False).keys) == CLIPS and sum(decoded) == CLIPS - 4
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())


def test_as_many_other_clips_of_a_corpus_have_features_of_their_own(
    shards: str, checkpoint: Path, tmp_path: Path
) -> None:
    """In one folder, as a study shares it: those that have another label."""
    whole, encoder = open_labelled(shards, Selection(label=SYNTHETIC_MOTION)), FrozenEncoder.load(checkpoint)
    names = sorted(whole.labels)[:8]
    decoding, alone = Decoding(encoder.views()), HostCollectives(ProcessInfo(0, 1, 0, torch.device("cpu")))
    for chosen in (names[:6], names[2:], names[:6]):
        source = replace(whole, labels={name: whole.labels[name] for name in chosen})
        found = cached(tmp_path, encoder, source, decoding, "mean", alone)
        assert found.keys == chosen and found.labels == [whole.labels[name] for name in chosen]
