"""Pictures as players show them: the video rather than the cover, upright, with square pixels, without combing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple, cast

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

SCALING = "BICUBIC"
_WIDEST = 4  # width by height or its inverse: a more extreme pixel aspect is a broken tag
_ENOUGH = 100  # packets of other streams by which a video's second picture has come


def best_stream(container: InputContainer) -> VideoStream | None:
    """Return the stream that ffmpeg ranks best (the default one, then the largest), unless it is a cover picture in
    a file with a video: marked as such, or with one packet where another stream has many. With several candidates
    packets are read, and the container's position changes."""
    streams = [s for s in container.streams.video if s.codec_context and Disposition.attached_pic not in s.disposition]
    best = cast("VideoStream | None", container.streams.best("video"))
    if len(streams) < 2:
        return streams[0] if streams else None
    packets: Counter[int] = Counter()
    for packet in container.demux(streams):
        packets[packet.stream.index] += packet.size > 0
        if (best in streams and packets[best.index] > 1) or packets.most_common(1)[0][1] >= _ENOUGH:
            break
    return best if best in streams and packets[best.index] > 1 else max(streams, key=lambda s: packets[s.index])


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Return the width of a pixel divided by its height."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return aspect if Fraction(1, _WIDEST) <= aspect <= _WIDEST else Fraction(1)


class Orientation(NamedTuple):
    """Transformation of a stored picture for display: transpose, then flip vertically, then horizontally."""

    exchanged: bool
    upside_down: bool
    mirrored: bool

    def turn(self, image: np.ndarray, axes: tuple[int, int] = (0, 1)) -> np.ndarray:
        """Return a view of the transformed image, whose rows and columns are these axes."""
        if self.exchanged:
            image = image.swapaxes(*axes)
        if self.upside_down:
            image = np.flip(image, axes[0])
        return np.flip(image, axes[1]) if self.mirrored else image


UPRIGHT = Orientation(False, False, False)
# Counter-clockwise quarter turns:
_TURNED = (UPRIGHT, Orientation(True, True, False), Orientation(False, True, True), Orientation(True, False, True))


def orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation from the file's display matrix: eight, with mirrors (front cameras); an angle gives only
    four.

    The matrix [a b; c d] maps the stored (x, y) to (a x + c y, b x + d y); a rotation by other than quarter turns
    is rounded to the nearest."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know some of the side data: the angle is known, a mirror is not
        return _TURNED[round(frame.rotation / 90) % 4]
    if data is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(cast("memoryview", data), np.int32, 5).tolist()
    if abs(a) >= abs(b):
        return Orientation(False, d < 0, a < 0)
    return Orientation(True, b < 0, c < 0)


def deinterlaced(frames: Iterable[tuple[VideoFrame, Fraction]]) -> Iterator[tuple[VideoFrame, Fraction]]:
    """Yield the same frames and times, deinterlaced where marked as interlaced (bwdif, one frame each). From the
    first such frame on they come one frame later, since the filter uses the next one."""
    graph: Graph | None = None
    shape: tuple = ()
    times: list[Fraction] = []
    for frame, time in frames:
        if graph is not None and shape != _shape(frame):
            yield from _rest(graph, times)
            graph = None
        if graph is None and frame.interlaced_frame:
            graph, shape = _graph(frame), _shape(frame)
        if graph is None:
            yield frame, time
            continue
        times.append(time)
        graph.vpush(frame)
        yield from _pulled(graph, times)
    if graph is not None:
        yield from _rest(graph, times)


def _shape(frame: VideoFrame) -> tuple:
    return frame.width, frame.height, frame.format.name


def _graph(frame: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1  # processes work in parallel
    source = graph.add_buffer(None, frame.width, frame.height, frame.format, time_base=frame.time_base)
    deinterlace = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(deinterlace)
    deinterlace.link_to(sink)
    graph.configure()
    return graph


def _rest(graph: Graph, times: list[Fraction]) -> Iterator[tuple[VideoFrame, Fraction]]:
    graph.vpush(None)
    yield from _pulled(graph, times)


def _pulled(graph: Graph, times: list[Fraction]) -> Iterator[tuple[VideoFrame, Fraction]]:
    while times:
        try:
            frame = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield frame, times.pop(0)
