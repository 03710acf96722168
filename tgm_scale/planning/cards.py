"""GPUs by name: memory, dense bf16 peak and power from the vendors' data sheets (NVIDIA's, and the white papers of the
Ampere GA102, Ada and Blackwell RTX architectures for its GeForce cards). Nothing here was measured.

Compared with pages that quote the data sheets: memory, peak and power of H100 (SXM), H200, L40 and L40S; peak of RTX
4090, RTX 4080 and A40; power of RTX 4090, RTX 3090, A40 and H100 PCIe; memory and peak of A100. Others were not
verified."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Data sheet of a GPU. name: words of the name by which torch knows the device; memory in GB as on the label; peak
    in FLOP/s of dense bf16 products summed in fp32; watts: the board's limit."""

    name: str
    memory: float
    peak: float
    watts: float


# where only the memory is given, the first card that has it is assumed
CARDS = (
    Card("RTX 4080", 16, 97.5e12, 320),
    Card("RTX 4090", 24, 165.2e12, 450),
    Card("RTX 3090", 24, 71e12, 350),
    Card("L4", 24, 121e12, 72),
    Card("A10", 24, 125e12, 150),
    Card("RTX 5090", 32, 209.5e12, 575),
    Card("V100", 32, 125e12, 300),  # fp16: it has no bf16
    Card("A100-SXM4-40GB", 40, 312e12, 400),
    Card("L40S", 48, 362e12, 350),
    Card("L40", 48, 181e12, 300),
    Card("A40", 48, 149.7e12, 300),
    Card("RTX A6000", 48, 154.8e12, 300),
    Card("H100", 80, 989e12, 700),
    Card("H100 PCIe", 80, 756e12, 350),
    Card("A100", 80, 312e12, 400),
    Card("A800", 80, 312e12, 400),
    Card("GH200", 96, 989e12, 1000),
    Card("H200", 141, 989e12, 700),
    Card("B200", 180, 2250e12, 1000),
)


def of_device(name: str) -> Card | None:
    """Return the card with the longest name contained in a device's name; None if there is none."""
    return max((card for card in CARDS if card.name in name), key=lambda card: len(card.name), default=None)


def of_name(name: str) -> Card:
    """Return the card of this name. Raises ValueError for a name that is not in the table."""
    found = next((card for card in CARDS if card.name.lower() == name.lower()), None)
    if found is None:
        known = ", ".join(card.name for card in CARDS)
        raise ValueError(f"--card {name}: not in the table: give --tflops, or one of {known}")
    return found


def of_memory(gigabytes: float) -> Card | None:
    return next((card for card in CARDS if card.memory == gigabytes), None)
