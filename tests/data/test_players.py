"""What a player shows: the frames of a span, the frame of an index, upright, with round circles, without combs."""

from __future__ import annotations

import io
import math
import re
import struct
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loading import clip_loader
from numbered import FORMATS, Format, cut, number_in, numbers, write

from tgm_scale.contracts import Grid
from tgm_scale.corpora.inspector import SampleInspector
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.decode import DecodeError, Video
from tgm_scale.data.video.encode import CutError, cut_clip

COUNT = 30
RATES = [Fraction(24000, 1001), *map(Fraction, (24, 25)), Fraction(30000, 1001), *map(Fraction, (30, 50, 60))]
RATES += [Fraction(60000, 1001)]


@cache
def steady(name: str, rate: Fraction) -> bytes:
    return write(FORMATS[name], range(COUNT), 1 / rate, rate)


def to_milliseconds(data: st.DataObject, time: Fraction) -> Fraction:
    """Rounded to the nearest one; either way where both are as near."""
    near = {math.floor(time * 1000), math.ceil(time * 1000)}
    return Fraction(data.draw(st.sampled_from(sorted(ms for ms in near if abs(ms - time * 1000) <= 0.5))), 1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("players")


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=6, deadline=None)
@given(st.sampled_from(RATES), st.integers(0, COUNT - 1), st.integers(1, COUNT), st.data())
def test_a_span_at_a_constant_rate(
    folder: Path, name: str, rate: Fraction, first: int, length: int, data: st.DataObject
) -> None:
    """All frames that a player shows in the span, no other, each once and at the rate; and each index has its own."""
    source, end = steady(name, rate), min(first + length, COUNT)
    assert numbers(source) == list(range(COUNT))
    span = to_milliseconds(data, first / rate), to_milliseconds(data, end / rate)
    found, times = cut(folder, source, *span)
    assert found == list(range(first, end))
    assert max(abs(time - k / rate) for k, time in enumerate(times)) < Fraction(1, 900)


CLOCKS = {"mp4": (30, 60, 600, 90000), "matroska": (30, 1000), "webm": (60, 1000), "mpegts": (30, 60, 90000)}
CLOCKS |= {
    "mp4, B-frames": (30, 60),
    "mp4, fragmented": (60, 600),
    "flv": (30, 1000),
    "avi": (30, 60),
}


@pytest.mark.parametrize("name", CLOCKS)
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_a_span_at_a_varying_rate(folder: Path, name: str, data: st.DataObject) -> None:
    clock = Fraction(1, data.draw(st.sampled_from(CLOCKS[name])))
    least = math.ceil(Fraction(1, 60) / clock)
    gaps = data.draw(st.lists(st.integers(least, 6 * least), min_size=8, max_size=16))
    ticks = np.cumsum([0, *gaps]).tolist()
    source = write(FORMATS[name], ticks, clock, 1 / clock if name == "avi" else Fraction(30))
    truth = [tick * clock for tick in ticks]
    with Video(source) as video:
        assert video.rate <= 240
        for index, image in video.frames(range(video.count)):
            time, slack = index / video.rate, Fraction(11, 10_000)
            latest = [max([0, *(k for k, t in enumerate(truth) if t <= time + by)]) for by in (-slack, slack)]
            assert latest[0] <= number_in(image) <= latest[1]
    first, end = sorted(data.draw(st.lists(st.integers(0, len(ticks) - 1), min_size=2, max_size=2, unique=True)))
    assume(end - first > 1 or truth[end] - truth[first] < 1)
    found, times = cut(folder, source, to_milliseconds(data, truth[first]), to_milliseconds(data, truth[end]))
    assert found == list(range(first, end))
    assert all(abs(time - (truth[first + k] - truth[first])) < Fraction(21, 10_000) for k, time in enumerate(times))


def test_an_avi_that_leaves_out_frames_keeps_time() -> None:
    ticks = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17]
    for name in ("avi", "avi, B-frames"):
        shown = numbers(write(FORMATS[name], ticks, Fraction(1, 25), Fraction(25)))
        assert shown == [max(k for k, tick in enumerate(ticks) if tick <= index) for index in range(18)], name


