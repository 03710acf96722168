"""Which frame of a source a player shows at which index, from the frames' times.

Index i is the time i / rate after the first frame, and has the latest frame whose time is not after it. Where the
rate is constant, index i is frame i. A clock rounds (Matroska's to 1 ms, MPEG-TS's to 1/90000 s), so times that lie
within a tick of a constant rate are taken to be at that rate.

Shapes: N frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

JITTER = Fraction(1, 2000)  # seconds by which a time is early or late for nobody: half of what spans are rounded to
_FINEST = Fraction(1, 500)  # seconds: a clock with longer ticks is the rate's own, and has rounded nothing
FASTEST = Fraction(240)  # frames a second: a rate beyond, where frames are not as close, is the clock's own
_SAME_RATE = 1e-3  # a stated rate nearer than that to the frames' own is the exact one: 30000/1001 for 29.97
_MOST = 1 << 53  # indices: what a float counts


@dataclass(frozen=True)
class Timeline:
    """`first_N`: at which index each frame is first shown, int64, ascending; `rate`: indices a second."""

    first_N: np.ndarray
    rate: Fraction
    DEFAULT_RATE: ClassVar[Fraction] = Fraction(25)  # where neither the container nor the frames say one

    @classmethod
    def of(cls, times_N: np.ndarray, tick: Fraction, stated: Fraction, every: bool) -> Timeline:
        """Of ascending, distinct times in ticks of `tick` seconds. `stated` is the rate as the container has it (0: it
        says nothing). `every`: each frame counts, however short, so the rate is that of the shortest interval."""
        offset_N = times_N - times_N[0]
        if len(times_N) == 1:
            return cls(np.zeros(1, np.int64), stated if stated > 0 else cls.DEFAULT_RATE)
        mean = Fraction(int(offset_N[-1]), len(offset_N) - 1)
        if stated > FASTEST and stated * mean * tick > 2:
            stated = Fraction(0)
        if every:
            stated = 1 / (int(np.diff(offset_N).min()) * tick)
        rounding = float(JITTER / tick) if every else float(max(JITTER, tick) / tick)
        places_N = np.arange(len(offset_N))
        if _lie_at(offset_N, places_N, rounding):
            exact = stated > 0 and abs(float(stated * mean * tick) - 1) < _SAME_RATE
            return cls(places_N, stated if exact else 1 / (mean * tick))
        rate = stated if stated > 0 else 1 / (mean * tick)
        step = float(1 / (rate * tick))
        nearest_N = np.rint(offset_N / step)
        if _lie_at(offset_N, nearest_N, rounding):
            return cls(np.minimum(nearest_N, _MOST).astype(np.int64), rate)
        early = min(float((tick if JITTER < tick < _FINEST else JITTER) / tick), step / 4)
        first_N = np.clip(np.ceil((offset_N - early) / step), 0, _MOST)
        return cls(first_N.astype(np.int64), rate)

    @property
    def count(self) -> int:
        """Indices: the last frame's, and all before it."""
        return int(self.first_N[-1]) + 1


def _lie_at(offset_N: np.ndarray, places_N: np.ndarray, rounding: float) -> bool:
    """Whether these times are those of a constant rate, but for rounding; at most a quarter of an interval."""
    if places_N[-1] < 1:
        return False
    step = offset_N[-1] / places_N[-1]
    return bool(np.abs(offset_N - places_N * step).max() <= min(rounding, step / 4))


def clock(milliseconds: int) -> str:
    """HH:MM:SS.mmm"""
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def clock_of(seconds: Fraction) -> str:
    return clock(round(seconds * 1000))
