"""Decoding of a clip's frames from its bytes, through PyAV.

A frame's index counts frames at the stream's nominal rate from its first frame on. Where the rate is constant, that
is the frame's place in the stream; where it varies, index i is the frame that a player shows at time i / rate
(data/video/frame_times.py). Frames are returned as players show them: upright, with square pixels; not
deinterlaced.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from tgm_scale.data.video.frame_times import DecodeError, frame_times, packets_of
from tgm_scale.data.video.motion import MotionRecorder
from tgm_scale.data.video.pictures import SCALING, Orientation, best_stream, orientation, pixel_aspect
from tgm_scale.runtime.compat import any_metadata
from tgm_scale.runtime.outside.stand_ins import START, stand_in

MAX_PIXELS = 8192 * 4320  # of a frame: 8K; a decoder may keep 16 of them for reference
DECODE_BUDGET = 1 << 33  # pixels decoded for one clip: 4,096 frames of 1080p, about 20 s of one core

# Containers that hold their own frames. Playlists (HLS, concat, DASH) are excluded: they make ffmpeg open files and
# addresses named by a sample's bytes.
_FORMATS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg,h264,hevc,m4v"
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)}
_SKIPPING = {"h264", "hevc"}  # decoders that apply `skip_frame` packet by packet (dav1d reads it once, when it opens)


@dataclass(frozen=True)
class Clip:
    """Frames sampled from a source."""

    video: np.ndarray  # uint8 [T, H, W, 3], RGB
    indices: np.ndarray  # int64 [T]: their indices in the source
    start: float  # seconds from the source's first frame to the clip's first frame


def frames_in(data: bytes) -> int | None:
    """Return the number of frames of an encoded video; None for other data."""
    try:
        with Video(data) as video:
            return video.count
    except DecodeError:
        return None


def decode_clip(data: bytes, frames: int, stride: int, offset_draw: float) -> Clip:
    """Decode `frames` whole frames, `stride` apart; `offset_draw` in [0, 1) selects the start. Raises DecodeError."""
    with Video(data) as video:
        indices = window(video.count, frames, stride, offset_draw)
        images = dict(video.frames(np.unique(indices)))
        stacked = np.stack([images[index] for index in indices.tolist()])
        return Clip(stacked, indices, video.time(indices[0]))


def window(count: int, frames: int, stride: int, offset_draw: float) -> np.ndarray:
    """Return indices, int64 [frames], `stride` apart in a source of `count` frames; a short source repeats its last
    frame."""
    starts = max(count - (frames - 1) * stride, 1)
    return np.minimum(int(offset_draw * starts) + stride * np.arange(frames), count - 1)


def segments(count: int, draws: Sequence[float] | np.ndarray, start: float = 0.0, length: float = 1.0) -> np.ndarray:
    """Return one index for each of equal segments of a source of `count` frames, int64 [frames]; `draws` in [0, 1)
    select the position in its segment (TSN, Wang et al. 2016, section 3.1). A short source repeats frames.

    start, length: the part covered by the segments, in shares of the source, whose first and last frame stand for
    what lies outside it."""
    draws = np.asarray(draws)
    places = (np.arange(len(draws)) + draws) * count / len(draws)
    return np.clip(start * count + length * places, 0, count - 1).astype(np.int64)


class Video:
    """Opened video source, a context manager: `count` frames at the nominal `rate` a second.

    Of several video streams it takes the one that ffmpeg ranks best (the default one, then the largest), but never
    a cover. `interlaced` is set once a returned frame is marked so. Raises DecodeError for bytes that are not a
    video, or a video without frames; no reference in them opens another file."""

    def __init__(self, data: bytes, motion: MotionRecorder | None = None):
        """motion: records the motion vectors of every decoded frame."""
        if not data:
            raise DecodeError("empty", "0 bytes")
        self._data = data
        self._motion = motion
        self._convert = VideoReformatter()  # one for all frames: a new one for each would be set up again
        self._size: tuple[int, int] | None = None  # width and height before rotation
        self._orientation: Orientation | None = None
        self._scaling: str | None = None
        self._chosen: int | None = None
        self.interlaced = False
        self._open()
        found = frame_times(self._container, self._stream, len(data))
        self._times, self._timed, self._step = found.times_N, found.timed, found.step
        self._first = found.timeline.first_N  # the index at which each frame is first shown
        self.rate, self.count = found.timeline.rate, found.timeline.count
        if found.moved:
            self._rewind()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    def time(self, index: int) -> float:
        """Return the seconds from the first frame to frame `index`."""
        return float(int(index) / self.rate)

    def frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, image) for ascending, distinct indices below `count`; images uint8 [H, W, 3], upright, of one
        size.

        Decodes on one thread from the keyframe before the first index to the last index. Raises DecodeError."""
        shown = self._times[np.searchsorted(self._first, indices, side="right") - 1]
        places: dict[int, list[int]] = {}
        for index, time in zip(indices, shown.tolist()):
            places.setdefault(time, []).append(int(index))
        if self._motion is not None and len(indices):
            self._motion.first = int(indices[0])
        wanted = deque(places)
        for time, frame in chain(self._find_from_keyframe(wanted), self._find_from_start(wanted)):
            image = self._rgb(frame)
            for index in places[time]:
                yield index, image

    def _opened(self) -> InputContainer:
        try:
            return av.open(
                io.BytesIO(self._data), mode="r", options=_OPTIONS, **any_metadata(av.__version__), buffer_size=1 << 18
            )
        except av.FFmpegError as error:
            if self._data[4:8] == b"ftyp":
                raise DecodeError("truncated", f"an MP4 without its index ({error.strerror})") from None
            raise DecodeError("not_a_video", stand_in(self._data[:START]) or str(error.strerror)) from None

    def _open(self) -> None:
        self._container = self._opened()
        stream = self._choose()
        if stream is None:
            raise DecodeError("not_a_video", f"no video stream that can be decoded in {self._container.format.name}")
        context = cast(VideoCodecContext, stream.codec_context)
        if not context.width * context.height:  # ffmpeg discards a size above the limit
            raise DecodeError("damaged", f"it has no frame size, or one above {MAX_PIXELS:,} pixels")
        context.thread_type = "NONE"  # processes decode in parallel, not threads
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        if self._motion is not None:
            context.options = context.options | {"flags2": "+export_mvs"}
        assert stream.time_base is not None
        self._stream, self._context, self._time_base = stream, context, stream.time_base
        self._begun = False

    def _rewind(self) -> None:
        self._container.close()
        self._open()

    def _choose(self) -> VideoStream | None:
        """Return the stream to decode: the same one whenever the bytes are opened again."""
        if self._chosen is not None:
            return self._container.streams.video[self._chosen]
        try:
            stream = best_stream(self._container)
        except av.FFmpegError as error:
            raise DecodeError("damaged", f"its packets cannot be read: {error.strerror}") from None
        if len(self._container.streams.video) > 1 and stream is not None:
            self._chosen = self._container.streams.video.index(stream)
            self._container.close()
            self._container = self._opened()
            stream = self._container.streams.video[self._chosen]
        return stream

    def _find_from_keyframe(self, wanted: deque[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Fast path: seek, and skip frames that are neither wanted nor referenced (a fifth of the time with
        B-frames). Take from the ascending times in `wanted` those found intact and exact, and stop at the first
        failure."""
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
        """Reliable path: decode from the first frame. Where the decoder returns no frame for a packet (a hidden
        frame of VP8, an empty one of a packed AVI), the previous frame is shown, as players do."""
        held: tuple[int, VideoFrame] | None = None
        if not wanted:
            return
        if self._timed or self._begun:
            self._rewind()

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
        """Yield frames from the container's position, and whether each is intact: neither concealed by the decoder
        nor possibly predicted from a concealed frame. Given `wanted` times, unreferenced frames may be left out."""
        context, pixels, intact, self._begun = self._stream.codec_context, 0, True, True
        for packet in packets_of(self._container, self._stream):
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

    def _record(self, frame: VideoFrame, time: int | None) -> None:
        if self._motion is not None and time is not None:
            self._motion.add(int(self._first[np.searchsorted(self._times, time, side="right") - 1]), frame)

    def _rgb(self, frame: VideoFrame) -> np.ndarray:
        """Return the frame as displayed, uint8 [H, W, 3]: a view of ffmpeg's memory, which lives as long as the
        view."""
        if self._orientation is None or self._size is None:
            self._set_display(frame)
        assert self._size is not None and self._orientation is not None
        self.interlaced = self.interlaced or frame.interlaced_frame
        width, height = self._size
        try:
            # threads=1: swscale would start one for each core, for every frame
            converted = self._convert.reformat(frame, width, height, "rgb24", interpolation=self._scaling, threads=1)
        except av.FFmpegError as error:
            raise DecodeError("damaged", f"cannot convert {frame.format.name}: {error.strerror}") from None
        plane = converted.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        return self._orientation.turn(rows[:, : 3 * width].reshape(height, width, 3))

    def _set_display(self, frame: VideoFrame) -> None:
        self._orientation = orientation(frame)
        if self._size is None:
            self._size = max(1, round(frame.width * pixel_aspect(self._stream))), frame.height
            self._scaling = SCALING if self._size[0] != frame.width else None
            if self._size[0] * frame.height > MAX_PIXELS:
                raise DecodeError("too_large", f"with square pixels, a frame of {self._size[0]}x{frame.height}")
