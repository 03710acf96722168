"""Encoding of clips for shards: H.264 in MP4, yuv420p, a keyframe every few frames, no B-frames, no sound.

A training read decodes a few frames from a random place, so the distance between keyframes sets its cost: a group of
12 to 30 frames decodes about twice as fast as the usual 250. Without B-frames the order of packets is the order of
frames, and the first frame is at 0. Pixels pass through RGB, as the training decoder gives them: 10 bits, full range,
4:4:4 and every colour matrix of a source arrive as what that decoder would have shown."""

from __future__ import annotations

import heapq
import io
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import numpy as np

from tgm_scale.runtime.compat import any_metadata

GOP, CRF, SHORT_SIDE = 12, 23, 256
_PRESET = "veryfast"  # half the time of "fast" at the same size and 0.5 dB less; its single reference decodes faster
# x264's macroblock tree reads memory that it did not write: with it, one clip in some hundreds differs between two
# encodings of the same frames in one thread. Off, it costs some 10 % of the size.
_REPEATABLE = {"x264-params": "mbtree=0"}
# A playlist or a concat script named .mp4 must not make the demuxer open what it names.
_TRUST_NOTHING = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif"}
_SCALING = "BICUBIC"
_TOLERANCE = Fraction(1, 2)  # seconds that a span may reach past the last frame: containers round their durations up
_REWINDS = (0, 2, 16, None)  # seconds before the start to seek to, until a frame at or before it comes; None: no seek
_LOOK_AHEAD = 4  # frames whose times are put in order
_NO_RATE = Fraction(25)  # for a stream that states no frame rate: its frames keep their own times


