"""Recipes that need more than noise, by the real command and through the guide: the same masks in any layout."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from launch import run
from short_run import moving_texture

from tgm_scale.assembly.parts import clip_loader
from tgm_scale.assembly.run_plan import plan_pretraining, run_masker
from tgm_scale.assembly.towers import load_towers
from tgm_scale.config import Config, from_tree
from tgm_scale.contracts import Batch
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.masking.recipes import RECIPES
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.distributed import ProcessInfo, find_process
from tgm_scale.training.clip_guidance import ClipGuidance

KEYFRAMES_ONLY = 3  # of 12 clips


def intra_only(frames: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=12, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips of a patch that moves over a still texture, each with three captions; some hold keyframes only."""
    folder = tmp_path_factory.mktemp("maskers") / "shards"
    with ShardWriter(folder, clips_per_shard=6) as writer:
        for i in range(12):
            still, patch = moving_texture(i)[:1], moving_texture(100 + i)[0, :32, :32]
            frames = still.repeat(14, 0)
            for t in range(14):
                frames[t, 8 + 3 * t : 40 + 3 * t, 4 * t : 4 * t + 32] = patch
            data = intra_only(frames) if i < KEYFRAMES_ONLY else encode_video(frames, 12)
            writer.write(f"c{i:02d}", {"mp4": data, "json": {"captions": [f"texture {i}", f"{i} moving", "moving"]}})
    return folder


def tree(corpus: Path, towers: Path, folder: Path, recipe: str) -> dict:
    return {
        "run": {"dir": str(folder)},
        "data": {"shards": str(corpus), "frames": 4, "stride": 2, "size": 32, "workers": 0},
        "guidance": {"towers": str(towers)},
        "masking": {"recipe": recipe, "mask_ratio": 0.75},
        "model": {"size": "tiny"},
        "objective": {"contrastive_weight": 0.0},
        "train": {"steps": 3, "global_batch_size": 12, "micro_batch_size": 4},
    }


def loader_of(config: Config, opened: list[Corpus], process: ProcessInfo, steps: range) -> ClipLoader:
    return clip_loader(plan_pretraining(config, process), config.data, config.guidance, config.run.seed, opened, steps)


def guided(settings: dict, micro: int, world: int) -> tuple[dict[int, list[int]], list[Batch], ClipGuidance]:
    """Visible tokens by sample seed of the first step, put together from all ranks."""
    config = from_tree(settings | {"train": settings["train"] | {"micro_batch_size": micro}})
    process = find_process()
    masker = run_masker(config)
    guidance = ClipGuidance(
        masker, load_towers(config.guidance, masker.needs, False, process.device), ToDevice(process.device)
    )
    opened, masks, batches = [open_corpus(settings["data"]["shards"])], {}, []
    for rank in range(world):
        loader = loader_of(config, opened, dataclasses.replace(process, rank=rank, world_size=world), range(1))
        for batch in next(iter(loader))[1]:
            visible = guidance(batch).mask.visible.tolist()
            masks |= dict(zip(batch.seeds.tolist(), visible))
            batches.append(batch)
    return masks, batches, guidance


@pytest.mark.parametrize("recipe", sorted(RECIPES.keys() - {"adamae", "automae"}))  # learned: test_learned_masks.py
def test_a_sample_has_the_same_mask_on_any_rank_and_in_any_batch(
    recipe: str, corpus: Path, towers: Path, tmp_path: Path
) -> None:
    if recipe == "flow_guided":
        pytest.importorskip("cv2", reason="OpenCV is not installed")
    settings = tree(corpus, towers, tmp_path, recipe)
    masks, _, guidance = guided(settings, micro=12, world=1)
    assert len(masks) == 12 and {len(visible) for visible in masks.values()} == {guidance.masker.visible_count}
    assert guided(settings, micro=3, world=2)[0] == masks
    assert guided(settings, micro=1, world=4)[0] == masks


def test_motion_guided_runs_from_end_to_end_and_counts_clips_without_motion(
    corpus: Path, towers: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(str(tree(corpus, towers, tmp_path / "run", "motion_guided")))
    run(1, ["-m", "tgm_scale", "pretrain", "--config", str(file)], 0)
    run(2, ["-m", "tgm_scale", "pretrain", "--config", str(file), f"run.dir={tmp_path / 'two'}",
            "train.micro_batch_size=2"], 0)  # fmt: skip
    rows, other = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "two")
    assert len(rows) == 3 and all(np.isfinite(row["loss"]) for row in rows)
    assert [row["data_digest"] for row in rows] == [row["data_digest"] for row in other]
    assert rows[0]["mask_without_motion"] == KEYFRAMES_ONLY / 12  # a step is an epoch here


