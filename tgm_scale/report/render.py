"""Film strips: one picture per slot, one row per view of the clip, with labels beside.

Shapes: S slots, C=3 channels, T frames, H W pixels, R rows and C columns of the token grid.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tgm_scale.contracts import Grid

_PAPER = (255, 255, 255)
_INK = (40, 44, 52)
_VEIL = torch.tensor([236.0, 238.0, 241.0])  # of hidden tokens
_LINE = torch.tensor([255.0, 64.0, 64.0])  # around objects
_GAP, _LABEL_WIDTH, _FONT_SIZE = 6, 150, 15
_HEAT_SHARE = 0.6

Row = tuple[str, Tensor]  # label and pictures, uint8 [S, 3, H, W]


def slot_frames(video_CTHW: Tensor, slots: int) -> Tensor:
    """Return the first frame of each slot, uint8 [S, 3, H, W]."""
    return video_CTHW[:, :: video_CTHW.shape[1] // slots].transpose(0, 1)


def heatmap(frames_SCHW: Tensor, relevance_SRC: Tensor) -> Tensor:
    """Draw relevance over the darkened frames, from its lowest (blue) to its highest value in the clip (yellow)."""
    from matplotlib import colormaps  # imported here: 0.15 s of a core, which a run without pictures saves

    low, high = relevance_SRC.min(), relevance_SRC.max()
    scaled_SRC = ((relevance_SRC - low) / (high - low).clamp(min=1e-12)).float()
    smooth_SHW = F.interpolate(scaled_SRC[:, None], frames_SCHW.shape[-2:], mode="bilinear")[:, 0]
    colour_SHW4 = torch.from_numpy(np.asarray(colormaps["plasma"](smooth_SHW.numpy()), dtype=np.float32))
    colour_SCHW = colour_SHW4[..., :3].permute(0, 3, 1, 2) * 255
    grey = frames_SCHW.float().mean(1, keepdim=True)
    return _as_pixels(_HEAT_SHARE * colour_SCHW + (1 - _HEAT_SHARE) * grey)


def veiled(frames_SCHW: Tensor, shown_SRC: Tensor) -> Tensor:
    """Return the frames where `shown` (bool) is true, and a light colour elsewhere."""
    shown_SHW = _to_pixels(shown_SRC, frames_SCHW)
    return _as_pixels(torch.where(shown_SHW[:, None], frames_SCHW.float(), _VEIL[:, None, None]))


def outlined(frames_SCHW: Tensor, visible_SHW: Tensor) -> Tensor:
    """Return the frames with a line just inside the edge of an object's visible pixels (bool)."""
    inside = -F.max_pool2d(-visible_SHW[:, None].float(), 3, stride=1, padding=1)[:, 0]
    edge = visible_SHW & (inside == 0)
    return _as_pixels(torch.where(edge[:, None], _LINE[:, None, None], frames_SCHW.float()))


def _to_pixels(tokens_SRC: Tensor, frames_SCHW: Tensor) -> Tensor:
    return F.interpolate(tokens_SRC[:, None].float(), frames_SCHW.shape[-2:], mode="nearest")[:, 0] > 0.5


def _as_pixels(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def some_slots(slots: int, count: int) -> Tensor:
    """Return at most `count` evenly spread slot numbers, int64."""
    return torch.linspace(0, slots - 1, min(count, slots), dtype=torch.float64).round().long().unique()


def seen_tokens(visible_V: Tensor, grid: Grid) -> Tensor:
    """Return which tokens a mask leaves visible, bool [S, R, C]. visible: their numbers."""
    seen = torch.zeros(grid.tokens, dtype=torch.bool)
    return seen.scatter(0, visible_V, True).view(grid.slots, grid.rows, grid.columns)


def film_strip(rows: Sequence[Row], side: int = 112) -> bytes:
    """Return `strip` as a PNG."""
    return png(strip(rows, side))


def strip(rows: Sequence[Row], side: int = 112) -> Image.Image:
    """Draw rows of pictures, each resized to `side` pixels (nearest neighbour), with labels to the left."""
    font = ImageFont.load_default(size=_FONT_SIZE)
    columns = max(len(pictures) for _, pictures in rows)
    width = _LABEL_WIDTH + columns * (side + _GAP)
    sheet = Image.new("RGB", (width, len(rows) * (side + _GAP) - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for r, (label, pictures) in enumerate(rows):
        top = r * (side + _GAP)
        draw.multiline_text((0, top + side / 2), label, _INK, font, anchor="lm", spacing=5)
        for s, picture in enumerate(pictures):
            image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
            enlarged = image.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (_LABEL_WIDTH + s * (side + _GAP), top))
    return sheet


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def contact_sheet(rows: Sequence[Tensor], side: int = 160, quality: int = 80) -> bytes:
    """Return a WebP of rows of pictures, uint8 [S, 3, H, W] each, at `side` pixels; transparent between them.

    Small ones are enlarged to sharp pixels."""
    width, height = (count * (side + _GAP) - _GAP for count in (max(map(len, rows)), len(rows)))
    sheet = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    for r, pictures in enumerate(rows):
        for s, picture in enumerate(pictures):
            image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
            how = Image.Resampling.NEAREST if image.width < side else Image.Resampling.BICUBIC
            sheet.paste(image.resize((side, side), how), (s * (side + _GAP), r * (side + _GAP)))
    stream = io.BytesIO()
    sheet.save(stream, "WEBP", quality=quality)
    return stream.getvalue()
