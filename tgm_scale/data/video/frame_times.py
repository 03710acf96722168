"""Frame times of a source, from its container's index or its packets, and the frame shown at each index.

Index i is the time i / rate after the first frame, and shows the latest frame whose time is not after it. Where the
rate is constant, index i is frame i. Clocks round (Matroska's to 1 ms, MPEG-TS's to 1/90000 s), so times within a tick
of a constant rate are taken to be at that rate.

Shapes: N frames.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

_MAX_FRAMES = 1 << 31  # of a source: more means a forged or broken time stamp
_MAX_TICKS = 1 << 53  # of a source, however long: more cannot be represented exactly by a float
_STILL = 1.0  # seconds of a source from which on a single picture does not count as a clip
_UNTIMED = {"avi", "h264", "hevc", "m4v"}  # no presentation times: those that ffmpeg guesses can be out of order
_SLIDES = {"gif"}  # each picture has its own time, and a rate that is their mean would skip some


@dataclass(frozen=True)
class FrameTimes:
    """Times of a source's frames. `times_N`: of each frame, int64, in ticks of the stream's clock, ascending; frame
    numbers where not `timed`, since only the order identifies the frames. `step`: between two indices of the
    timeline, in the same unit. `moved`: packets were read, so the container is at its end."""

    times_N: np.ndarray
    timeline: Timeline
    step: float
    timed: bool = True
    moved: bool = True


def frame_times(container: InputContainer, stream: VideoStream, size: int) -> FrameTimes:
    """Return the frame times of a newly opened file of `size` bytes. Raises DecodeError."""
    found = _from_index(stream, size) if container.format.name not in _UNTIMED else None
    found = found or _from_packets(container, stream)
    if found.timeline.count > _MAX_FRAMES:
        raise DecodeError("damaged", f"its time stamps span {found.timeline.count} frames")
    seconds = (container.duration or 0) / av.time_base
    if len(found.times_N) == 1 and seconds > _STILL:
        raise DecodeError("still", f"one picture for {seconds:.1f} s: a cover or a slide, no video")
    return found


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Yield the stream's packets from the container's position, without the empty ones by which Theora repeats a
    picture: to a decoder they mean the stream's end."""
    # PyAV 18's generator leaks 160 bytes where it is neither read to its end nor closed
    with closing(cast(Generator[Packet, None, None], container.demux(stream))) as packets:
        yield from (packet for packet in packets if packet.size or packet.pts is None)


def _from_index(stream: VideoStream, size: int) -> FrameTimes | None:
    """Return the times if the container's index lists all frames at a constant rate (as an MP4's does).

    It costs 0.1 ms for 300 frames, where reading all packets costs 1 ms. Raises DecodeError for an index that
    points beyond the end of the file."""
    if not stream.frames or len(stream.index_entries) != stream.frames:
        return None
    if stream.frames > size:
        raise DecodeError("too_large", f"{stream.frames} frames claimed in {size} bytes")
    entries = list(stream.index_entries)
    missing = sum(entry.pos + entry.size > size for entry in entries)
    if missing:
        raise DecodeError("truncated", f"the last {missing} of {len(entries)} frames are cut off")
    decode_times = np.array([entry.timestamp for entry in entries if not entry.is_discard], dtype=np.int64)
    steps = np.unique(np.diff(decode_times))
    if len(steps) != 1 or steps[0] <= 0 or stream.start_time is None:
        return None
    step, places_N = int(steps[0]), np.arange(len(decode_times))
    assert stream.time_base is not None
    timeline = Timeline(places_N, 1 / (step * stream.time_base))
    return FrameTimes(stream.start_time + step * places_N, timeline, step, moved=False)


