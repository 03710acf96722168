"""Frames and times of a span of a video file, as players show them, for cutting."""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet

from tgm_scale.data.video.frame_times import FASTEST, Unusable, clock_of, packets_of
from tgm_scale.data.video.pictures import best_stream, deinterlaced, pixel_aspect
from tgm_scale.runtime.compat import any_metadata

# A playlist or a concat script named .mp4 must not make the demuxer open other files.
_TRUST_NOTHING = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif"}
_TOLERANCE = Fraction(1, 2)  # seconds that a span may reach past the last frame: containers round their durations up
_REWINDS = (0, 2, 16, None)  # seconds before the start to seek to, until a frame at or before it comes; None: no seek
_LOOK_AHEAD = 4  # frames whose times are sorted
_FIRST_PACKETS = 16  # which include the first frame's
_NO_RATE = Fraction(25)  # for a stream that states no frame rate: its frames keep their own times
_TAG = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")  # Matroska's DURATION
# Seconds that a frame's time may lie before a bound it belongs to: spans are rounded to milliseconds, an error of at
# most half of one, and a stream's first time to a tick of MPEG's clock, 1/90000.
_ROUNDED = Fraction(512, 1_000_000)


class CutError(Unusable):
    """Span that cannot be cut."""


class Source:
    """Best video stream of a video file, decoded in one thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._index: int | None = None  # of the chosen stream
        self._open()
        stream = self._stream
        guessed = stream.guessed_rate if stream.guessed_rate and stream.guessed_rate <= FASTEST else _NO_RATE
        self.rate = Fraction(stream.average_rate or guessed).limit_denominator(1001)
        assert stream.time_base is not None, "a demuxed stream has a clock"
        self.tick = stream.time_base
        self.aspect = float(pixel_aspect(stream))
        self._zero = self._first_time()
        self._end = Fraction(0)  # of the last frame decoded
        self._complete = False  # a frame at or after the span's end was seen

    def _open(self) -> None:
        self._container = self._opened()
        if self._index is None:
            stream = best_stream(self._container)
            if stream is None:
                raise CutError("not_decodable", "holds no video stream")
            self._index = self._container.streams.video.index(stream)
            self._container.close()
            self._container = self._opened()
        self._stream = self._container.streams.video[self._index]
        self._stream.thread_type = "NONE"  # one clip a process: threads within would compete for the cores
        self._stream.codec_context.thread_count = 1

    def _opened(self) -> InputContainer:
        return av.open(self._path, options=_TRUST_NOTHING, **any_metadata(av.__version__))

    def _first_time(self) -> Fraction:
        """Return the time from which players count. An AVI has no presentation times, so its first frame is at 0;
        with B-frames ffmpeg gives it the time at which a decoder outputs it."""
        if self._container.format.name != "avi":
            return Fraction(self._container.start_time or 0, av.time_base)
        packets = islice(self._container.demux(self._stream), _FIRST_PACKETS)
        return min((packet.pts for packet in packets if packet.pts is not None), default=0) * self.tick

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def duration(self) -> Fraction:
        """Stated duration of the longest of its streams; 0 where the file states none."""
        return Fraction(self._container.duration or 0, av.time_base)

    def frames(self, start: Fraction, end: Fraction) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Yield all frames within the span, with their times."""
        if 0 < self.duration <= start:
            raise CutError(
                "span_outside", f"the span starts at {clock_of(start)}, the video ends at {clock_of(self.duration)}"
            )
        for frame, time in deinterlaced(self._from(start)):
            if time >= end - _ROUNDED:
                self._complete = True
                return
            if time >= start - _ROUNDED:
                if frame.is_corrupt:
                    raise CutError("not_decodable", f"the frame at {clock_of(time)} is damaged")
                yield frame, time

    def _from(self, start: Fraction) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Yield frames in order, the first at or before `start` where there is one."""
        for rewind in _REWINDS if start > 0 else (None,):
            frames = self._decoded(None if rewind is None else max(Fraction(0), start - rewind))
            if self._packed and rewind is not None:
                next(frames, None)  # has the time of the other frame in its packet, whose references are not decoded
            first = next(frames, None)
            if first is None:
                continue
            # Old x264 4:4:4 streams decode wrongly, and report it, where the decoder has not seen their first packet.
            sound = first[1] <= start and not first[0].is_corrupt
            if sound or rewind is None:
                yield first
                yield from frames
                return

    def _decoded(self, seek_to: Fraction | None) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Yield frames in display order; in an AVI with B-frames, their times are swapped among neighbours."""
        self._container.close()
        self._open()
        if seek_to is not None:
            self._container.seek(int((seek_to + self._zero) / self.tick), stream=self._stream)
        frames: deque[av.VideoFrame] = deque()
        times: list[int] = []
        last: int | None = None
        for frame in chain.from_iterable(map(self._stream.codec_context.decode, chain(self._packets(), [None]))):
            if frame.pts is not None:
                last = frame.pts
            elif last is not None and self._container.format.name == "avi":
                last += 1  # its last frame, where there are B-frames
            else:
                raise CutError("not_decodable", "its frames carry no times")
            frames.append(frame)
            heapq.heappush(times, last)
            if len(frames) > _LOOK_AHEAD:
                yield self._timed(frames.popleft(), heapq.heappop(times))
        while frames:
            yield self._timed(frames.popleft(), heapq.heappop(times))

    def _packets(self) -> Iterator[Packet]:
        """Yield packets from the container's position, one frame each."""
        packets = (packet for packet in packets_of(self._container, self._stream) if packet.size)
        if not self._packed:
            return packets
        unpacking = BitStreamFilterContext("mpeg4_unpack_bframes", self._stream)
        return chain.from_iterable(map(unpacking.filter, packets))

    @property
    def _packed(self) -> bool:
        """Whether a packet may hold two frames and the next one none, as DivX and Xvid packed them in AVI. Only the
        very first packet indicates this, and a decoder misses it after a seek."""
        return self._container.format.name == "avi" and self._stream.codec_context.name == "mpeg4"

    def _timed(self, frame: av.VideoFrame, tick: int) -> tuple[av.VideoFrame, Fraction]:
        time = tick * self.tick - self._zero
        self._end = max(self._end, time + max(1 / self.rate, frame.duration * self.tick))
        return frame, time

    def check_whole(self) -> None:
        """Raise CutError where decoding ended before the video's length as stated by the file; its audio may be
        longer."""
        if self.duration - self._end <= _TOLERANCE:
            return
        stated = self._stated()
        if stated - self._end > _TOLERANCE:
            raise CutError("not_decodable", f"decoding stops at {clock_of(self._end)} of {clock_of(stated)}")

    def _stated(self) -> Fraction:
        """Return the stated length of the video stream: MP4, AVI and MPEG give it, Matroska does in a tag. Else
        that of the file, unless its last packet is present: then the other streams are longer."""
        if self._stream.duration:
            return self._stream.duration * self.tick
        if tag := _TAG.match(self._stream.metadata.get("DURATION", "")):
            return Fraction(tag[3]) + 60 * int(tag[2]) + 3600 * int(tag[1])
        with self._opened() as container:
            ends = ((p.pts + (p.duration or 0)) * p.time_base for p in container.demux() if p.pts is not None)
            last = max(ends, default=Fraction(0)) - self._zero
        return self._end if self.duration - last <= _TOLERANCE else self.duration

    def check_reach(self, start: Fraction, end: Fraction) -> None:
        """Raise CutError where the file ended before the span did: by its length, or because it is truncated."""
        if self._complete or end - self._end <= _TOLERANCE:
            return
        if min(end, self.duration) - self._end > _TOLERANCE:
            self.check_whole()
        span = f"{clock_of(start)} to {clock_of(end)}"
        raise CutError("span_outside", f"the span is {span}, the video ends at {clock_of(self._end)}")
