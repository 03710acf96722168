"""torchcodec beside PyAV: the same frames and the same reasons, whatever the bytes; PyAV opens them first."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import fuzzing
import numpy as np
import pytest
import torch
from loaded import by_step, load, write_corpus
from test_decode import SELECTED, encode, heap_growth
from test_players import CORNERS, ORIENTATIONS, interlaced_film, shot, with_matrix

from tgm_scale import config
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video import decode, torchcodec_frames
from tgm_scale.data.video.decode import DecodeError, Video
from tgm_scale.data.video.torchcodec_frames import TorchcodecVideo
from tgm_scale.planning.checks import check
from tgm_scale.planning.parts import clip_loader
from tgm_scale.planning.run_plan import plan_pretraining
from tgm_scale.runtime.distributed import Place

pytestmark = pytest.mark.usefixtures("torchcodec")

CPU = Place(0, 1, 0, torch.device("cpu"))
BROKEN = ["empty.mp4", "text_not_video.mp4", "truncated.mp4", "corrupted.mp4"]
Indices = Callable[[int], Sequence[int]]  # of a source's count of frames
WINDOWS: list[Indices] = [
    lambda count: range(min(count, 12)),
    lambda count: range(count // 2, count, 4)[:16],
    lambda count: range(max(count - 20, 0), count, 3),
    lambda count: range(0, count, max(count // 5, 1)),
]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times of the frames that torchcodec itself decodes during a test."""
    times: list[int] = []
    fetch = TorchcodecVideo._find_with_torchcodec

    def counted(self: TorchcodecVideo, wanted: Any) -> Iterator[tuple[int, np.ndarray]]:
        for time, image in fetch(self, wanted):
            times.append(time)
            yield time, image

    monkeypatch.setattr(TorchcodecVideo, "_find_with_torchcodec", counted)
    return times


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """120 frames, keyframes 12 apart, B-frames."""
    return encode(tmp_path_factory.mktemp("video") / "whole.mp4", list(range(120)))


def outcome(make: Callable[[], Video], indices: Indices) -> tuple:
    """Frames with what is known of the source, or the reason and detail of the error."""
    try:
        with make() as video:
            found = list(video.frames(indices(video.count)))
            return video.count, video.rate, [(i, image.shape, image.tobytes()) for i, image in found]
    except DecodeError as error:
        return error.args


def assert_alike(data: bytes, indices: Indices) -> tuple:
    by_pyav = outcome(lambda: Video(data), indices)
    assert outcome(lambda: TorchcodecVideo(data), indices) == by_pyav
    return by_pyav


BY_TORCHCODEC = {  # H.264 of 8 bits and square pixels in MP4 and Matroska; the rest is PyAV's
    *("asl_brother.mkv", "asl_yes.mkv", "car_turn.mp4", "cockatoo.mp4", "unordered.mov"),
    *("video_0.mov", "video_90.mov", "video_180.mov", "nasa_13013.mp4"),
}


@pytest.mark.parametrize("name", [*SELECTED, "cockatoo.mp4", "ucf_Diving_g01_c01.avi"])
def test_real_videos_give_pyavs_frames(real: Path, fetched: list[int], name: str) -> None:
    """To the bit; `cockatoo.mp4` cannot be sought in, and torchcodec alone gives noise there without a word."""
    for indices in WINDOWS:
        assert_alike((real / "videos" / name).read_bytes(), indices)
    assert bool(fetched) == (Path(name).name in BY_TORCHCODEC)


@pytest.mark.parametrize("name", BROKEN)
def test_bad_files_fail_with_the_same_reason(real: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    for indices in WINDOWS:
        assert_alike((real / "edge" / name).read_bytes(), indices)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("first", "stride"), [(0, 1), (1, 3), (11, 4), (50, 2), (104, 1)])
