"""Augmentation for finetuning: keyed by the clip, alike in all frames, nothing left in the global generators."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import environment

from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.finetuning.augment import Augmenter, PairMixer
from tgm_scale.models.patches import IMAGENET_MEAN

CLASSES = 3


def still(seed: int = 0) -> torch.Tensor:
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return frame.repeat(4, 1, 1, 1)


def test_all_frames_of_a_clip_get_the_same_operations_and_each_clip_its_own() -> None:
    augmenter = Augmenter("rand-m7-n4-mstd0.5-inc1", 0.0, 32)
    clips = [augmenter(still(), seed) for seed in range(6)]
    for clip in clips:
        assert clip.shape == still().shape and clip.dtype == torch.uint8
        assert all(torch.equal(frame, clip[0]) for frame in clip)
    assert len({clip.numpy().tobytes() for clip in clips}) > 3
    assert torch.equal(clips[3], augmenter(still(), 3))


def test_erasing_puts_noise_of_the_imagenet_mean_in_one_box() -> None:
    augmenter = Augmenter(None, 1.0, 32)
    video = still()
    erased = augmenter(video, seed=1)
    changed = (erased != video).any(-1)
    rows, columns = changed[0].any(1).nonzero()[:, 0], changed[0].any(0).nonzero()[:, 0]
    box = changed[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert box.double().mean() > 0.98 and changed.sum() == box.sum()
    assert 0.02 * 32**2 < box[0].numel() < 0.4 * 32**2
    mean = erased[changed].double().mean(0) / 255
    assert (mean - torch.tensor(IMAGENET_MEAN, dtype=torch.float64)).abs().max() < 0.1
    assert torch.equal(Augmenter(None, 0.0, 32)(video, 1), video)


def test_a_shift_moves_the_picture_by_the_clips_own_draw_and_black_comes_in() -> None:
    video, augmenter = still() // 2 + 1, Augmenter(None, 0.0, 32, 0.1)  # nothing is black; by up to 3 pixels
    places = set()
    for seed in range(60):
        moved = augmenter(video, seed)
        assert torch.equal(moved, augmenter(video, seed))
        rows, columns = ((moved[0, :, :, 0] > 0).any(axis).nonzero()[:, 0] for axis in (1, 0))
        down, right = (int(part[0]) or int(part[-1]) - 31 for part in (rows, columns))
        places.add((down, right))
        wanted = torch.nn.functional.pad(video, (0, 0, 3, 3, 3, 3))[:, 3 - down : 35 - down, 3 - right : 35 - right]
        assert torch.equal(moved, wanted)
    assert {down for down, _ in places} == {right for _, right in places} == set(range(-3, 4))
    assert len(places) > 30


def test_the_global_generators_stay_as_they_were() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    Augmenter("rand-m7-n2", 1.0, 32)(still(), 5)
    mix(PairMixer(0.8, 1.0, 0.1, CLASSES, 1), torch.arange(4))
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())


def test_words_that_timm_does_not_know_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"finetune.rand_augment=strong: timm does not know it"):
        Augmenter("strong", 0.0, 32)


def test_a_worker_augments_to_the_same_bits(shards: str) -> None:
    from loading import clip_loader

    from tgm_scale.contracts import Grid
    from tgm_scale.data.loading.loader import ClipLoader
    from tgm_scale.finetuning.augment import AugmentedSamples

    def loader(workers: int) -> ClipLoader:
        return clip_loader(
            [open_corpus(shards)], frames=4, stride=2, size=32, grid=Grid(2, 4, 4), seed=0, global_batch_size=4,
            micro_batch_size=4, rank=0, world_size=1, workers=workers, stop_step=1, captions=False,
        )  # fmt: skip

    def first(of: ClipLoader) -> torch.Tensor:
        return next(iter(of))[1][0].video.clone()

    augmented = [loader(workers) for workers in (0, 1)]
    for one in augmented:
        one.samples = AugmentedSamples(one.samples, Augmenter("rand-m7-n4", 1.0, 32))
    here, there = map(first, augmented)
    assert torch.equal(here, there) and not torch.equal(here, first(loader(0)))


def batch(seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Clips whose every pixel is 10 times their seed, labels by seed."""
    video = (10 * seeds.view(-1, 1, 1, 1, 1)).expand(-1, 3, 2, 16, 16).to(torch.uint8)
    return video, seeds % CLASSES, seeds.tolist()


def mix(mixer: PairMixer, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return mixer(*batch(seeds), [1.0] * len(seeds))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_pixels_and_targets_are_mixed_by_the_same_share(mixup: float, cutmix: float) -> None:
    video, targets = mix(PairMixer(mixup, cutmix, 0.0, CLASSES, 1), torch.arange(1, 9))
    assert torch.allclose(targets.sum(1), torch.ones(8))
    for first in range(0, 8, 2):
        own = targets[first, (first + 1) % CLASSES].item()
        mean = video[first].mean().item() / 10
        assert mean == pytest.approx(own * (first + 1) + (1 - own) * (first + 2), abs=1e-3)
    assert targets.max(1).values.lt(1).sum() > 0, "something was mixed"


def test_a_mixture_does_not_depend_on_the_batch_it_is_in() -> None:
    mixer = PairMixer(0.8, 1.0, 0.1, CLASSES, repeats=2)
    whole = mix(mixer, torch.arange(8))
    parts = [mix(mixer, torch.arange(4)), mix(mixer, torch.arange(4, 8))]
    for k in range(2):
        assert torch.equal(whole[k], torch.cat([part[k] for part in parts]))
    # repeats of a video are neighbours: clip 0 is mixed with clip 2, of the next video, not with clip 1
    assert set((whole[0][0] / 10).unique().tolist()) <= {0.0, 2.0} or 0 < whole[0][0].unique().item() < 20


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_broken_clip_gives_its_partner_neither_pixels_nor_label(repeats: int) -> None:
    """The partner stays as it is; the other pairs are mixed as ever."""
    mixer, seeds = PairMixer(0.8, 1.0, 0.1, CLASSES, repeats), torch.arange(1, 9)
    video, labels, keys = batch(seeds)
    weights = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    whole, broken = mixer(video, labels, keys, [1.0] * 8), mixer(video, labels, keys, weights)
    partner = [clip ^ repeats for clip in range(8)]
    for clip in range(8):
        if weights[clip] and weights[partner[clip]]:
            assert all(torch.equal(one[clip], other[clip]) for one, other in zip(whole, broken))
        else:
            assert torch.equal(broken[0][clip], video[clip].float())
            alone = torch.full((CLASSES,), 0.1 / CLASSES)
            alone[labels[clip]] += 0.9
            torch.testing.assert_close(broken[1][clip], alone)


def test_without_mixing_targets_are_smoothed_and_clips_stay() -> None:
    video, targets = mix(PairMixer(0.0, 0.0, 0.3, CLASSES, 1), torch.arange(3))
    assert video.dtype == torch.uint8
    torch.testing.assert_close(targets, torch.eye(3) * 0.7 + 0.1)


def test_timm_is_imported_without_wandb_and_leaves_no_folder(tmp_path: Path) -> None:
    """Every finetuning left two in TMPDIR, and imported for a second longer."""
    code = (
        "import os, sys; from tgm_scale.finetuning.augment import Augmenter; Augmenter('rand-m7-n4', 0.25, 32)\n"
        "print('timm.utils' in sys.modules, 'wandb' in sys.modules, flush=True); os._exit(0)"  # as a command ends
    )
    given = {**environment(), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
    assert not list(tmp_path.glob("*wandb*"))
