"""Encoding of clips for shards: H.264 in MP4, yuv420p, a keyframe every few frames, no B-frames, no audio.

A training read decodes a few frames from a random place, so the keyframe interval sets its cost: a group of 12 to
30 frames decodes about twice as fast as the usual 250. Without B-frames the order of packets is the order of
frames, and the first frame is at 0. Pixels pass through RGB, as the training decoder returns them: 10 bits, full
range, 4:4:4 and every colour matrix of a source arrive as that decoder would have shown them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from tgm_scale.data.defaults import CRF, GOP, SHORT_SIDE
from tgm_scale.data.video.frame_times import clock_of
from tgm_scale.data.video.pictures import SCALING, orientation
from tgm_scale.data.video.source import CutError, Source

_PRESET = "veryfast"  # half the time of "fast" at the same size and 0.5 dB less; its single reference decodes faster
# x264's macroblock tree reads uninitialised memory: with it, one clip in some hundreds differs between two
# single-threaded encodings of the same frames. Disabling it costs some 10 % of the size.
_REPEATABLE = {"x264-params": "mbtree=0"}
_STILL = Fraction(1)  # seconds of a span from which on a single frame does not count as a clip


@dataclass(frozen=True)
class EncodedClip:
    data: bytes  # MP4
    frames: int
    width: int
    height: int
    fps: float


def encode_video(frames: np.ndarray | Iterable[np.ndarray], fps: float, *, gop: int = GOP, crf: int = CRF) -> bytes:
    """Encode RGB frames, uint8 [T, H, W, 3] or an iterable of [H, W, 3], as MP4; the same input gives the same bytes.

    Raises ValueError where there is no frame or a side is odd (yuv420p halves both)."""
    rate = Fraction(fps).limit_denominator(1001)
    encoder: _Encoder | None = None
    for number, frame in enumerate(frames):
        encoder = encoder or _Encoder(frame.shape[1], frame.shape[0], rate, gop, crf)
        encoder.add(frame, number / rate)
    if encoder is None:
        raise ValueError("a video of no frames cannot be encoded; give at least one")
    return encoder.finish()


_ENDLESS = Fraction(10**6)  # seconds: longer than any file


def cut_clip(
    path: str, start: Fraction, end: Fraction | None, *, short_side: int = SHORT_SIDE, gop: int = GOP, crf: int = CRF
) -> EncodedClip:
    """Cut the frames of a video file whose times, as players count them, lie in [start, end) seconds, bounds rounded
    to milliseconds. They keep their own times, and are upright, deinterlaced, with square pixels, the given short side
    and both sides even. An end of None is that of the file.

    Raises CutError: `not_decodable`, `span_outside` (the video ends before the span does), `too_short` (no frame),
    `still` (one frame in a span of seconds)."""
    encoder: _Encoder | None = None
    origin, convert = Fraction(0), VideoReformatter()
    try:
        with Source(path) as source:
            until = start + _ENDLESS if end is None else end
            for frame, time in source.frames(start, until):
                image = _shown(convert, frame, source.aspect, short_side)
                if encoder is None:
                    origin = time
                    encoder = _Encoder(image.shape[1], image.shape[0], source.rate, gop, crf, source.tick)
                encoder.add(image, time - origin)
            length = (source.duration if end is None else end) - start
            if encoder is not None and encoder.frames == 1 and length > _STILL:
                span = f"{clock_of(start)} to {clock_of(start + length)}"
                raise CutError("still", f"one frame from {span}: a cover, a slide, or a file that was cut off")
            if end is None:
                source.check_whole()
            else:
                source.check_reach(start, end)
    except av.FFmpegError as error:
        raise CutError("not_decodable", f"{type(error).__name__}: {error.strerror}") from error
    if encoder is None:
        raise CutError("too_short", f"no frame between {clock_of(start)} and {clock_of(until)}")
    return EncodedClip(encoder.finish(), encoder.frames, encoder.width, encoder.height, float(source.rate))


class _Encoder:
    """In-memory MP4 encoder. Times that match the constant rate within a tick of the source's clock (Matroska
    rounds to 1 ms) are set exactly to it; others stay unchanged. No frame is lost."""

    def __init__(
        self, width: int, height: int, rate: Fraction, gop: int, crf: int, tick: Fraction = Fraction(0)
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"frames of {width}x{height} cannot be encoded as yuv420p; make both sides even")
        self.width, self.height, self.frames = width, height, 0
        self._rate = rate
        self._rounding = (
            tick if 4 * tick <= 1 / rate else Fraction(0)
        )  # longer ticks are the rate's own, or one of many
        scale = 1
        while rate.numerator * scale < 10_000:  # the file's clock: fine, with a whole number of ticks a frame
            scale *= 2
        self._clock = Fraction(1, rate.numerator * scale)
        self._time, self._last = Fraction(-1), -1  # of the last frame: in seconds of the source, in ticks
        self._convert = VideoReformatter()  # one for all frames: a frame's own would be set up again
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        options = {"crf": str(crf), "preset": _PRESET, "keyint_min": str(gop), "sc_threshold": "0", **_REPEATABLE}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.time_base = self._clock
        codec = self._stream.codec_context
        codec.time_base, codec.gop_size, codec.max_b_frames, codec.thread_count = self._clock, gop, 0, 1

    def add(self, image: np.ndarray, time: Fraction) -> None:
        """Add an RGB frame, uint8 [H, W, 3], at `time` seconds. A frame that is not later than the last is left
        out."""
        if time <= self._time:
            return
        steady = round(time * self._rate) / self._rate
        ticks = round((steady if abs(steady - time) <= self._rounding else time) / self._clock)
        shown = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = self._convert.reformat(shown, format="yuv420p", threads=1)
        frame.pts, frame.time_base = max(ticks, self._last + 1), self._clock
        self._container.mux(self._stream.encode(frame))
        self._time, self._last = time, frame.pts
        self.frames += 1

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._buffer.getvalue()


def _shown(convert: VideoReformatter, frame: av.VideoFrame, aspect: float, short_side: int) -> np.ndarray:
    """Return the frame as displayed, RGB uint8 [H, W, 3]: square pixels, the given short side, rotated as the file
    states."""
    width, height = frame.width * aspect, float(frame.height)
    scale = short_side / min(width, height)
    width, height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
    image = convert.reformat(frame, width, height, "rgb24", interpolation=SCALING, threads=1).to_ndarray()
    return np.ascontiguousarray(orientation(frame).turn(image))
