"""Utilisation of the hardware: MFU and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# dense bf16 peaks in FLOP/s from the vendors' data sheets, by a word in the device's name; the first match counts
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "V100": 125e12,
}


@dataclass(frozen=True)
class Throughput:
    """Model FLOP utilisation of one rank: the arithmetic of forward and backward over what the device could do.

    macs_per_clip: multiply-accumulates of one clip's forward pass. A backward pass is counted as two forward passes;
    recomputation by activation checkpointing or a cached contrastive pass is not counted as useful."""

    macs_per_clip: float
    device: torch.device

    def mfu(self, clips_per_second_per_rank: float) -> float | None:
        """In [0, 1]; None on a CPU or a GPU whose peak is not listed."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        peak = next((value for word, value in PEAKS.items() if word in name), None)
        return None if peak is None else 6 * self.macs_per_clip * clips_per_second_per_rank / peak

    def device_memory_gb(self) -> float | None:
        """The most that this rank's tensors have taken of its GPU so far, GB; None on a CPU."""
        return None if self.device.type != "cuda" else torch.cuda.max_memory_allocated(self.device) / 1e9
