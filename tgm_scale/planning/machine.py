"""The machine that a plan is for, as given to a command, and the assumptions about it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tgm_scale.planning import cards
from tgm_scale.planning.cards import Card
from tgm_scale.planning.network import Network
from tgm_scale.planning.rates import Rates

WANTED = (
    "wanted GPUs x memory such as 1x24GB or 8x80GB, or nodes x GPUs x memory such as 16x8x80GB; a card is named "
    "beside it, as in --fit 8x80GB --card H100"
)
_SHAPE = re.compile(r"(?:([0-9]{1,9})x)?([0-9]{1,9})x([0-9]{1,9}(?:\.[0-9]{1,9})?)(GB|GiB)", re.IGNORECASE)
_UNITS = {"gb": 1e9, "gib": 2.0**30}
_MOST = 100_000  # GPUs; and GB of one
_OF_A_HOST = 16  # GPUs: the most that one host has, a DGX-2
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True)
class Machine:
    """GPUs, memory, speed and price of a machine. memory: bytes of one GPU, None where unknown; peak: FLOP/s of one,
    dense bf16; utilisation: the share of it that is reached; rates: measured ones, in place of both; price: of a GPU
    hour, in any currency."""

    nodes: int
    gpus_per_node: int
    memory: float | None = None
    card: Card | None = None
    peak: float | None = None
    utilisation: float = 0.35
    price: float | None = None
    network: Network = field(default_factory=Network)
    rates: Rates | None = None

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def flops(self) -> float | None:
        """FLOP/s that a run is assumed to reach on one GPU."""
        return None if self.peak is None else self.peak * self.utilisation

    @property
    def assumed(self) -> str:
        """Text on what the times rest on."""
        if self.rates is not None:
            return self.rates.assumed
        if self.peak is None:
            return "this memory is no card's of the table: give --card or --tflops for times"
        card = "" if self.card is None or self.card.peak != self.peak else f", {self.card.name} by its data sheet"
        return f"assumed: {self.utilisation:.0%} of {self.peak / 1e12:.0f} TFLOP/s dense bf16{card}; not measured"


def shape_of(text: str) -> tuple[int, int, float]:
    """Parse nodes, GPUs of each, and bytes of a GPU; GB are 1e9 bytes, of which a card has up to 7 % more than its
    label says. Raises ValueError."""
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--fit {text}: {WANTED}")
    nodes, gpus, memory = int(match[1] or 1), int(match[2]), float(match[3])
    if not (nodes and gpus and memory):
        raise ValueError(f"--fit {text}: 0 of something; {WANTED}")
    if nodes * gpus > _MOST or memory > _MOST:
        raise ValueError(f"--fit {text}: above {_MOST} GPUs or GB; {WANTED}")
    refuse_crowded(gpus, f"--fit {text}", WANTED)
    return nodes, gpus, memory * _UNITS[match[4].lower()]


def refuse_crowded(gpus: int, given: str, wanted: str) -> None:
    """Raise ValueError for more GPUs than one host has: nodes were then counted as GPUs, and the links between them
    would be taken for links within a node."""
    if gpus > _OF_A_HOST:
        raise ValueError(f"{given}: {gpus} GPUs in one host, above {_OF_A_HOST}; {wanted}")


def card_of(memory: float) -> Card | None:
    """Return the card that is assumed for so many bytes; None if there is none."""
    return next((card for unit in _UNITS.values() if (card := cards.of_memory(memory / unit))), None)


def clips_of(text: str) -> int:
    """Parse a count such as 10M, 250k, 1.5B or 4000000. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([kmb]?)", text.strip(), re.IGNORECASE)
    count = round(float(match[1]) * _SUFFIXES.get(match[2].lower(), 1)) if match else 0
    if not 0 < count <= 1e15:
        raise ValueError(f"--clips {text}: wanted how many clips are seen, such as 10M, 250k or 4000000")
    return count
