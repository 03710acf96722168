"""Labelled still frames of the synthetic corpus, on which a small CLIP is trained.

Shapes: N images, P patches, K objects, C = colours x shapes concepts.
"""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from tgm_scale.demo.corpus.scenes import MOTIONS, Scenes, draw_scenes, render
from tgm_scale.demo.corpus.shapes import COLOURS, SHAPES
from tgm_scale.demo.corpus.truth import captions
from tgm_scale.runtime import seeding
from tgm_scale.runtime.outside.arrays import picture_of

_SHOWN, _TOUCHED = 0.4, 0.05  # share of a patch's pixels above which it shows an object, or is touched by one
_SEEN = 0.8  # patches' worth of pixels above which an object counts as seen in the image


def attributes() -> list[Tensor]:
    """Return the colour and the shape of each concept: int64 [C] each."""
    number = torch.arange(len(COLOURS) * len(SHAPES))
    return [number // len(SHAPES), number % len(SHAPES)]


def wording(seed: int) -> list[str]:
    """Return a caption of each concept, then one of each colour and of each shape alone, worded by the seed."""
    draws = seeding.draw(seed, "wording", 2 * len(COLOURS) * len(SHAPES))
    texts = []
    for colour in COLOURS:
        for shape in SHAPES:
            motion, form = MOTIONS[int(draws.pop() * len(MOTIONS))], draws.pop()
            forms = [*captions(colour, shape, motion), f"a {colour} {shape}"]
            texts.append(forms[int(form * len(forms))])
    return [*texts, *(f"something {colour}" for colour in COLOURS), *(f"a {shape}" for shape in SHAPES)]


def labelled_images(
    seed: int, start: int, count: int, difficulty: float, size: int, patch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images `start` to `start + count` - 1 of a seed, uint8 [N, 3, H, W]; the concept of each patch, int64 [N,
    P], -1 for none, -2 at an edge; and the concepts in the image, bool [N, C].

    One image in six has a single object. Difficulty is drawn up to the given one; most images are JPEG-compressed, as
    the frames of a clip are compressed."""
    keys = torch.tensor([seeding.key(seed, "labelled image", index) for index in range(start, start + count)])
    single = count // 6
    parts = [_draw("one_mover", keys[:single], difficulty, size), _draw("named", keys[single:], difficulty, size)]
    images, labels, present = [], [], []
    for scenes, image_N3HW, visible_NKHW in parts:
        share_NKP = visible_NKHW.float().unfold(2, patch, patch).unfold(3, patch, patch).mean((-1, -2)).flatten(2)
        number_NK = scenes.colour * len(SHAPES) + scenes.shape  # of the concept
        most_NP, which_NP = share_NKP.max(1)
        label_NP = torch.where(most_NP >= _TOUCHED, -2, -1)
        labels.append(torch.where(most_NP >= _SHOWN, number_NK.gather(1, which_NP), label_NP))
        seen_NK = share_NKP.sum(2) >= _SEEN
        holds = torch.zeros(len(number_NK), len(COLOURS) * len(SHAPES), dtype=torch.bool)
        present.append(holds.scatter_reduce(1, number_NK, seen_NK, "amax"))
        images.append(image_N3HW)
    return _compressed(torch.cat(images), keys), torch.cat(labels), torch.cat(present)


def _draw(mode: str, keys_N: Tensor, difficulty: float, size: int) -> tuple[Scenes, Tensor, Tensor]:
    scenes = draw_scenes(keys_N, mode, seeding.uniform(keys_N, 1, "difficulty")[:, 0] * difficulty)
    frames, visible = render(scenes, seeding.uniform(keys_N, 1, "time"), size)
    return scenes, frames[:, 0], visible[:, 0]


def _compressed(image_N3HW: Tensor, keys_N: Tensor) -> Tensor:
    draws = seeding.uniform(keys_N, 2, "jpeg").tolist()
    return torch.stack(
        [
            _jpeg(image, int(40 + 55 * quality)) if chance < 0.6 else image
            for image, (chance, quality) in zip(image_N3HW, draws, strict=True)
        ]
    )


def _jpeg(image_3HW: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    Image.fromarray(image_3HW.permute(1, 2, 0).contiguous().numpy()).save(stream, "JPEG", quality=quality)
    return torch.from_numpy(picture_of(stream.getvalue(), ("JPEG",)).copy()).permute(2, 0, 1)
