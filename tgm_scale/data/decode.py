"""Frames of a clip from its bytes, through PyAV.

A frame's index counts frames of the stream's nominal rate from its first frame on. Where the rate is constant, that is
the frame's place in the stream; where it varies, index i is the frame that a player shows at time i / rate.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import cast

import av
import numpy as np
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from tgm_scale.data.motion import MotionRecorder
from tgm_scale.runtime.compat import any_metadata

MAX_PIXELS = 8192 * 4320  # of a frame: 8K; a decoder may keep 16 of them for reference
DECODE_BUDGET = 1 << 33  # pixels decoded for one clip: 4,096 frames of 1080p, about 20 s of one core
MAX_FRAMES = 1 << 31  # of a source: more is a forged or broken time stamp

# Containers that hold their own frames. Not playlists (HLS, concat, DASH), which make ffmpeg open the files and the
# addresses that a sample's bytes name.
_FORMATS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg,h264,hevc,m4v"
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)}
_UNTIMED = {"avi", "h264", "hevc", "m4v"}  # no presentation times: those that ffmpeg guesses can be out of order
_SKIPPING = {"h264", "hevc"}  # decoders that heed `skip_frame` packet by packet (dav1d reads it once, when it opens)


class DecodeError(Exception):
    """A clip that cannot be decoded. `reason` is one of a few words, to be counted: `empty`, `not_a_video`,
    `truncated`, `damaged`, `no_frames`, `too_large`; `detail` is for the reader."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Clip:
    """Frames sampled from a source."""

    video: np.ndarray  # uint8 [T, H, W, 3], RGB
    indices: np.ndarray  # int64 [T]: which frames of the source
    start: float  # seconds from the source's first frame to the clip's first frame
    frame_count: int  # of the source


def decode_clip(data: bytes, frames: int, stride: int, offset_draw: float) -> Clip:
    """`frames` whole frames, `stride` apart, from the start that `offset_draw` in [0, 1) picks. Raises DecodeError."""
    with Video(data) as video:
        indices = window(video.count, frames, stride, offset_draw)
        images = dict(video.frames(np.unique(indices)))
        stacked = np.stack([images[index] for index in indices.tolist()])
        return Clip(stacked, indices, video.time(indices[0]), video.count)


def window(count: int, frames: int, stride: int, offset_draw: float) -> np.ndarray:
    """Indices, int64 [frames], `stride` apart in a source of `count` frames; a short source repeats its last frame."""
    starts = max(count - (frames - 1) * stride, 1)
    return np.minimum(int(offset_draw * starts) + stride * np.arange(frames), count - 1)


def segments(count: int, draws: Sequence[float] | np.ndarray) -> np.ndarray:
    """One index of each of equal segments that cover a source of `count` frames, int64 [frames]; `draws` in [0, 1)
    say where in its segment (TSN, Wang et al. 2016, section 3.1). A short source repeats frames."""
    draws = np.asarray(draws)
    return np.minimum((np.arange(len(draws)) + draws) * count / len(draws), count - 1).astype(np.int64)


