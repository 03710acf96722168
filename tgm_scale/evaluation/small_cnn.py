"""A small 3D CNN trained on pixels: what a user would try in place of a pretrained encoder.

Five convolutions of 3 x 3 x 3 without bias, each with BatchNorm and ReLU, then the mean over time and space and a
linear layer. Trained by AdamW with a linear warm-up and a cosine, on one window of each clip, shifted by a few pixels.
One recipe for all data: nothing is chosen on a validation part.

Shapes: N training clips, M test clips, B of a batch, T frames, S side in pixels, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.runtime import seeding

EPOCHS = 40
_WIDTHS = (16, 32, 64, 96, 128)
_STRIDES = ((1, 2, 2), (2, 2, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1))
_BATCH = 16
_RATE, _WEIGHT_DECAY, _WARMUP = 2e-3, 0.05, 0.1
_SHIFT = 6 / 64  # share of the side, in each direction
_PASS = 64  # clips of a forward pass without gradient
_LAYOUT = torch.channels_last_3d  # training: 7.9 ms of a core for a clip of 8 x 64 x 64; contiguous: 11.5 ms


class SmallCNN(nn.Module):
    """Network from clips to scores.

    Initial weights are keyed by `seed`: He normal for convolutions, std 0.02 for the last layer."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width, stride in zip((3, *_WIDTHS), _WIDTHS, _STRIDES):
            layers += [nn.Conv3d(before, width, 3, stride, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(_WIDTHS[-1], classes)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim > 1:
                    std = 0.02 if parameter.ndim == 2 else math.sqrt(2 / parameter[0].numel())
                    generator = seeding.generator(seed, "small CNN", name)
                    parameter.copy_(torch.empty(parameter.shape).normal_(std=std, generator=generator))
            self.head.bias.zero_()

    def forward(self, video_B3TSS: Tensor) -> Tensor:
        """Return scores [B, C]; video uint8."""
        pixels = (video_B3TSS.float() / 127.5 - 1).contiguous(memory_format=_LAYOUT)
        return self.head(self.layers(pixels).mean((2, 3, 4)))


def scores(
    train_N3TSS: Tensor,
    labels_N: Tensor,
    test_M3TSS: Tensor,
    seed: int,
    device: torch.device | None = None,
    progress: Callable[[int], None] = lambda epochs: None,
) -> Tensor:
    """Train on the training clips and return scores of the test clips, float32 [M, C] on the CPU.

    Clips uint8, labels int64 from 0. progress: called after each epoch."""
    count = len(train_N3TSS)
    model = SmallCNN(int(labels_N.max()) + 1, seed).to(device)
    for layer in model.layers:
        if isinstance(layer, nn.Conv3d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=_LAYOUT)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_WEIGHT_DECAY)
    of_epoch = max(1, count // _BATCH)
    steps, step = EPOCHS * of_epoch, 0
    model.train()
    for epoch in range(EPOCHS):
        order = torch.from_numpy(seeding.permutation(seeding.key(seed, "small CNN order", epoch), count))
        shifts_N2 = _shifts(seed, epoch, count, train_N3TSS.shape[-1])
        for rows in order[: of_epoch * _BATCH].tensor_split(of_epoch):
            step += 1
            warm = min(1.0, step / max(1, round(_WARMUP * steps)))
            for group in optimiser.param_groups:
                group["lr"] = _RATE * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
            video = torch.stack([shifted(train_N3TSS[row], *shifts_N2[row].tolist()) for row in rows.tolist()])
            optimiser.zero_grad()
            F.cross_entropy(model(video.to(device)), labels_N[rows].to(device)).backward()
            optimiser.step()
        progress(1)
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part.to(device)).cpu() for part in test_M3TSS.split(_PASS)])


def _shifts(seed: int, epoch: int, count: int, side: int) -> Tensor:
    """Return the shift of each clip in pixels down and to the right, int64 [N, 2]."""
    most = round(_SHIFT * side)
    keys = torch.tensor([seeding.key(seed, "small CNN shift", epoch)])
    drawn = seeding.uniform(keys, 2 * count, "small CNN shift").view(count, 2)
    return (drawn * (2 * most + 1)).long() - most


def shifted(video_3TSS: Tensor, down: int, right: int) -> Tensor:
    """Return the clip shifted by these pixels, with black where the source ends."""
    side = video_3TSS.shape[-1]
    most = max(abs(down), abs(right))
    padded = F.pad(video_3TSS, (most, most, most, most))
    return padded[..., most - down : most - down + side, most - right : most - right + side]