def test_torchcodec_alone_gives_any_window(whole: bytes, fetched: list[int], first: int, stride: int) -> None:
    wanted = range(first, 120, stride)[:16]
    assert_alike(whole, lambda count: wanted)
    assert len(fetched) == len(wanted)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_varying_rate_shows_the_frame_of_the_time(tmp_path: Path, fetched: list[int], container: str) -> None:
    times = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
    *_, frames = assert_alike(encode(tmp_path / "varying", times, container=container), range)
    assert len(fetched) == len({image for _, _, image in frames}) < len(frames)


@pytest.mark.parametrize(
    "break_it", [fuzzing.flipped, fuzzing.truncated, fuzzing.swapped, fuzzing.absurd_header, fuzzing.frame_bomb]
)
def test_broken_bytes_give_the_same_frames_or_the_same_reason(whole: bytes, break_it: fuzzing.Bytes) -> None:
    """But for damage that one of two versions of ffmpeg notices: 20 of 9,600 clips, 10 of 1,920 of a kind at most."""
    random, unlike = np.random.default_rng(0), 0
    for first in random.integers(0, 100, 80).tolist():
        broken, indices = break_it(random, whole), partial(window_from, first)
        by_pyav, by_torchcodec = (outcome(partial(kind, broken), indices) for kind in (Video, TorchcodecVideo))
        unlike += by_pyav != by_torchcodec
    assert unlike <= 4


def window_from(first: int, count: int) -> Sequence[int]:
    return np.unique(np.minimum(range(first, first + 20, 4), count - 1)).tolist()


@pytest.mark.parametrize(
    ("codec", "pixels", "width", "height"),
    [
        ("libvpx-vp9", "yuv420p", 65, 49),  # torchcodec's are up to 18 of 255 off
        ("libx264", "yuv422p", 64, 48),
        ("libx265", "yuv420p", 64, 48),
        ("mjpeg", "yuvj420p", 64, 48),
    ],
)
def test_what_may_come_out_otherwise_is_left_to_pyav(
    fetched: list[int], codec: str, pixels: str, width: int, height: int
) -> None:
    noise, buffer = np.random.default_rng(0), io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for _ in range(6):
            image = noise.integers(0, 256, (height, width, 3)).astype(np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    count, _, frames = assert_alike(buffer.getvalue(), range)
    assert count == 6 and frames[0][1] == (height, width, 3) and not fetched


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_a_mirrored_picture_is_left_to_pyav(fetched: list[int], matrix: tuple[int, int, int, int]) -> None:
    """torchcodec turns by the matrix's angle, which tells of no mirror."""
    a, b, c, d = matrix
    assert_alike(with_matrix(shot(np.repeat(CORNERS[None], 4, axis=0)), *matrix), range)
    assert bool(fetched) == (a * d - b * c > 0)


def test_what_is_interlaced_is_known_and_wide_pixels_are_left_to_pyav(fetched: list[int]) -> None:
    with TorchcodecVideo(shot(interlaced_film(), **{"x264-params": "tff=1"})) as video:
        assert [index for index, _ in video.frames(range(12))] and video.interlaced and len(fetched) == 12
    *_, frames = assert_alike(shot(np.repeat(CORNERS[None], 4, axis=0), Fraction(4, 3)), range)
    assert frames[0][1] == (48, 85, 3) and len(fetched) == 12


def test_a_size_that_changes_is_left_to_pyav(monkeypatch: pytest.MonkeyPatch, fetched: list[int]) -> None:
    """PyAV scales all frames to the size of the first."""
    monkeypatch.setattr(torchcodec_frames, "_EXACT_CODECS", {"mjpeg"})
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number, (width, height) in enumerate([(64, 48)] * 4 + [(128, 96)] * 4):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, 25)
            picture = np.full((height, width, 3), 20 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
            frame.pts = number
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream = stream
                output.mux(packet)
    count, _, frames = assert_alike(buffer.getvalue(), range)
    assert count == 8 and {shape for _, shape, _ in frames} == {(48, 64, 3)} and len(fetched) == 4


def test_a_playlist_never_reaches_torchcodec(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[int]
) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(whole)

    class HandedOver(Exception):
        pass

    def reached(*arguments: object) -> None:
        raise HandedOver

    monkeypatch.setattr(torchcodec_frames, "_decoder", reached)
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {other}\n",
    ):
        assert assert_alike(text.encode(), range)[0] == "not_a_video"
    with pytest.raises(HandedOver):
        outcome(lambda: TorchcodecVideo(whole), range)
    assert_alike(b"#EXT" + whole[4:], range)  # PyAV takes it for an MP4; a byte 0 would end every search for text


