"""One clip under every recipe: what is drawn, by its pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tgm_scale.assembly.learned_masks import needs_checkpoint
from tgm_scale.demo.gallery import PATCH, SIDE, gallery
from tgm_scale.masking.recipes import RECIPES


def test_every_recipe_has_its_row_and_hides_its_share() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    drawn = gallery(1, mask_ratio=0.75)
    assert drawn.left_out == [needs_checkpoint("adamae"), needs_checkpoint("automae")] and drawn.caption
    strip = np.asarray(Image.open(io.BytesIO(drawn.strip)).convert("RGB"))
    step, rows = SIDE + 6, 1 + len(RECIPES) - len(drawn.left_out)
    assert strip.shape == (rows * step - 6, 150 + 8 * step, 3)
    veil = np.array([236, 238, 241])
    for row in range(rows):
        hidden = []
        for slot in range(8):
            tile = strip[row * step : row * step + SIDE, 150 + slot * step : 150 + slot * step + SIDE]
            tokens = tile.reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH, 3)
            hidden.append((tokens == veil).all((1, 3, 4)).mean())
        assert np.mean(hidden) == (0.75 if row else 0.0)
    film = Image.open(io.BytesIO(drawn.animation))
    assert film.n_frames == 16 and len(drawn.strip) + len(drawn.animation) < 1_500_000


def test_the_same_clip_gives_the_same_picture() -> None:
    assert torch.equal(*(torch.frombuffer(bytearray(gallery(2).strip), dtype=torch.uint8) for _ in range(2)))
