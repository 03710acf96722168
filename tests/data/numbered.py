"""Videos whose frames bear their numbers, in any container, at any times: what a frame is can be read off it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tgm_scale.data.video.decode import Video
from tgm_scale.data.video.encode import cut_clip

BITS, SIDE = (3, 4), 16  # rows and columns of squares of one bit each, the first the highest; pixels of a square
HEIGHT, WIDTH = BITS[0] * SIDE, BITS[1] * SIDE


def picture(number: int) -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3]: the number in black and white squares."""
    bits = [number >> place & 1 for place in reversed(range(BITS[0] * BITS[1]))]
    squares = 16 + 220 * np.array(bits, np.uint8).reshape(BITS)
    return np.repeat(squares.repeat(SIDE, 0).repeat(SIDE, 1)[..., None], 3, axis=2)


def number_in(image: np.ndarray) -> int:
    """What `picture` wrote, of an image of any size."""
    height, width, _ = image.shape
    rows = ((np.arange(BITS[0]) + 0.5) * height / BITS[0]).astype(int)
    columns = ((np.arange(BITS[1]) + 0.5) * width / BITS[1]).astype(int)
    return int("".join("01"[int(bit)] for bit in (image[np.ix_(rows, columns)].mean(-1) > 126).flat), 2)


@dataclass(frozen=True)
class Format:
    """How a video is written; `options` are the container's."""

    container: str
    codec: str
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    b_frames: int = 0
    scale: int = 1  # of the picture


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
FORMATS = {
    "mp4": Format("mp4", "libx264"),
    "mp4, B-frames": Format("mp4", "libx264", b_frames=2),  # its edit list skips the time before the first frame
    "mp4, no edit list": Format("mp4", "libx264", options={"use_editlist": "0"}, b_frames=2),
    "mp4, fragmented": Format("mp4", "libx264", options=FRAGMENTED, b_frames=2),
    "mov": Format("mov", "mpeg4", b_frames=2),
    "webm": Format("webm", "libvpx-vp9"),
    "webm, VP8": Format("webm", "libvpx"),
    "matroska": Format("matroska", "libx264", b_frames=2),
    "mpegts": Format("mpegts", "libx264", b_frames=2),
    "mpegts, MPEG-2": Format("mpegts", "mpeg2video", b_frames=2),
    "avi": Format("avi", "mpeg4"),
    "avi, B-frames": Format("avi", "mpeg4", b_frames=2),
    "ogg": Format("ogg", "libvpx"),  # states no average rate, as with Theora
    "flv": Format("flv", "libx264"),
}


def write(
    format: Format,
    ticks: Sequence[int],
    clock: Fraction,
    rate: Fraction | None,
) -> bytes:
    """Frames numbered from 0 on, at these times in units of `clock` seconds; `rate` is what is stated."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format.container, options=format.options) as output:
        stream = output.add_stream(format.codec, rate=rate)
        size = WIDTH * format.scale, HEIGHT * format.scale
        stream.width, stream.height, stream.pix_fmt = *size, format.pixels
        context = stream.codec_context
        context.time_base = stream.time_base = clock
        context.thread_count, context.gop_size, context.max_b_frames = 1, 12, format.b_frames
        context.bit_rate = 1_000_000
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(*size, format=format.pixels)
            frame.pts, frame.time_base = tick, clock
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def numbers(data: bytes) -> list[int]:
    """The number of the frame of each index, as the loader decodes it."""
    with Video(data) as video:
        return [number_in(image) for _, image in video.frames(range(video.count))]


def cut(folder: Path, data: bytes, start: Fraction, end: Fraction) -> tuple[list[int], list[Fraction]]:
    """Numbers and times of the frames of a span, as `shards make` cuts them."""
    (folder / "video").write_bytes(data)
    with av.open(io.BytesIO(cut_clip(str(folder / "video"), start, end, short_side=48).data)) as container:
        frames = list(container.decode(video=0))
        return [number_in(frame.to_ndarray(format="rgb24")) for frame in frames], [f.pts * f.time_base for f in frames]
