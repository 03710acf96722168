"""Utilisation of the hardware: MFU and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tgm_scale.planning.cards import of_device


@dataclass(frozen=True)
class Throughput:
    """Model FLOP utilisation of one rank: the arithmetic of forward and backward over what the device could do.

    macs_per_clip: multiply-accumulates of one clip's forward pass. A backward pass is counted as two forward passes;
    recomputation by activation checkpointing or a cached contrastive pass is not counted as useful."""

    macs_per_clip: float
    device: torch.device

    def mfu(self, clips_per_second_per_rank: float) -> float | None:
        """Return the MFU, in [0, 1]; None on a CPU or a GPU whose peak is not listed."""
        if self.device.type != "cuda":
            return None
        card = of_device(torch.cuda.get_device_name(self.device))
        return None if card is None else 6 * self.macs_per_clip * clips_per_second_per_rank / card.peak

    def device_memory_gb(self) -> float | None:
        """Return the peak memory of this rank's tensors on its GPU so far, GB; None on a CPU."""
        return None if self.device.type != "cuda" else torch.cuda.max_memory_allocated(self.device) / 1e9