def test_parts_are_hidden_by_the_step_of_the_run(corpus: Path, towers: Path, tmp_path: Path) -> None:
    """At step t of T a run's masks are those of a run whose whole_parts is (t / T)^2 throughout."""
    file, digests = tmp_path / "run.yaml", {}
    file.write_text(str(tree(corpus, towers, tmp_path / "run", "part_based")))
    for share, world_size in (("[0, 1]", 2), (0.25, 1), (1, 1)):
        folder = tmp_path / f"run-{share}"
        settings = [f"masking.options={{whole_parts: {share}}}", f"run.dir={folder}", "train.steps=2",
                    "train.micro_batch_size=3"]  # fmt: skip
        run(world_size, ["-m", "tgm_scale", "pretrain", "--config", str(file), *settings], 0)
        digests[share] = [row["data_digest"] for row in read_metrics(folder)]
    assert digests["[0, 1]"] == [digests[0.25][0], digests[1][1]] and digests[0.25][1] != digests[1][1]


def test_the_moving_box_hides_what_moves(corpus: Path, towers: Path, tmp_path: Path) -> None:
    """The fastest tokens of a clip are hidden, but for those that the box cannot reach."""
    settings = tree(corpus, towers, tmp_path, "motion_guided")
    _, batches, guidance = guided(settings, micro=12, world=1)
    motion = batches[0].motion
    assert motion is not None
    hidden = guidance.masker.hidden(batches[0].seeds, motion=motion)
    fast = motion > 0.7 * motion.flatten(1).amax(1)[:, None, None, None].clamp(min=1e-6)
    assert hidden[fast].float().mean() > 0.93 > 0.75


def test_relevance_may_be_the_mean_over_a_clips_captions(corpus: Path, towers: Path, tmp_path: Path) -> None:
    """Against one pass for each caption, and averaged."""
    settings = tree(corpus, towers, tmp_path, "text_guided")
    settings["guidance"]["captions"] = "mean"
    _, [batch], guidance = guided(settings, micro=12, world=1)
    assert batch.caption_sets is not None and all(len(captions) == 3 for captions in batch.caption_sets)
    towers_ = guidance.towers
    assert towers_.text is not None and towers_.relevance is not None
    embeddings = towers_.text.encode([caption for captions in batch.caption_sets for caption in captions])
    each = towers_.relevance.of_captions(batch.video, embeddings.view(12, 3, -1), guidance.masker.grid)
    relevance, *_ = guidance._relevance(batch, towers_.text.encode(batch.captions), 1)
    assert torch.allclose(relevance, each.mean(1), atol=1e-6)
    settings["guidance"]["captions"] = "drawn"
    _, [batch], guidance = guided(settings, micro=12, world=1)
    assert batch.caption_sets is None
    drawn, *_ = guidance._relevance(batch, towers_.text.encode(batch.captions), 1)
    assert not torch.allclose(drawn, relevance, atol=1e-3)


@pytest.mark.parametrize("workers", [0, 2])
def test_flow_of_the_data_workers_is_that_of_the_training_thread(
    shards: Path, towers: Path, tmp_path: Path, workers: int
) -> None:
    """To the bit, of every clip of a sample and of broken samples, too; so are the masks."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    settings = tree(shards, towers, tmp_path, "flow_guided")
    settings["data"] |= {"workers": workers, "repeated_augmentation": 2, "flip": True, "max_skipped_share": 1.0}
    settings["train"] = {"steps": 3, "global_batch_size": 32, "micro_batch_size": 32}
    config, process = from_tree(settings), find_process()
    masker = run_masker(config)
    guidance = ClipGuidance(
        masker, load_towers(config.guidance, masker.needs, False, process.device), ToDevice(process.device)
    )
    problems = 0
    for _, [batch] in loader_of(config, [open_corpus(str(shards))], process, range(3)):
        assert batch.flow is not None and batch.flow.shape == (32, 4, 2, 8, 8)
        there, here = guidance(batch), guidance.compute(dataclasses.replace(batch, flow=None))
        flow = here.maps["flow"]
        assert flow is not None and torch.equal(batch.flow, flow) and flow.any()
        assert torch.equal(there.mask.visible, guidance.prepare(here).mask.visible)
        problems += len(batch.problems)
    assert problems, "the corpus has broken samples"


def test_the_alarm_looks_at_other_samples_and_no_caption_is_tokenised_twice(
    corpus: Path, towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeats of a sample stand side by side: the caption of the clip before may be the clip's own."""
    settings = tree(corpus, towers, tmp_path, "text_guided")
    settings["data"] |= {"repeated_augmentation": 3}
    _, [batch], guidance = guided(settings, 12, 1)
    text, relevance = guidance.towers.text, guidance.towers.relevance
    assert text is not None and relevance is not None
    texts_BE = text.encode(batch.captions)
    found, wanted = (
        guidance.compute(batch),
        relevance.of_captions(batch.video, texts_BE.roll(3, 0)[:, None], guidance.masker.grid),
    )
    assert found.swapped_BSRC is not None and found.shift == 3
    torch.testing.assert_close(found.swapped_BSRC, wanted[:, 0])

    _, _, fresh = guided(settings | {"train": settings["train"] | {"global_batch_size": 3}}, 3, 1)
    text = fresh.towers.text
    assert text is not None
    seen, tokenize = [], text.tokenize
    monkeypatch.setattr(text, "tokenize", lambda captions: seen.extend(captions) or tokenize(captions))
    fresh(batch)
    assert len(seen) == len(set(seen)) > 1