def test_a_stream_far_from_zero(folder: Path) -> None:
    """MPEG-TS from a receiver begins at any time."""
    rate = Fraction(30000, 1001)
    source = write(FORMATS["mpegts"], [90000 * 26000 + 3003 * k for k in range(COUNT)], Fraction(1, 90000), rate)
    assert numbers(source) == list(range(COUNT))
    assert cut(folder, source, Fraction("0.334"), Fraction("0.667"))[0] == list(range(10, 20))


def test_a_piece_of_a_stream_begins_with_its_first_keyframe(folder: Path) -> None:
    """Its first packets refer to frames that were cut off: no index and no span has them."""
    whole = write(FORMATS["mpegts"], range(60), Fraction(1, 30), Fraction(30))
    with av.open(io.BytesIO(whole)) as container:
        places = [(packet.pos, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    keyframe = next(k for k, (_, key) in enumerate(places) if key and k > 0)
    tables = whole[: places[0][0] or 3 * 188]
    piece = tables + whole[places[keyframe - 4][0] :]
    assert numbers(piece) == list(range(keyframe, 60))


def test_a_video_that_starts_after_its_sound(folder: Path) -> None:
    """Spans count from where a player starts, which is with the sound; indices from the first frame."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        video, audio = video_stream(output), output.add_stream("aac", rate=8000)
        add_sound(output, audio, seconds=2)
        add_pictures(output, video, numbered(20), first=15)
    assert numbers(buffer.getvalue()) == list(range(20))
    assert cut(folder, buffer.getvalue(), Fraction(1), Fraction("1.2"))[0] == [10, 11, 12, 13, 14]


def numbered(count: int) -> np.ndarray:
    from numbered import picture

    return np.stack([picture(k) for k in range(count)])


def video_stream(
    output: av.container.OutputContainer, codec: str = "libx264", size: tuple[int, int] = (48, 64)
) -> ...:
    stream = output.add_stream(codec, rate=25)
    stream.height, stream.width = size
    stream.pix_fmt = {"libx264": "yuv420p", "mjpeg": "yuvj420p", "gif": "rgb8"}[codec]
    stream.codec_context.time_base = Fraction(1, 25)
    stream.codec_context.thread_count = 1
    return stream


def add_pictures(output: ..., stream: ..., images: np.ndarray, first: int = 0) -> None:
    for number, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = first + number, Fraction(1, 25)
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


def add_sound(output: ..., stream: ..., seconds: int) -> None:
    for number in range(seconds * 8):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 1000 * number
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


def still_or(video: int, cover: str = "mjpeg", sound: int = 0, container: str = "mp4") -> bytes:
    """A cover of one picture as the first video track, a video of so many frames, and so many seconds of sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        first = video_stream(output, cover, (96, 96))
        second = video_stream(output) if video else None
        audio = output.add_stream("aac", rate=8000) if sound else None
        add_pictures(output, first, np.full((1, 96, 96, 3), 200, np.uint8))
        if second is not None:
            add_pictures(output, second, numbered(video))
        if audio is not None:
            add_sound(output, audio, sound)
    return buffer.getvalue()


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("cover", ["mjpeg", "libx264"])
def test_a_cover_is_not_taken_for_the_video(folder: Path, cover: str, container: str) -> None:
    source = still_or(20, cover, sound=1, container=container)
    with av.open(io.BytesIO(source)) as opened:
        assert [stream.frames in (0, count) for stream, count in zip(opened.streams.video, (1, 20))] == [True, True]
    assert numbers(source) == list(range(20))
    assert cut(folder, source, Fraction("0.2"), Fraction("0.4"))[0] == [5, 6, 7, 8, 9]


def test_one_picture_and_a_long_sound_is_no_clip(folder: Path) -> None:
    source = still_or(0, sound=3)
    with pytest.raises(DecodeError) as decoding:
        Video(source)
    assert decoding.value.reason == "still" and "one picture for 3.0 s" in decoding.value.detail
    with pytest.raises(CutError) as cutting:
        cut(folder, source, Fraction(0), Fraction(3))
    assert cutting.value.reason == "still"
    assert len(numbers(write(FORMATS["mp4"], [0], Fraction(1, 25), Fraction(25)))) == 1, "a video of one frame is one"


CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32] = (200, 40, 40), (40, 200, 40), (40, 40, 200)


def placed(image: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Each pixel of the image at (x, y) put where the display matrix says, pixel by pixel."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    across, down = a * x + c * y, b * x + d * y
    shown = np.zeros((np.ptp(down) + 1, np.ptp(across) + 1, 3), np.uint8)
    shown[down - down.min(), across - across.min()] = image
    return shown


def with_matrix(source: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 whose track header (ISO/IEC 14496-12, 8.3.2) bears this matrix."""
    place = source.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", source, place)[::4] == (1 << 16, 1 << 16, 1 << 30)
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return source[:place] + matrix + source[place + 36 :]


ORIENTATIONS = [(s, 0, 0, t) for s in (1, -1) for t in (1, -1)] + [(0, s, t, 0) for s in (1, -1) for t in (1, -1)]


def shot(images: np.ndarray, aspect: Fraction | None = None, **options: str) -> bytes:
    """H.264 of these pictures in MP4; `aspect` of a pixel."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = video_stream(output, size=images.shape[1:3])
        stream.options = {"crf": "10", **options}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        add_pictures(output, stream, images)
    return buffer.getvalue()


def both(folder: Path, source: bytes, short_side: int) -> list[np.ndarray]:
    """The first picture as the loader shows it, and as it is in a shard."""
    (folder / "video").write_bytes(source)
    made = cut_clip(str(folder / "video"), Fraction(0), Fraction(1, 10), short_side=short_side, crf=10).data
    images = []
    for data in (source, made):
        with Video(data) as video:
            images += [image.copy() for _, image in video.frames([0])]
    return images


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_a_picture_stands_as_its_matrix_says(folder: Path, matrix: tuple[int, int, int, int]) -> None:
    """Turned four ways, and mirrored, as front cameras have it."""
    source = with_matrix(shot(np.repeat(CORNERS[None], 4, axis=0)), *matrix)
    wanted = placed(CORNERS, *matrix).astype(int)
    for image in both(folder, source, short_side=48):
        assert image.shape == wanted.shape and np.abs(image - wanted).mean() < 6


def circle(height: int, width: int) -> np.ndarray:
    """As wide and high as half of the frame."""
    y, x = np.mgrid[:height, :width]
    inside = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2 < 1 / 16
    return np.repeat(np.where(inside, 220, 30).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (0, 1, 1, 0)])
@pytest.mark.parametrize(
    ("name", "size", "aspect", "shown"),
    [
        ("PAL, 16:9", (144, 180), Fraction(64, 45), Fraction(16, 9)),
        ("PAL, 4:3", (144, 180), Fraction(16, 15), Fraction(4, 3)),
        ("NTSC, 4:3", (120, 180), Fraction(8, 9), Fraction(4, 3)),
        ("HDV", (108, 144), Fraction(4, 3), Fraction(16, 9)),
        ("square", (108, 192), None, Fraction(16, 9)),
        ("a broken tag", (108, 192), Fraction(64, 1), Fraction(16, 9)),
    ],
)
def test_circles_are_round(
    folder: Path, name: str, size: tuple[int, int], aspect: Fraction | None, shown: Fraction, matrix: tuple
) -> None:
    source = with_matrix(shot(np.repeat(circle(*size)[None], 3, axis=0), aspect), *matrix)
    for image in both(folder, source, short_side=96):
        height, width, _ = image.shape if matrix[0] else image.swapaxes(0, 1).shape
        assert abs(width / height - shown) < 0.02
        bright = image[..., 0] > 125
        assert abs(bright.any(0).sum() / bright.any(1).sum() / float(image.shape[1] / image.shape[0]) - 1) < 0.06


@pytest.mark.parametrize("delays", [[4, 20, 3, 50, 2, 10], [10, 10, 10], [3, 3, 4, 3, 3, 4], [100, 2, 100]])
def test_a_gif_shows_each_of_its_pictures(delays: list[int]) -> None:
    """Its rate is that of the shortest delay (in hundredths of a second), and its first picture is index 0."""
    begins = np.cumsum([0, *delays]).tolist()
    source = write(Format("gif", "gif", "rgb8"), begins, Fraction(1, 100), Fraction(100))
    with Video(source) as video:
        assert video.rate == Fraction(100, min(delays))
    shown = numbers(source)
    assert shown[0] == 0 and sorted(set(shown)) == list(range(len(begins)))
    for index, number in enumerate(shown):
        assert begins[number] <= index * min(delays)


def combs(image: np.ndarray) -> float:
    """How much lines differ from the mean of their neighbours, in grey levels."""
    grey = image.mean(-1)
    return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean())


def interlaced_film(count: int = 12) -> np.ndarray:
    """A bright bar that moves 8 pixels from one field to the next: even lines first."""
    film = np.full((count, 96, 192, 3), 40, np.uint8)
    for number, frame in enumerate(film):
        for field in (0, 1):
            left = 8 * (2 * number + field)
            frame[field::2, left : left + 24] = 200
    return film


def test_interlaced_video_has_no_combs_in_shards(folder: Path) -> None:
    """Each frame its own moment, none lost; and a video that is not marked keeps its bits."""
    film = interlaced_film()
    marked, plain = shot(film, **{"x264-params": "tff=1"}), shot(film)
    with Video(marked) as video:
        images = [image for _, image in video.frames(range(12))]
        assert video.interlaced and combs(images[6]) > 8
    with Video(plain) as video:
        assert [index for index, _ in video.frames(range(12))] and not video.interlaced
    (folder / "video").write_bytes(marked)
    for first, end in ((0, 12), (5, 9), (3, 4)):
        clip = cut_clip(str(folder / "video"), Fraction(first, 25), Fraction(end, 25), short_side=96, crf=10)
        with Video(clip.data) as video:
            cut = dict(video.frames(range(video.count)))
            assert len(cut) == end - first and not video.interlaced
        for index, image in cut.items():
            assert combs(image) < 2
            middle = np.flatnonzero(image[48, :, 0] > 120).mean()
            assert abs(middle - 16 * (first + index) - 15.5) < 6  # either field


def test_interlaced_clips_are_told_once(folder: Path) -> None:
    """By the loader with a name and the count, whatever its workers; by `shards check` with all names."""
    (folder / "list").mkdir()
    for number in range(4):
        options = {"x264-params": "tff=1"} if number % 2 else {}
        (folder / "list" / f"{number}.mp4").write_bytes(shot(interlaced_film(), **options))
    (folder / "list" / "list.txt").write_text("".join(f"{number}.mp4 a bar\n" for number in range(4)))
    corpus = open_corpus(str(folder / "list" / "list.txt"))
    for workers in (0, 1):
        loader = clip_loader(
            [corpus], frames=4, stride=2, size=32, grid=Grid.of(4, 32, 2, 16), seed=0, global_batch_size=4,
            micro_batch_size=4, rank=0, world_size=1, workers=workers, stop_step=3,
        )  # fmt: skip
        with pytest.warns(UserWarning) as told:
            list(loader)
        texts = [str(each.message) for each in told]
        assert len(texts) == 1 and re.search(r"[13]\.mp4 is interlaced.*1 of [1-3] samples", texts[0])
    found = [SampleInspector(corpus, decode=2)(number, 0, thumbnail=False) for number in range(4)]
    assert sorted(one.name for one in found if one.interlaced) == ["1.mp4", "3.mp4"]


def test_animated_pictures_that_no_decoder_takes_are_refused() -> None:
    for container, codec, pixels in (("apng", "apng", "rgb24"), ("webp", "libwebp_anim", "yuv420p")):
        source = write(Format(container, codec, pixels), range(3), Fraction(1, 25), Fraction(25))
        with pytest.raises(DecodeError) as caught:
            Video(source)
        assert caught.value.reason == "not_a_video"
