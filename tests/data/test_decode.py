"""Decoding: each frame the one that decoding everything in turn would give, and a clear reason where there is none."""

from __future__ import annotations

import ctypes
import gc
import io
import pickle
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgm_scale.data.video import decode
from tgm_scale.data.video.decode import DecodeError, Video, decode_clip, window


def encode(
    path: Path, times: list[int], codec: str = "libx264", container: str = "mp4", pixels: str = "yuv420p"
) -> bytes:
    """Frames of moving noise at the given times, in ticks of 1/30 s."""
    noise = np.random.default_rng(0)
    still = noise.integers(0, 120, (48, 64, 3))
    with av.open(str(path), "w", format=container, options={"movflags": "faststart"}) as output:
        stream = output.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 12
        if codec == "libx264":
            stream.codec_context.max_b_frames = 2
        stream.codec_context.time_base = Fraction(1, 30)
        for number, time in enumerate(times):
            image = (np.roll(still, 2 * number, 1) + noise.integers(0, 60, still.shape) + number % 70).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = time
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """120 frames, keyframes 12 apart, B-frames, its index at the front."""
    return encode(tmp_path_factory.mktemp("video") / "whole.mp4", list(range(120)))


def square(stream: av.VideoStream, frame: av.VideoFrame) -> dict[str, Any]:
    """How the frame is scaled to square pixels."""
    width = round(frame.width * (stream.sample_aspect_ratio or 1))
    return {"width": width, "height": frame.height, "interpolation": "BICUBIC" if width != frame.width else None}


def in_turn(data: bytes) -> list[tuple[Fraction | None, np.ndarray]]:
    """(time, image, upright and of square pixels) of all frames of the best stream, decoded in turn by plain PyAV."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.best("video")
        return [
            (
                None if frame.pts is None else frame.pts * stream.time_base,
                np.rot90(frame.to_ndarray(format="rgb24", **square(stream, frame)), frame.rotation // 90),
            )
            for frame in container.decode(stream)
        ]


def shown(frames: list[tuple[Fraction, np.ndarray]], rate: Fraction, index: int) -> np.ndarray:
    """What a player shows at time index / rate; times may be rounded to a millisecond."""
    until = frames[0][0] + index / rate + Fraction(1, 1000)
    return [image for time, image in frames if time <= until][-1]


SELECTED = [
    *("arm_wrestling.mp4", "asl_brother.mkv", "asl_yes.mkv", "car_turn.mp4", "cow_walking.mp4"),
    *("../edge/av1_video.mkv", "../edge/h264_10bits.mp4", "../edge/h265_video.mp4", "../edge/part_0.mp4"),
    *("../edge/carphone_distorted.mp4", "../edge/unordered.mov", "../edge/video_0.mov", "../edge/video_90.mov"),
    *("../edge/video_180.mov", "../edge/newtonscradle.gif", "../edge/nasa_13013.mp4"),
]


@pytest.mark.parametrize("name", SELECTED)
def test_real_videos_decode_as_in_turn(real: Path, name: str) -> None:
    data = (real / "videos" / name).read_bytes()
    frames = in_turn(data)
    for draw in (0.0, 0.4, 0.999):
        clip = decode_clip(data, frames=8, stride=4, offset_draw=draw)
        with Video(data) as video:
            rate = video.rate
        assert clip.start == float(clip.indices[0] / rate)
        for image, index in zip(clip.video, clip.indices.tolist()):
            assert np.array_equal(image, shown(frames, rate, index))


def test_a_seek_to_a_keyframe_that_promises_nothing_starts_over(real: Path) -> None:
    """After a seek to this clip's keyframes the decoder marks all frames as damaged: they are no IDR frames."""
    data = (real / "videos" / "cockatoo.mp4").read_bytes()
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.best("video")
        container.seek(120 * 512, stream=stream)
        assert next(frame.is_corrupt for frame in container.decode(stream))
    with Video(data) as video:
        [(_, image)] = video.frames([120])
    with av.open(io.BytesIO(data)) as container:
        frame = next(frame for place, frame in enumerate(container.decode(video=0)) if place == 120)
    assert np.array_equal(image, frame.to_ndarray(format="rgb24"))


@pytest.mark.parametrize("name", ["ucf_ApplyEyeMakeup_g01_c01.avi", "ucf_Diving_g01_c01.avi"])
def test_avi_which_has_no_times_decodes_by_place(real: Path, name: str) -> None:
    data = (real / "videos" / name).read_bytes()
    frames = in_turn(data)
    clip = decode_clip(data, frames=8, stride=4, offset_draw=0.6)
    for image, index in zip(clip.video, clip.indices.tolist()):
        assert np.array_equal(image, frames[index][1])


