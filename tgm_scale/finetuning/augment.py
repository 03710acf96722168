"""Augmentation for finetuning by timm, keyed by the clip.

RandAugment and random erasing run in the loader's processes, mixup and cutmix on the batch. timm draws from the global
generators of random, numpy and torch; they are seeded for each call and restored after it.

Shapes: B clips, R repeats of a video, C classes, T frames.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Fetched, Sample
from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD
from tgm_scale.runtime import seeding
from tgm_scale.runtime.compat import prepare_timm

_ERASED_SHARE = (0.02, 1 / 3)  # of the frame's area, as in VideoMAE


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed the global generators by a key, and restore their states afterwards."""
    seed = seeding.key(*parts)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Augmenter:
    """RandAugment (Cubuk et al. 2020), random erasing (Zhong et al. 2020), shifts: the same in all frames of a clip.

    rand_augment: timm's configuration string, None for none. shift: the largest, as a share of `size`.
    Raises ValueError for a string that timm does not know."""

    def __init__(self, rand_augment: str | None, erasing: float, size: int, shift: float = 0.0) -> None:
        self._words = (rand_augment, erasing, size, shift)
        self._shift = round(shift * size)
        prepare_timm()
        from timm.data.auto_augment import rand_augment_transform
        from timm.data.random_erasing import RandomErasing

        mean = tuple(round(255 * x) for x in IMAGENET_MEAN)
        try:
            hints: dict[str, Any] = {"translate_const": int(0.45 * size), "img_mean": mean}
            self._operations = rand_augment_transform(rand_augment, hints) if rand_augment else None
        except (AssertionError, ValueError, KeyError) as error:
            raise ValueError(
                f"finetune.rand_augment={rand_augment}: timm does not know it ({error}): try rand-m7-n4-mstd0.5-inc1"
            ) from None
        low, high = _ERASED_SHARE
        self._erase = RandomErasing(erasing, low, high, mode="pixel", device="cpu") if erasing else None

    def __call__(self, video_THW3: Tensor, seed: int) -> Tensor:
        """Return the augmented clip, uint8 [T, H, W, 3], a new tensor if anything changed."""
        if self._shift:
            video_THW3 = shifted(video_THW3, *shift_of(seed, self._shift))
        if self._operations is not None:
            frames = []
            for frame in video_THW3.numpy():
                with seeded(seed, "rand augment"):  # for each frame: the same operations
                    frames.append(np.asarray(self._operations(Image.fromarray(frame))))
            video_THW3 = torch.from_numpy(np.stack(frames))
        return video_THW3 if self._erase is None else self._erased(video_THW3, seed)

    def __reduce__(self) -> tuple[type[Augmenter], tuple[str | None, float, int, float]]:
        """Rebuild from the arguments in a worker.

        Unpickling timm's objects would import timm before torchvision is prepared."""
        return Augmenter, self._words

    def _erased(self, video_THW3: Tensor, seed: int) -> Tensor:
        """Fill one box of all frames with noise of the ImageNet statistics."""
        assert self._erase is not None
        marked = torch.full((video_THW3.shape[0] * 3, *video_THW3.shape[1:3]), torch.nan)
        with seeded(seed, "erasing"):
            noise_T3HW = self._erase(marked).unflatten(0, (-1, 3))
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        pixels_THW3 = ((noise_T3HW * std + mean) * 255).clamp(0, 255).permute(0, 2, 3, 1)
        return torch.where(pixels_THW3.isnan(), video_THW3, pixels_THW3.nan_to_num().to(torch.uint8))


def shift_of(seed: int, most: int) -> tuple[int, int]:
    """Return the shift in pixels down and to the right, each from -most to most."""
    down, right = (int(draw * (2 * most + 1)) - most for draw in seeding.draw(seed, "shift", 2))
    return down, right


def shifted(video_THW3: Tensor, down: int, right: int) -> Tensor:
    """Shift the clip, black where its source ends: random crops of a padded picture (He et al. 2016, section 4.2)."""
    _, height, width, _ = video_THW3.shape
    moved_THW3 = torch.zeros_like(video_THW3)
    rows, columns = (slice(max(0, by), side + min(0, by)) for by, side in ((down, height), (right, width)))
    from_rows, from_columns = (slice(max(0, -by), side + min(0, -by)) for by, side in ((down, height), (right, width)))
    moved_THW3[:, rows, columns] = video_THW3[:, from_rows, from_columns]
    return moved_THW3


class AugmentedSamples(Samples):
    """Samples whose clips are augmented in the process that decodes them."""

    def __init__(self, samples: Samples, augmenter: Augmenter) -> None:
        super().__init__(samples.corpora, samples.mixture, samples.sampling)
        self._augmenter = augmenter

    def decode(self, fetched: Fetched, clips_NTHW3: Tensor) -> Sample:
        sample = super().decode(fetched, clips_NTHW3)
        if sample.problem is None:
            for clip_THW3, seed in zip(clips_NTHW3, sample.seeds):
                clip_THW3.copy_(self._augmenter(clip_THW3, seed))
        return sample


class PairMixer:
    """mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) of neighbours in the order of the run.

    Two successive videos are mixed, repeat by repeat, each with the other. They are always in one micro batch, so the
    mixture is the same for any number of processes. If one of the two has weight 0, the other keeps its pixels, label
    and weight. Targets are always smoothed."""

    def __init__(self, mixup: float, cutmix: float, smoothing: float, classes: int, repeats: int) -> None:
        prepare_timm()
        from timm.data.mixup import Mixup

        self._smoothing, self._classes, self._repeats = smoothing, classes, repeats
        self._mix: Any = None
        if mixup or cutmix:
            self._mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes)

    def __call__(
        self, video_BCTHW: Tensor, labels_B: Tensor, seeds: list[int], weights: list[float]
    ) -> tuple[Tensor, Tensor]:
        """Return (video float 0..255, targets [B, C]). seeds, weights: of the B clips."""
        off = self._smoothing / self._classes
        targets_BC = torch.full((len(labels_B), self._classes), off, device=labels_B.device)
        targets_BC.scatter_(1, labels_B[:, None], 1 - self._smoothing + off)
        if self._mix is None:
            return video_BCTHW, targets_BC
        folded = video_BCTHW.float().flatten(1, 2)  # timm's boxes span the last two dimensions, in all frames
        repeats = self._repeats
        for start in range(0, len(labels_B), 2 * repeats):
            for repeat in range(start, start + repeats):
                pair = slice(repeat, repeat + repeats + 1, repeats)
                if not all(weights[pair]):
                    continue
                with seeded(seeds[repeat], "mix"):
                    folded[pair], targets_BC[pair] = self._mix(folded[pair], labels_B[pair])
        return folded.unflatten(1, video_BCTHW.shape[1:3]), targets_BC