class Video:
    """A source's opened bytes, a context manager: `count` frames at the nominal `rate` a second.

    Of several video streams it takes the one that ffmpeg ranks best (the default one, then the largest). Raises
    DecodeError for bytes that are no video, or a video without frames; nothing that they say opens another file."""

    def __init__(self, data: bytes, motion: MotionRecorder | None = None):
        """motion: is told of every frame that is decoded, with its motion vectors."""
        if not data:
            raise DecodeError("empty", "0 bytes")
        self._data = data
        self._motion = motion
        self._convert = VideoReformatter()  # one for all frames: each frame's own would be set up anew
        self._size: tuple[int, int] | None = None
        self._open()
        self._read_timeline()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    def time(self, index: int) -> float:
        """Seconds from the first frame to frame `index`."""
        return float(int(index) / self.rate)

    def frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(index, image) for ascending, distinct indices below `count`; images uint8 [H, W, 3], upright, of one size.

        Decodes on one thread from the keyframe before the first index to the last index. Raises DecodeError."""
        shown = self._times[np.searchsorted(self._nominal, indices, side="right") - 1]
        places: dict[int, list[int]] = {}
        for index, time in zip(indices, shown.tolist()):
            places.setdefault(time, []).append(int(index))
        if self._motion is not None and len(indices):
            self._motion.first = int(indices[0])
        for time, image in self._images(deque(places)):
            for index in places[time]:
                yield index, image

    def _images(self, wanted: deque[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(time, image) for the ascending times in `wanted`, which it empties."""
        for time, frame in chain(self._find_from_keyframe(wanted), self._find_from_start(wanted)):
            yield time, self._rgb(frame)

    def _open(self) -> None:
        try:
            self._container = av.open(
                io.BytesIO(self._data), mode="r", options=_OPTIONS, **any_metadata(av.__version__), buffer_size=1 << 18
            )
        except av.FFmpegError as error:
            if self._data[4:8] == b"ftyp":
                raise DecodeError("truncated", f"an MP4 without its index ({error.strerror})") from None
            raise DecodeError("not_a_video", str(error.strerror)) from None
        stream = self._container.streams.best("video")
        if stream is None or Disposition.attached_pic in stream.disposition or stream.codec_context is None:
            raise DecodeError("not_a_video", f"no video stream that can be decoded in {self._container.format.name}")
        context = cast(VideoCodecContext, stream.codec_context)
        if not context.width * context.height:  # ffmpeg forgets a size above the limit
            raise DecodeError("damaged", f"it has no frame size, or one above {MAX_PIXELS:,} pixels")
        context.thread_type = "NONE"  # processes decode in parallel, not threads
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        if self._motion is not None:
            context.options = self._motion.switch_on(context.options)
        assert stream.time_base is not None
        self._stream, self._context, self._time_base = stream, context, stream.time_base

    def _read_timeline(self) -> None:
        """Set `_times` (of each frame, in ticks of `_time_base`), `_nominal` (its index), `_step`, `rate`, `count`."""
        self._timed = self._container.format.name not in _UNTIMED
        step = self._read_index() if self._timed else None
        if step is not None:
            self.rate = 1 / (step * self._time_base)
        else:
            self._read_packets()
            self.rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(0)
            if self.rate <= 0:
                raise DecodeError("not_a_video", "the video states no frame rate")
        self._step = float(1 / (self.rate * self._time_base)) if self._timed else 1.0
        nominal = np.rint((self._times - self._times[0]) / self._step)
        if nominal[-1] >= MAX_FRAMES:
            raise DecodeError("damaged", f"its time stamps span {nominal[-1]:.0f} frames")
        self._nominal = nominal.astype(np.int64)
        self.count = int(self._nominal[-1]) + 1

    def _read_index(self) -> int | None:
        """The ticks between frames if the container's index lists all frames at a constant rate (as an MP4's does).

        It costs 0.1 ms for 300 frames, where reading all packets costs 1 ms. Raises DecodeError for an index that
        points behind the end of the file."""
        stream = self._stream
        if not stream.frames or len(stream.index_entries) != stream.frames:
            return None
        if stream.frames > len(self._data):
            raise DecodeError("too_large", f"{stream.frames} frames claimed in {len(self._data)} bytes")
        entries = list(stream.index_entries)
        missing = sum(entry.pos + entry.size > len(self._data) for entry in entries)
        if missing:
            raise DecodeError("truncated", f"the last {missing} of {len(entries)} frames are cut off")
        decode_times = np.array([entry.timestamp for entry in entries if not entry.is_discard], dtype=np.int64)
        steps = np.unique(np.diff(decode_times))
        if len(steps) != 1 or steps[0] <= 0 or stream.start_time is None:
            return None
        self._times = stream.start_time + int(steps[0]) * np.arange(len(decode_times))
        return int(steps[0])

    def _read_packets(self) -> None:
        """Set `_times` from the packets themselves; packets without times are numbered."""
        try:
            times = [p.pts for p in self._packets() if p.size and not p.is_discard]
        except av.FFmpegError as error:
            raise DecodeError("damaged", f"its packets cannot be read: {error.strerror}") from None
        if not times:
            raise DecodeError("no_frames", "the video stream has no packet")
        known = [time for time in times if time is not None]
        self._timed = self._timed and len(known) == len(times)
        self._times = np.unique(known) if self._timed else np.arange(len(times))
        self._container.close()
        self._open()

    def _find_from_keyframe(self, wanted: deque[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The fast way: seek, and skip what is neither wanted nor referred to (a fifth of the time with B-frames).
        Takes from the ascending times in `wanted` what it finds intact and exact, and ends where it does not."""
        if not self._timed:
            return
        try:
            if wanted[0] > self._times[0]:
                self._container.seek(wanted[0], stream=self._stream)
            for frame, intact in self._decode(wanted=set(wanted)):
                self._record(frame, frame.pts)
                if frame.pts == wanted[0] and intact:
                    yield wanted.popleft(), frame
                elif frame.pts is None or frame.pts >= wanted[0]:
                    return
                if not wanted:
                    return
        except av.FFmpegError:
            return

    def _find_from_start(self, wanted: deque[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The sure way: decode from the first frame. Where the decoder gives no frame for a packet (a hidden frame of
        VP8, an empty one of a packed AVI), the frame before it is shown, as players do."""
        held: tuple[int, VideoFrame] | None = None
        if not wanted:
            return
        if self._timed:
            self._container.close()
            self._open()

        def shown() -> tuple[int, VideoFrame]:
            time = wanted.popleft()
            if held is None or time - held[0] > self._step:
                raise DecodeError("damaged", f"no intact frame {(time - int(self._times[0])) / self._step:.0f}")
            return time, held[1]

        try:
            for place, (frame, intact) in enumerate(self._decode()):
                time = frame.pts if self._timed and frame.pts is not None else place
                self._record(frame, time)
                while wanted and time > wanted[0]:
                    yield shown()
                held = (time, frame) if intact else None
                if wanted and time == wanted[0]:
                    yield shown()
                if not wanted:
                    return
        except av.FFmpegError as error:
            raise DecodeError("damaged", str(error.strerror)) from None
        while wanted:
            yield shown()

    def _decode(self, wanted: set[int] | None = None) -> Iterator[tuple[VideoFrame, bool]]:
        """Frames from where the container stands, and whether each is intact: neither patched up by the decoder nor,
        perhaps, built on one that was. Given `wanted` times, frames that nothing refers to may be left out."""
        context, pixels, intact = self._stream.codec_context, 0, True
        for packet in self._packets():
            if wanted is not None and context.name in _SKIPPING:
                context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            if self._motion is not None:
                self._motion.note(packet)
            for frame in cast(list[VideoFrame], packet.decode()):
                pixels += frame.width * frame.height
                if pixels > DECODE_BUDGET:
                    raise DecodeError("too_large", f"over {DECODE_BUDGET:,} pixels to decode up to the wanted frames")
                intact = not frame.is_corrupt and (intact or frame.key_frame)
                yield frame, intact

    def _packets(self) -> Iterator[Packet]:
        """Of the stream, from where the container stands."""
        # PyAV 18's generator keeps 160 bytes for good where it is neither read to its end nor closed
        with closing(cast(Generator[Packet, None, None], self._container.demux(self._stream))) as packets:
            yield from packets

    def _record(self, frame: VideoFrame, time: int | None) -> None:
        if self._motion is not None and time is not None:
            self._motion.add(int(self._nominal[np.searchsorted(self._times, time, side="right") - 1]), frame)

    def _rgb(self, frame: VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3], upright: a view of ffmpeg's memory, which lives as long as the view."""
        turns = round(frame.rotation / 90)  # counter-clockwise quarter turns
        width, height = self._size = self._size or (frame.width, frame.height)
        try:
            # threads=1: swscale would start one for each core, for every frame
            converted = self._convert.reformat(frame, width, height, format="rgb24", threads=1)
        except av.FFmpegError as error:
            raise DecodeError("damaged", f"cannot convert {frame.format.name}: {error.strerror}") from None
        plane = converted.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        return np.rot90(rows[:, : 3 * width].reshape(height, width, 3), turns)