@pytest.mark.parametrize(
    ("name", "count", "rate", "shape"),
    [
        ("video_0.mov", 3, 30, (320, 568)),
        ("video_90.mov", 3, 30, (568, 320)),
        ("nasa_13013.mp4", 390, Fraction(30000, 1001), (270, 480)),  # the default of its two streams
        ("newtonscradle.gif", 41, 50, (150, 200)),  # 36 frames, of 2 to 5 hundredths each
        ("h264_10bits.mp4", 30, 30, (200, 200)),
    ],
)
def test_what_is_known_of_a_source(real: Path, name: str, count: int, rate: Fraction, shape: tuple[int, int]) -> None:
    with Video((real / "edge" / name).read_bytes()) as video:
        assert (video.count, video.rate) == (count, rate)
        [(_, image)] = video.frames([1])
        assert image.shape == (*shape, 3) and image.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.mp4", "empty"),
        ("text_not_video.mp4", "not_a_video"),
        ("truncated.mp4", "truncated"),
        ("corrupted.mp4", "damaged"),
    ],
)
def test_bad_files_fail_with_their_reason(
    real: Path, capfd: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_clip((real / "edge" / name).read_bytes(), 8, 4, 0.5)
    assert caught.value.reason == reason
    assert capfd.readouterr() == ("", "")  # ffmpeg keeps quiet


@pytest.mark.parametrize(("first", "stride"), [(0, 1), (1, 3), (11, 4), (50, 2), (104, 1)])
def test_any_window_of_a_clip_with_b_frames(whole: bytes, first: int, stride: int) -> None:
    frames = in_turn(whole)
    wanted = list(range(first, 120, stride))[:16]
    with Video(whole) as video:
        found = dict(video.frames(wanted))
    assert list(found) == wanted
    assert all(np.array_equal(found[index], frames[index][1]) for index in wanted)


def test_a_varying_rate_shows_the_frame_of_the_time(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
    for container in ("mp4", "matroska"):
        data = encode(tmp_path / f"varying.{container}", times, container=container)
        frames = in_turn(data)
        with Video(data) as video:
            found = dict(video.frames(range(video.count)))
            assert all(np.array_equal(image, shown(frames, video.rate, i)) for i, image in found.items())
            assert len(found) == video.count > 20


def test_frames_that_an_edit_list_hides_do_not_count(whole: bytes, tmp_path: Path) -> None:
    """A copy that starts 5 frames late keeps the frames from its keyframe on, and hides those 5."""
    path = tmp_path / "late.mp4"
    with av.open(io.BytesIO(whole)) as source, av.open(str(path), "w") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - 5 * 512, packet.dts - 5 * 512
                packet.stream = copy
                output.mux(packet)
    frames = in_turn(whole)
    with Video(path.read_bytes()) as video:
        assert video.count == 115
        found = dict(video.frames([0, 60, 114]))
    assert all(np.array_equal(image, frames[index + 5][1]) for index, image in found.items())


@given(st.integers(1, 500), st.integers(1, 32), st.integers(1, 8), st.floats(0, 1, exclude_max=True))
def test_a_window_lies_in_its_source_or_repeats_its_last_frame(
    count: int, frames: int, stride: int, draw: float
) -> None:
    indices = window(count, frames, stride, draw)
    assert len(indices) == frames and indices[0] >= 0 and indices[-1] <= count - 1
    if count > (frames - 1) * stride:
        assert (np.diff(indices) == stride).all()
    else:
        assert np.array_equal(indices, np.minimum(np.arange(frames) * stride, count - 1))


def test_every_start_is_drawn_equally_often() -> None:
    starts = [window(20, 4, 5, draw)[0] for draw in np.arange(1000) / 1000]
    assert np.array_equal(np.bincount(starts), np.full(5, 200))


def test_a_clip_cut_short_is_refused_wherever_its_window_lies(whole: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_clip(whole[:-5], 4, 1, 0.0)
    assert caught.value.reason == "truncated" and "the last 1 of 120 frames" in caught.value.detail


def test_a_frame_built_on_a_damaged_one_is_refused(whole: bytes) -> None:
    frames = in_turn(whole)
    broken = bytearray(whole)
    with av.open(io.BytesIO(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.is_keyframe][4]
        position, size, at = packet.pos, packet.size, round(packet.pts * packet.time_base * 30)
    broken[position + size // 2 : position + size // 2 + 20] = bytes(20)
    with Video(bytes(broken)) as video:
        before = dict(video.frames([0, at - 6]))
        assert all(np.array_equal(image, frames[index][1]) for index, image in before.items())
    with Video(bytes(broken)) as video, pytest.raises(DecodeError) as caught:
        list(video.frames([at + 5]))
    assert caught.value.reason == "damaged"
    with Video(bytes(broken)) as video:
        [(_, after)] = video.frames([at + 20])  # past the next keyframe
    assert np.array_equal(after, frames[at + 20][1])


def test_a_playlist_opens_no_other_file(whole: bytes, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(whole)
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {other}\n",
    ):
        with pytest.raises(DecodeError) as caught:
            decode_clip(text.encode(), 2, 1, 0.0)
        assert caught.value.reason == "not_a_video"


def test_a_giant_frame_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    """In QuickTime RLE only the header says the size, and a frame of any size takes a few bytes."""
    data = bytearray(encode(tmp_path / "rle.mov", list(range(4)), codec="qtrle", container="mov", pixels="rgb24"))
    size = data.index(struct.pack(">HH", 64, 48), data.index(b"stsd"))
    for side in (8000, 60000):
        data[size : size + 4] = struct.pack(">HH", side, side)
        with pytest.raises(DecodeError) as caught:
            decode_clip(bytes(data), 2, 1, 0.0)
        assert caught.value.reason == "damaged" and "above 35,389,440 pixels" in caught.value.detail


def test_decoding_has_a_budget(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "DECODE_BUDGET", 20 * 64 * 48)
    decode_clip(whole, 4, 1, 0.5)  # it starts at a keyframe near by
    with pytest.raises(DecodeError) as caught:
        decode_clip(whole, 16, 4, 0.0)
    assert caught.value.reason == "too_large"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_give_frames_or_a_reason(whole: bytes, data: st.DataObject) -> None:
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["set", "cut", "swap", "head"]))
        at = data.draw(st.integers(0, max(0, len(broken) - 1)))
        if kind == "cut":
            del broken[at:]
        elif kind == "swap":
            broken[at : at + 40] = broken[at + 40 : at + 80]
        elif broken:
            broken[at % 2000 % len(broken) if kind == "head" else at] = data.draw(st.integers(0, 255))
    try:
        clip = decode_clip(bytes(broken), 4, 3, 0.7)
        assert clip.video.ndim == 4 and len(clip.video) == 4
    except DecodeError as error:
        assert error.reason in ("empty", "not_a_video", "truncated", "damaged", "no_frames", "too_large")


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("damaged", "no intact frame 3")))
    assert (error.reason, error.detail, str(error)) == ("damaged", "no intact frame 3", "damaged: no intact frame 3")


class _Heap(ctypes.Structure):
    """What glibc's mallinfo2 says of the C heap, bytes."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks in_use free keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def heap_growth(decode_once: Callable[[], object], clips: int) -> int:
    """Bytes of the C heap that are in use after `clips` calls and were not before, once the first 300 are made."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("only glibc 2.33 and newer say how much of the heap is in use")
    library.mallinfo2.restype = _Heap

    def in_use_after(count: int) -> int:
        for _ in range(count):
            decode_once()
        gc.collect()
        return library.mallinfo2().in_use

    before = in_use_after(300)
    return in_use_after(clips) - before


def test_decoding_clip_after_clip_keeps_no_memory(whole: bytes) -> None:
    """30 bytes a clip; 180 with PyAV's generators left open (12 MB over the 100,000 clips of a worker)."""
    assert heap_growth(lambda: decode_clip(whole, 4, 1, 0.0), 1200) < 100 * 1200


@pytest.mark.parametrize(
    ("container", "codec", "pixels"),
    [("avi", "mpeg4", "yuv420p"), ("avi", "mjpeg", "yuvj420p"), ("matroska", "libx264", "yuv420p")],
)
def test_frames_are_asked_for_more_than_once_of_one_open_file(container: str, codec: str, pixels: str) -> None:
    """Forwards, back, and after a look that ended early: an AVI has no times, and its frames go by their place."""
    written = io.BytesIO()
    with av.open(written, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = pixels
        for number in range(30):
            image = np.full((64, 64, 3), 8 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    with Video(written.getvalue()) as video:
        next(video.frames([7, 8, 9]))
        for wanted in ([3, 10], [0, 5], [20, 29], [1, 2]):
            found = {index: round(float(image.mean()) / 8) for index, image in video.frames(wanted)}
            assert found == {index: index for index in wanted}
