"""Motion from the codec: a clip's motion vectors, read while its frames are decoded.

A vector tells where a block of a frame was copied from. Divided by the distance to the reference frame, it is the
block's velocity. Summed over the frames between two sampled ones, minus the camera's motion, it shows what moves.

ffmpeg reports the direction of a reference (past or future), not its frame. It is taken to be the nearest frame in
that direction that other frames may refer to, or, for all vectors of a frame, a further one where that agrees much
better with the surrounding frames. With one reference (as `shards make` encodes) it is exact; with several, blocks
whose reference differs from that of most blocks of their frame get a multiple of their velocity. H.264, MPEG-4 and
MPEG-1/2 export vectors; HEVC, AV1 and VP9 do not, and a stream of keyframes has none.

Shapes: T sampled frames, S slots, y x cells that cover the frame, K vectors, N cells or vectors of some kind.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from tgm_scale.data.video.pictures import UPRIGHT, orientation

CELL, LARGE_CELL = 8, 16  # pixels: the smallest block that ffmpeg reports; a macroblock
_LARGE_FRAME = 192  # pixels of the short side from which on cells are large: still finer than a clip's tokens
CAMERA_CELLS = 500
_CANDIDATES = 4  # references that a vector may point to
_AROUND = 3  # frames on each side that determine the usual velocity
_CAMERA_ROUNDS = 5
_SMALLEST_SCALE = 0.1  # pixels a frame: below it, vectors differ by their quarter-pixel steps


@dataclass(frozen=True)
class _Field:
    """Vectors of one frame on its cells, before the distance to their references is known."""

    past_2yx: np.ndarray  # float32: sum of the content's vectors from past frames, in pixels; x, then y
    future_2yx: np.ndarray
    past_yx: np.ndarray  # float32: their number
    future_yx: np.ndarray

    @property
    def count_yx(self) -> np.ndarray:
        return self.past_yx + self.future_yx

    def velocity(self, past: int, future: int, coarse: bool = False) -> np.ndarray:
        """Return the mean of the vectors over the distances to their references, [2, y, x]; every other cell where
        `coarse`."""
        step = 2 if coarse else 1
        total_2yx = self.past_2yx[:, ::step, ::step] / past + self.future_2yx[:, ::step, ::step] / future
        return total_2yx / np.maximum(self.count_yx[::step, ::step], 1)


class MotionRecorder:
    """Recorder of a source's motion vectors while `data.video.decode.Video` decodes its frames."""

    def __init__(self) -> None:
        self.first = 0  # vectors of earlier frames, decoded on the way from a keyframe, are not kept
        self._fields: dict[int, _Field] = {}
        self._references: set[int] = set()  # indices of frames that others may refer to
        self._by_packet: dict[int, bool] = {}  # time stamp -> whether others may refer to the frame
        self._shape = (0, 0)
        self._orientation = UPRIGHT

    def note(self, packet: Packet) -> None:
        """Record before decoding whether a packet's frame may be referenced."""
        assert isinstance(packet.stream, VideoStream)
        if packet.pts is not None and packet.stream.codec_context.name == "h264":
            refers = _is_reference(packet, packet.stream.codec_context.extradata)
            if refers is not None:
                self._by_packet[packet.pts] = refers

    def add(self, index: int, frame: VideoFrame) -> None:
        """Record a decoded frame and its index in the source."""
        cell = LARGE_CELL if min(frame.height, frame.width) >= _LARGE_FRAME else CELL
        self._shape = (-(-frame.height // cell), -(-frame.width // cell))
        self._orientation = orientation(frame)
        by_packet = self._by_packet.get(frame.pts) if frame.pts is not None else None
        if by_packet if by_packet is not None else frame.pict_type != PictureType.B:
            self._references.add(index)
        vectors = frame.side_data.get("MOTION_VECTORS") if index >= self.first else None
        if vectors is not None:
            self._fields[index] = _rasterise(vectors.to_ndarray(), self._shape, cell)

    def slots(self, indices_T: np.ndarray, slots: int) -> np.ndarray | None:
        """Return the speed of each cell relative to the camera: float32 [S, y, x], source pixels from one sampled
        frame to the next, mean over a slot's frames, upright. None where the source has no vector near the clip.

        A frame counts the motion since the previous sampled frame; the first that to the second. A frame without
        vectors (a keyframe, or one that was not decoded) moves as the next one that has some, else as the last."""
        velocities = self._velocities()
        if not velocities:
            return None
        known = sorted(velocities)
        speeds = []
        for before, after in zip([indices_T[0], *indices_T[:-1]], indices_T, strict=True):
            sources = [known[min(bisect_left(known, i), len(known) - 1)] for i in range(before + 1, after + 1)]
            speeds.append(_speed([velocities[i] for i in sources], self._shape))
        if len(speeds) > 1:
            speeds[0] = speeds[1]
        else:
            nearest = known[min(bisect_left(known, indices_T[0]), len(known) - 1)]
            speeds[0] = _speed([velocities[nearest]], self._shape)
        speed_Tyx = self._orientation.turn(np.stack(speeds), axes=(1, 2))
        return np.ascontiguousarray(speed_Tyx.reshape(slots, -1, *speed_Tyx.shape[1:]).mean(axis=1))

    def _velocities(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Return, for each frame with vectors, its velocity [2, y, x], pixels a frame, and the number of its
        vectors [y, x]."""
        if not self._fields:
            return {}
        known = sorted(self._fields)
        references = sorted(self._references)
        nearest = {k: tuple(self._distances(references, k, past) for past in (True, False)) for k in known}
        coarse = [self._fields[k].velocity(past[0], future[0], coarse=True) for k, (past, future) in nearest.items()]
        coarse_T2yx, found = np.stack(coarse), {}
        for place, (index, (past, future)) in enumerate(nearest.items()):
            field, around = self._fields[index], [place + k for k in range(-_AROUND, _AROUND + 1) if k]
            near_T2yx = np.sort(coarse_T2yx[[k for k in around if 0 <= k < len(known)] or [place]], axis=0)
            usual_2yx = near_T2yx[len(near_T2yx) // 2]
            past_distance = _likeliest(field.past_2yx, field.past_yx, past, usual_2yx)
            future_distance = _likeliest(field.future_2yx, field.future_yx, future, usual_2yx)
            found[index] = field.velocity(past_distance, future_distance), field.count_yx
        return found

    def _distances(self, references: list[int], index: int, past: bool) -> list[int]:
        """Return the frames from `index` to the references (ascending) on one side of it, the nearest first."""
        if past:
            before = references[: bisect_left(references, index)][-_CANDIDATES:]
            return [index - other for other in reversed(before)] or [1]
        behind = references[bisect_right(references, index) :][:_CANDIDATES]
        return [other - index for other in behind] or [1]


def _median(x: np.ndarray) -> float:
    """Return the upper median of a flat array; numpy's own spends ten times as long on checks."""
    return float(np.partition(x, len(x) // 2)[len(x) // 2])


def _likeliest(total_2yx: np.ndarray, count_yx: np.ndarray, distances: list[int], usual_2yx: np.ndarray) -> int:
    """Return the reference distance for which one direction's vectors come closest to the usual velocity around the
    frame.

    Judged where both move; the nearest reference stays unless another one halves the error."""
    if len(distances) == 1 or not count_yx.any():
        return distances[0]
    count_yx, total_2yx = count_yx[::2, ::2], total_2yx[:, ::2, ::2]
    moves_yx = (np.abs(usual_2yx).max(axis=0) > 0.5) & (np.abs(total_2yx).max(axis=0) > 0.5 * count_yx)
    if moves_yx.sum() < 4:
        return distances[0]
    vector_2N, usual_2N = total_2yx[:, moves_yx] / count_yx[moves_yx], usual_2yx[:, moves_yx]

    def error(distance: int) -> float:
        return _median(np.hypot(*(vector_2N / distance - usual_2N)))

    nearest = error(distances[0])
    if nearest < 0.25 * _median(np.hypot(*usual_2N)):
        return distances[0]
    best = min(distances, key=error)
    return best if error(best) < 0.5 * nearest else distances[0]


def _rasterise(vectors_K: np.ndarray, shape: tuple[int, int], cell: int) -> _Field:
    """Sum the vectors on cells, each weighted by its block's area there, in smallest blocks; a block lies in its
    macroblock."""
    rows, columns = shape
    # content comes from dst + motion: forward in time it moves against a vector to a past frame, along one to a future
    # frame
    sign_K = np.where(vectors_K["source"] < 0, -1.0, 1.0) / vectors_K["motion_scale"]
    across_K, down_K = vectors_K["motion_x"] * sign_K, vectors_K["motion_y"] * sign_K
    width_K, height_K = vectors_K["w"].astype(np.int64), vectors_K["h"].astype(np.int64)
    left_K, top_K = vectors_K["dst_x"] - width_K // 2, vectors_K["dst_y"] - height_K // 2
    first = np.where(vectors_K["source"] < 0, 0, rows * columns)  # past, future
    sums = np.zeros((3, 2 * rows * columns))
    steps = (0, CELL) if cell == CELL else (0,)
    for down in steps:
        for right in steps:
            row_K, column_K = (top_K + down) // cell, (left_K + right) // cell
            covered_K = (down < height_K) & (right < width_K)
            covered_K &= (row_K >= 0) & (row_K < rows) & (column_K >= 0) & (column_K < columns)
            place_N = (first + row_K * columns + column_K)[covered_K]
            area_N = (width_K * height_K)[covered_K] / CELL**2 if cell > CELL else np.ones(len(place_N))
            for part, values_K in enumerate((across_K, down_K)):
                sums[part] += np.bincount(place_N, values_K[covered_K] * area_N, sums.shape[1])
            sums[2] += np.bincount(place_N, area_N, sums.shape[1])
    past, future = sums.astype(np.float32).reshape(3, 2, rows, columns).swapaxes(0, 1)
    return _Field(past[:2], future[:2], past[2], future[2])


def _speed(fields: list[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int]) -> np.ndarray:
    """Return the length of the summed velocities minus the camera's: float32 [y, x]. A cell without vectors gets
    the mean of its neighbours."""
    if not fields:
        return np.zeros(shape, np.float32)
    moved_2yx = np.sum([velocity for velocity, _ in fields], axis=0)
    known_yx = (np.sum([count for _, count in fields], axis=0) > 0).astype(np.float32)
    residual_2yx = (moved_2yx - camera_motion(moved_2yx, known_yx, len(fields))) * known_yx
    near_yx = _around(known_yx)
    smooth_2yx = np.stack([_around(part) for part in residual_2yx]) / np.maximum(near_yx, 1e-6)
    return np.hypot(*smooth_2yx).astype(np.float32)


def _around(x_yx: np.ndarray) -> np.ndarray:
    padded = np.pad(x_yx, 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def camera_motion(moved_2yx: np.ndarray, weight_yx: np.ndarray, frames: int) -> np.ndarray:
    """Return the affine field (pan, zoom, rotation) that most cells follow: [2, y, x].

    Iteratively reweighted least squares, starting from the median: a cell's weight falls with its distance from the
    fit (Cauchy's function, scaled by the median distance), so that independently moving objects hardly count.
    Fitted on at most some CAMERA_CELLS cells, evenly spread."""
    rows, columns = weight_yx.shape
    side = max(rows, columns)
    terms_yx3 = np.stack(np.broadcast_arrays(1.0, np.arange(columns) / side, np.arange(rows)[:, None] / side), axis=-1)
    step = max(round((rows * columns / CAMERA_CELLS) ** 0.5), 1)
    used_yx = np.zeros(weight_yx.shape, bool)
    used_yx[step // 2 :: step, step // 2 :: step] = True
    used_yx &= weight_yx > 0
    if used_yx.sum() < 6:
        return np.zeros_like(moved_2yx)
    terms_N3, moved_N2 = terms_yx3[used_yx], moved_2yx[:, used_yx].T.astype(np.float64)
    fit_32 = np.zeros((3, 2))
    fit_32[0] = np.median(moved_N2, axis=0)
    for _ in range(_CAMERA_ROUNDS):
        distance_N = np.hypot(*(moved_N2 - terms_N3 @ fit_32).T)
        scale = max(_median(distance_N), _SMALLEST_SCALE * frames)
        weighted_N3 = terms_N3 / (1 + (distance_N / scale) ** 2)[:, None]
        fit_32 = np.linalg.solve(weighted_N3.T @ terms_N3 + 1e-9 * np.eye(3), weighted_N3.T @ moved_N2)
    return np.moveaxis(terms_yx3 @ fit_32, -1, 0)


def _is_reference(packet: Packet, extradata: bytes | None) -> bool | None:
    """Return whether an H.264 packet's picture may be referenced (nal_ref_idc, ITU-T H.264 7.4.1); None where no
    slice is found. Units follow their lengths in MP4 and Matroska (avcC), else start codes."""
    data = memoryview(packet)  # a buffer, though PyAV's types do not say so
    if extradata and extradata[0] == 1 and len(extradata) > 4:
        size, place = (extradata[4] & 3) + 1, 0
        while place + size < len(data):
            header = data[place + size]
            if header & 31 in (1, 5):
                return bool(header & 96)
            place += size + int.from_bytes(data[place : place + size], "big")
        return None
    stream = bytes(data)
    place = stream.find(b"\0\0\1")
    while 0 <= place < len(stream) - 3:
        header = stream[place + 3]
        if header & 31 in (1, 5):
            return bool(header & 96)
        place = stream.find(b"\0\0\1", place + 3)
    return None