class CutError(Exception):
    """A span cannot be cut: `reason` is a fixed word that is counted, `detail` is free."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple:
        return CutError, (self.reason, self.detail)


@dataclass(frozen=True)
class EncodedClip:
    data: bytes  # MP4
    frames: int
    width: int
    height: int
    fps: float


def encode_video(frames: np.ndarray | Iterable[np.ndarray], fps: float, *, gop: int = GOP, crf: int = CRF) -> bytes:
    """MP4 of RGB frames, uint8 [T, H, W, 3] or an iterable of [H, W, 3]; the same input gives the same bytes.

    Raises ValueError where there is no frame or a side is odd (yuv420p halves both)."""
    rate = Fraction(fps).limit_denominator(1001)
    encoder: _Encoder | None = None
    for number, frame in enumerate(frames):
        encoder = encoder or _Encoder(frame.shape[1], frame.shape[0], rate, gop, crf)
        encoder.add(frame, number / rate)
    if encoder is None:
        raise ValueError("a video of no frames cannot be encoded; give at least one")
    return encoder.finish()


def cut_clip(
    path: str, start: Fraction, end: Fraction, *, short_side: int = SHORT_SIDE, gop: int = GOP, crf: int = CRF
) -> EncodedClip:
    """The frames of a video file whose times lie in [start, end) seconds, as players count them, with their own times;
    upright, with square pixels, the short side as given and both sides even.

    Raises CutError: `not_decodable`, `span_outside` (the video ends before the span does), `too_short` (no frame)."""
    encoder: _Encoder | None = None
    origin = Fraction(0)
    try:
        with _Source(path) as source:
            for frame, time in source.frames(start, end):
                image = _upright(frame, source.aspect, short_side)
                if encoder is None:
                    origin = time
                    encoder = _Encoder(image.shape[1], image.shape[0], source.rate, gop, crf, source.tick)
                encoder.add(image, time - origin)
            source.check_reach(start, end)
    except av.FFmpegError as error:
        raise CutError("not_decodable", f"{type(error).__name__}: {error.strerror}") from error
    if encoder is None:
        raise CutError("too_short", f"no frame between {_clock(start)} and {_clock(end)}")
    return EncodedClip(encoder.finish(), encoder.frames, encoder.width, encoder.height, float(source.rate))


class _Encoder:
    """An MP4 in memory. Times that are those of the constant rate, but for the ticks of the source's clock (Matroska
    rounds to 1 ms), become exactly that; others stay as they are."""

    def __init__(
        self, width: int, height: int, rate: Fraction, gop: int, crf: int, tick: Fraction = Fraction(0)
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"frames of {width}x{height} cannot be encoded as yuv420p; make both sides even")
        self.width, self.height, self.frames = width, height, 0
        self._rate, self._tick = rate, tick
        scale = 1
        while rate.numerator * scale < 10_000:  # the clock of the file: fine, and a whole number of ticks a frame
            scale *= 2
        self._clock = Fraction(1, rate.numerator * scale)
        self._last = -1
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        options = {"crf": str(crf), "preset": _PRESET, "keyint_min": str(gop), "sc_threshold": "0", **_REPEATABLE}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.time_base = self._clock
        codec = self._stream.codec_context
        codec.time_base, codec.gop_size, codec.max_b_frames, codec.thread_count = self._clock, gop, 0, 1

    def add(self, image: np.ndarray, time: Fraction) -> None:
        """An RGB frame, uint8 [H, W, 3], at `time` seconds. A frame that is not later than the last is left out."""
        steady = round(time * self._rate) / self._rate
        ticks = round((steady if abs(steady - time) <= self._tick else time) / self._clock)
        if ticks <= self._last:
            return
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", threads=1)
        frame.pts, frame.time_base = ticks, self._clock
        self._container.mux(self._stream.encode(frame))
        self._last = ticks
        self.frames += 1

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._buffer.getvalue()


class _Source:
    """A video file's best video stream (the largest; never a cover picture), decoded in one thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()
        self.rate = Fraction(self._stream.average_rate or _NO_RATE).limit_denominator(1001)
        assert self._stream.time_base is not None, "a demuxed stream has a clock"
        self.tick = self._stream.time_base
        aspect = float(self._stream.sample_aspect_ratio or 1)
        self.aspect = aspect if 0.25 <= aspect <= 4 else 1.0  # width of a pixel by its height; beyond is a broken tag
        self._end = Fraction(0)  # of the last frame decoded
        self._complete = False  # a frame at or after the span's end was seen

    def _open(self) -> None:
        self._container = av.open(self._path, options=_TRUST_NOTHING, **any_metadata(av.__version__))
        stream = cast("av.VideoStream | None", self._container.streams.best("video"))
        if stream is None:
            raise CutError("not_decodable", "holds no video stream")
        stream.thread_type = "NONE"  # one clip a process: threads within would fight over the cores
        stream.codec_context.thread_count = 1
        self._stream = stream
        self._zero = Fraction(self._container.start_time or 0, av.time_base)

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def _duration(self) -> Fraction:
        """As the file states it; 0 where it does not."""
        return Fraction(self._container.duration or 0, av.time_base)

    def frames(self, start: Fraction, end: Fraction) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Frame and time of all that lie in the span."""
        if 0 < self._duration <= start:
            raise CutError(
                "span_outside", f"the span starts at {_clock(start)}, the video ends at {_clock(self._duration)}"
            )
        for frame, time in self._from(start):
            if time >= end:
                self._complete = True
                return
            self._end = max(self._end, time + 1 / self.rate)
            if time >= start:
                if frame.is_corrupt:
                    raise CutError("not_decodable", f"the frame at {_clock(time)} is damaged")
                yield frame, time

    def _from(self, start: Fraction) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Frames in order, the first at or before `start` where there is one."""
        for rewind in _REWINDS if start > 0 else (None,):
            frames = self._decoded(None if rewind is None else max(Fraction(0), start - rewind))
            first = next(frames, None)
            if first is None:
                continue
            # Old x264 4:4:4 streams decode wrongly, and say so, where the decoder has not seen their first packet.
            sound = first[1] <= start and not first[0].is_corrupt
            if sound or rewind is None:
                yield first
                yield from frames
                return

    def _decoded(self, seek_to: Fraction | None) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Frames come in the order of display; in an AVI with B-frames, their times are swapped among neighbours."""
        self._container.close()
        self._open()
        if seek_to is not None:
            self._container.seek(int((seek_to + self._zero) / self.tick), stream=self._stream)
        frames: deque[av.VideoFrame] = deque()
        times: list[int] = []
        for frame in self._container.decode(self._stream):
            if frame.pts is None:
                raise CutError("not_decodable", "its frames carry no times")
            frames.append(frame)
            heapq.heappush(times, frame.pts)
            if len(frames) > _LOOK_AHEAD:
                yield frames.popleft(), heapq.heappop(times) * self.tick - self._zero
        while frames:
            yield frames.popleft(), heapq.heappop(times) * self.tick - self._zero

    def check_reach(self, start: Fraction, end: Fraction) -> None:
        """Raise CutError where the file ended before the span did: by its length, or because it is cut short."""
        if self._complete or end - self._end <= _TOLERANCE:
            return
        if min(end, self._duration) - self._end > _TOLERANCE:
            raise CutError("not_decodable", f"decoding stops at {_clock(self._end)} of {_clock(self._duration)}")
        span = f"{_clock(start)} to {_clock(end)}"
        raise CutError("span_outside", f"the span is {span}, the video ends at {_clock(self._end)}")


def _upright(frame: av.VideoFrame, aspect: float, short_side: int) -> np.ndarray:
    """RGB uint8 [H, W, 3]: square pixels, the short side as given, turned (counter-clockwise) as the file says."""
    width, height = frame.width * aspect, float(frame.height)
    scale = short_side / min(width, height)
    width, height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
    image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=_SCALING, threads=1)
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def _clock(seconds: Fraction) -> str:
    minutes, rest = divmod(float(seconds), 60)
    return f"{int(minutes // 60):02d}:{int(minutes % 60):02d}:{rest:06.3f}"