def _from_packets(container: InputContainer, stream: VideoStream) -> FrameTimes:
    """Return the times from the packets themselves; packets without times are numbered."""
    name, tick = container.format.name, stream.time_base
    assert tick is not None
    try:
        packets = [(p.pts, p.dts, p.is_keyframe) for p in packets_of(container, stream) if p.size and not p.is_discard]
    except av.FFmpegError as error:
        raise DecodeError("damaged", f"its packets cannot be read: {error.strerror}") from None
    if not packets:
        raise DecodeError("no_frames", "the video stream has no packet")
    rate = stream.average_rate or stream.guessed_rate or Fraction(0)
    if name not in _UNTIMED and None not in (stamps := [pts for pts, _, _ in packets]):
        times_N = np.unique(np.array(stamps, dtype=np.int64))
        first = next((number for number, (_, _, key) in enumerate(packets) if key), 0)
        if first:  # a piece of a stream: packets before its first keyframe cannot be decoded
            times_N = times_N[times_N >= times_N.dtype.type(stamps[first] or 0)]
        timeline = Timeline.of(_bounded(times_N), tick, rate, every=name in _SLIDES)
        return FrameTimes(times_N, timeline, float(1 / (timeline.rate * tick)))
    numbers_N = np.arange(len(packets))
    for stamps in ([pts for pts, _, _ in packets], [dts for _, dts, _ in packets]):
        # Sorted, they reveal the frames that an AVI leaves out because they repeat the previous one
        if name == "avi" and None not in stamps and len(set(stamps)) == len(stamps):
            times_N = np.sort(np.array(stamps, dtype=np.int64))
            return FrameTimes(numbers_N, Timeline.of(_bounded(times_N), tick, rate, every=False), 1.0, timed=False)
    return FrameTimes(numbers_N, Timeline(numbers_N, rate or Timeline.DEFAULT_RATE), 1.0, timed=False)


def _bounded(times_N: np.ndarray) -> np.ndarray:
    if int(times_N[-1]) - int(times_N[0]) > _MAX_TICKS:
        raise DecodeError("damaged", "its time stamps lie too far apart")
    return times_N


class Unusable(Exception):
    """Unusable data: `reason` is one of a few words, to be counted; `detail` is for the reader."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class DecodeError(Unusable):
    """Clip that cannot be decoded: `empty`, `not_a_video`, `truncated`, `damaged`, `no_frames`, `still` or
    `too_large`."""


JITTER = Fraction(1, 2000)  # seconds of negligible time difference: half of the rounding of spans
_FINEST = Fraction(1, 500)  # seconds: a clock with longer ticks is the rate's own, and has not rounded the times
FASTEST = Fraction(240)  # frames a second: a higher rate, where frames are not as close, is the clock's own
_SAME_RATE = 1e-3  # a stated rate closer than this to the measured one is the exact one: 30000/1001 for 29.97
_MOST = 1 << 53  # indices: exact in a float


@dataclass(frozen=True)
class Timeline:
    """Mapping from frames to indices. `first_N`: the index at which each frame is first shown, int64, ascending;
    `rate`: indices a second."""

    first_N: np.ndarray
    rate: Fraction
    DEFAULT_RATE: ClassVar[Fraction] = Fraction(25)  # where neither the container nor the frames determine one

    @classmethod
    def of(cls, times_N: np.ndarray, tick: Fraction, stated: Fraction, every: bool) -> Timeline:
        """Build the timeline from ascending, distinct times in ticks of `tick` seconds. `stated`: the container's
        rate (0: none). `every`: each frame counts, however short, so the rate is that of the shortest interval."""
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
        """Number of indices, up to that of the last frame."""
        return int(self.first_N[-1]) + 1


def _lie_at(offset_N: np.ndarray, places_N: np.ndarray, rounding: float) -> bool:
    """Return whether these times match a constant rate within `rounding`; at most a quarter of an interval."""
    if places_N[-1] < 1:
        return False
    step = offset_N[-1] / places_N[-1]
    return bool(np.abs(offset_N - places_N * step).max() <= min(rounding, step / 4))


def clock(milliseconds: int) -> str:
    """Return HH:MM:SS.mmm."""
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def clock_of(seconds: Fraction) -> str:
    return clock(round(seconds * 1000))
