"""The times of a source's frames, from its container's index or from its packets.

Shapes: N frames."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from tgm_scale.data.video.decode_error import DecodeError
from tgm_scale.data.video.timeline import Timeline

_MAX_FRAMES = 1 << 31  # of a source: more is a forged or broken time stamp
_MAX_TICKS = 1 << 53  # of a source, however long: more is no number of a float
_STILL = 1.0  # seconds of a source from which on a single picture is no clip of it
_UNTIMED = {"avi", "h264", "hevc", "m4v"}  # no presentation times: those that ffmpeg guesses can be out of order
_SLIDES = {"gif"}  # each picture has its own time, and a rate that is their mean would skip some


@dataclass(frozen=True)
class FrameTimes:
    """`times_N`: of each frame, int64, in ticks of the stream's clock, ascending; its number where it is not `timed`,
    as the order alone says which frame is which. `step`: between two indices of the timeline, in the same unit.
    `moved`: packets were read, so that the container stands at its end."""

    times_N: np.ndarray
    timeline: Timeline
    step: float
    timed: bool = True
    moved: bool = True


def frame_times(container: InputContainer, stream: VideoStream, size: int) -> FrameTimes:
    """Of a file of `size` bytes that was just opened. Raises DecodeError."""
    found = _from_index(stream, size) if container.format.name not in _UNTIMED else None
    found = found or _from_packets(container, stream)
    if found.timeline.count > _MAX_FRAMES:
        raise DecodeError("damaged", f"its time stamps span {found.timeline.count} frames")
    seconds = (container.duration or 0) / av.time_base
    if len(found.times_N) == 1 and seconds > _STILL:
        raise DecodeError("still", f"one picture for {seconds:.1f} s: a cover or a slide, no video")
    return found


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Of the stream, from where the container stands, without the empty ones by which Theora shows a picture once
    more: to a decoder they are the stream's end."""
    # PyAV 18's generator keeps 160 bytes for good where it is neither read to its end nor closed
    with closing(cast(Generator[Packet, None, None], container.demux(stream))) as packets:
        yield from (packet for packet in packets if packet.size or packet.pts is None)


def _from_index(stream: VideoStream, size: int) -> FrameTimes | None:
    """The times if the container's index lists all frames at a constant rate (as an MP4's does).

    It costs 0.1 ms for 300 frames, where reading all packets costs 1 ms. Raises DecodeError for an index that
    points behind the end of the file."""
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
    """The times from the packets themselves; packets without times are numbered."""
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
        if first:  # a piece of a stream: what comes before its first keyframe cannot be decoded
            times_N = times_N[times_N >= times_N.dtype.type(stamps[first] or 0)]
        timeline = Timeline.of(_bounded(times_N), tick, rate, every=name in _SLIDES)
        return FrameTimes(times_N, timeline, float(1 / (timeline.rate * tick)))
    numbers_N = np.arange(len(packets))
    for stamps in ([pts for pts, _, _ in packets], [dts for _, dts, _ in packets]):
        # Sorted, they tell of frames that an AVI leaves out, since they are as the one before
        if name == "avi" and None not in stamps and len(set(stamps)) == len(stamps):
            times_N = np.sort(np.array(stamps, dtype=np.int64))
            return FrameTimes(numbers_N, Timeline.of(_bounded(times_N), tick, rate, every=False), 1.0, timed=False)
    return FrameTimes(numbers_N, Timeline(numbers_N, rate or Timeline.DEFAULT_RATE), 1.0, timed=False)


def _bounded(times_N: np.ndarray) -> np.ndarray:
    if int(times_N[-1]) - int(times_N[0]) > _MAX_TICKS:
        raise DecodeError("damaged", "its time stamps lie too far apart")
    return times_N
