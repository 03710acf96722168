"""Frames of a clip through torchcodec, on the CPU.

PyAV opens the bytes and reads the timeline as ever: torchcodec's ffmpeg has no whitelist and no largest frame, so it
is handed what PyAV found to be harmless, and fetches frames only. From the first frame that is not as it was asked
for, PyAV decodes the rest of the clip: so frames and errors are PyAV's.
"""

from __future__ import annotations

import ctypes
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from tgm_scale.data.video import decode
from tgm_scale.data.video.decode import Video
from tgm_scale.data.video.motion import MotionRecorder
from tgm_scale.data.video.pictures import orientation, pixel_aspect

# PyAV's name of a container -> what its bytes begin with (None: any byte). No other ffmpeg takes these for a playlist:
# an MP4 begins with a byte 0, at which ffmpeg ends its search for text.
_BEGINNINGS = {
    "mov,mp4,m4a,3gp,3g2,mj2": (0, None, None, None, *b"ftyp"),
    "matroska,webm": (*b"\x1a\x45\xdf\xa3",),
}
# What torchcodec decodes and turns into RGB as PyAV does, to the bit. Of all else some came out otherwise: VP8 and VP9
# of odd heights, HEVC of full range, AV1 with flipped bytes.
_EXACT_CODECS = {"h264"}
_EXACT_FORMATS = {"yuv420p", "yuvj420p", "yuv444p", "yuvj444p"}
_EXACT_COLOURS = {1, 2, 4, 5, 6, 7, 9}  # ffmpeg's AVColorSpace: unspecified, or YUV as broadcast has it
_FAULTS = (RuntimeError, IndexError, ValueError, OverflowError, AssertionError)  # what torchcodec raises of bad bytes
_ERROR = 16  # ffmpeg's AV_LOG_ERROR; what is worse is less
_AVUTIL = 52  # libavutil's version less ffmpeg's: 57 in ffmpeg 5
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def open_video(data: bytes, motion: MotionRecorder | None, torchcodec: bool) -> Video:
    """A source's opened bytes, decoded by PyAV, or by torchcodec. Raises DecodeError."""
    return TorchcodecVideo(data) if torchcodec else Video(data, motion)


def check_torchcodec() -> None:
    """Raise ValueError in one line where data.decoder=torchcodec cannot be had."""
    try:
        import torchcodec  # noqa: F401

        _complaints()  # needs ffmpeg's library itself
    except (ImportError, OSError, RuntimeError) as error:
        missing = re.findall(r"^OSError: (lib.+)", str(error), re.MULTILINE)  # its own text is a page long
        why = missing[0] if missing else str(error).strip().split("\n")[0]
        raise ValueError(
            f"data.decoder=torchcodec: it cannot be imported ({why}): pip install -c constraints.txt -e "
            "'.[torchcodec]', and ffmpeg's shared libraries (Debian: apt-get install ffmpeg); or set data.decoder=pyav"
        ) from None


class TorchcodecVideo(Video):
    """A `Video` whose frames torchcodec decodes: the same indices, times and errors."""

    def _images(self, wanted: deque[int]) -> Iterator[tuple[int, np.ndarray]]:
        alike = self._timed and self._is_harmless() and self._is_alike() and self._is_affordable(wanted)
        if alike and not self._is_mirrored():
            yield from self._find_with_torchcodec(wanted)
        if wanted:
            yield from super()._images(wanted)

    def _is_harmless(self) -> bool:
        """Whether torchcodec's ffmpeg can only see what PyAV's saw: no playlist, and no frame of more than MAX_PIXELS
        in any stream."""
        beginning = _BEGINNINGS.get(self._container.format.name, ())
        begins = all(wanted in (None, found) for wanted, found in zip(beginning, self._data))
        contexts = [stream.codec_context for stream in self._container.streams.video]
        known = all(context is not None and context.width * context.height for context in contexts)
        return bool(beginning) and begins and known

    def _is_alike(self) -> bool:
        """Whether torchcodec's frames are known to be PyAV's."""
        context, pixels = self._context, self._context.format
        return (
            context.name in _EXACT_CODECS
            and pixels is not None
            and pixels.name in _EXACT_FORMATS
            and context.height % 2 == 0
            and int(context.colorspace) in _EXACT_COLOURS
            and pixel_aspect(self._stream) == 1
        )

    def _is_mirrored(self) -> bool:
        """Whether the first frame is mirrored, which torchcodec does not see. Notes whether it is interlaced."""
        frame = self._first_frame()
        if frame is None:
            return True
        self.interlaced = self.interlaced or frame.interlaced_frame
        turned = orientation(frame)
        return (turned.exchanged + turned.upside_down + turned.mirrored) % 2 == 1

    def _is_affordable(self, wanted: deque[int]) -> bool:
        """Whether decoding from the keyframe before the first wanted time to the last one stays within the budget."""
        index = self._stream.index_entries
        nearest = index.search_timestamp(wanted[0])
        start = index[nearest].timestamp if nearest >= 0 else self._times[0]
        first, last = np.searchsorted(self._times, (start, wanted[-1]))
        return int(last + 1 - first) * self._context.width * self._context.height <= decode.DECODE_BUDGET

    def _find_with_torchcodec(self, wanted: deque[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Takes from `wanted` what torchcodec finds intact and exact, and ends where it does not."""
        complaints = _complaints()
        size = self._context.width, self._context.height
        with suppress(*_FAULTS):
            with complaints:
                decoder = _decoder(self._data, self._stream.index)
            if len(decoder) != len(self._times):
                return
            while wanted:
                with complaints:
                    frame = decoder.get_frame_at(int(np.searchsorted(self._times, wanted[0])))
                exact = round(frame.pts_seconds / self._time_base) == wanted[0]
                if complaints.heard or not exact or sorted(frame.data.shape[:2]) != sorted(size):
                    return
                self._size = size  # of the frames that PyAV may have to add
                yield wanted.popleft(), frame.data.numpy()


def _decoder(data: bytes, stream: int) -> Any:
    from torchcodec.decoders import VideoDecoder

    # It lists all packets first (1 ms for 300 frames); times handed over instead save nothing, and HEVC is then
    # searched from the wrong keyframe.
    return VideoDecoder(data, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1)


class _Complaints:
    """Whether ffmpeg logged within that it met an error or patched a frame up: torchcodec itself says nothing of it.

    1,500 clips of H.264 broken in five ways: 216 came out otherwise than PyAV says without it, none with it. One
    callback and one flag serve the process, so one thread decodes."""

    def __init__(self) -> None:
        import torchcodec

        self.heard = False
        self._library = ctypes.CDLL(f"libavutil.so.{torchcodec.ffmpeg_major_version + _AVUTIL}")
        self._callback = _LOG_CALLBACK(self._listen)

    def _listen(self, source: int, level: int, text: bytes, values: int) -> None:
        self.heard = self.heard or level <= _ERROR or text.startswith(b"concealing")

    def __enter__(self) -> None:
        self.heard = False
        self._library.av_log_set_callback(self._callback)

    def __exit__(self, *exception: object) -> None:
        self._library.av_log_set_callback(self._library.av_log_default_callback)


_complaints = cache(_Complaints)  # one for the process: ffmpeg has one callback