def test_what_may_cost_too_much_is_left_to_pyavs_budget(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, fetched: list[int]
) -> None:
    monkeypatch.setattr(decode, "DECODE_BUDGET", 20 * 64 * 48)
    assert_alike(whole, lambda count: range(62, 66))
    assert len(fetched) == 4, "from the keyframe near by"
    assert assert_alike(whole, lambda count: range(0, 64, 4))[0] == "too_large"
    assert len(fetched) == 4


def test_decoding_clip_after_clip_keeps_no_memory_but_torchcodecs_own(whole: bytes) -> None:
    """970 bytes a clip: torchcodec (0.11 to 0.13) keeps them of each decoder that it makes, whatever is decoded."""
    growth = heap_growth(lambda: outcome(lambda: TorchcodecVideo(whole), lambda count: range(4)), 1200)
    assert growth < 1100 * 1200


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_decoder(tmp_path: Path, workers: int) -> None:
    corpus = open_corpus(str(write_corpus(tmp_path / "shards", 23)))
    by_pyav = by_step(load([corpus], repeated_augmentation=2))
    assert by_step(load([corpus], repeated_augmentation=2, workers=workers, torchcodec=True)) == by_pyav


def configured(*overrides: str) -> config.Config:
    tree = {
        "run": {"dir": "runs/x"},
        "data": {"shards": "http://localhost/x.tar"},
        "objective": {"contrastive_weight": 0},
        "train": {"steps": 10},
    }
    return config.from_tree(config.lay_over(tree, overrides))


def checked(settings: config.Config) -> None:
    check(settings, plan_pretraining(settings, CPU))


def test_a_run_decodes_where_its_configuration_says(tmp_path: Path) -> None:
    opened = [open_corpus(str(write_corpus(tmp_path / "shards", 4)))]
    for decoder, torchcodec in [("pyav", False), ("torchcodec", True)]:
        settings = configured(f"data.decoder={decoder}")
        plan = plan_pretraining(settings, CPU)
        loader = clip_loader(plan, settings.data, settings.guidance, 0, opened, range(1))
        assert loader.samples.sampling.torchcodec is torchcodec
    checked(configured("data.decoder=torchcodec"))
    assert config.digest_tree(configured("data.decoder=torchcodec")) == config.digest_tree(configured())


def test_motion_vectors_are_refused_early() -> None:
    with pytest.raises(ValueError, match=r"masking.recipe=motion_guided.*data.decoder=pyav"):
        checked(configured("data.decoder=torchcodec", "masking.recipe=motion_guided"))


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (ImportError("No module named 'torchcodec'"), "(No module named 'torchcodec')"),
        (RuntimeError("Causes:\n1. Many\nOSError: libavutil.so.60: not there\n"), "(libavutil.so.60: not there)"),
    ],
)
def test_a_torchcodec_that_does_not_import_says_why(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, why: str
) -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchcodec":
                raise raised

    monkeypatch.delitem(sys.modules, "torchcodec")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ValueError) as caught:
        checked(configured("data.decoder=torchcodec"))
    for words in (why, "'.[torchcodec]'", "apt-get install ffmpeg", "data.decoder=pyav"):
        assert words in str(caught.value)
