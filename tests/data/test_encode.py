"""Encoding and cutting, against a plain decode of the source from its first frame to its last."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from tgm_scale.data.video.encode import CutError, cut_clip, encode_video


def decoded(source, until=float("inf")):
    """(times in seconds, RGB frames, keyframe flags) of all frames before `until`, from the first on."""
    times, images, keys = [], [], []
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        stream = container.streams.best("video")
        zero = Fraction(container.start_time or 0, av.time_base)
        for frame in container.decode(stream):
            time = frame.pts * stream.time_base - zero
            if time >= until:
                break
            times.append(time)
            images.append(frame.to_ndarray(format="rgb24"))
            keys.append(frame.key_frame)
    return times, np.stack(images), keys


def moving_scene(frames, height, width, seed=0):
    """A textured square that crosses a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    scene = np.stack([x * 255 // width, y * 255 // height, (x + y) * 127 // (height + width)], -1)
    video = np.repeat(scene[None], frames, 0).astype(np.uint8)
    side = height // 3
    square = rng.integers(60, 200, (side // 4, side // 4, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    for t in range(frames):
        left = t * (width - side) // frames
        video[t, side // 2 : side // 2 + len(square), left : left + len(square)] = square
    return video


def quality(a, b):
    """PSNR in dB."""
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def test_frames_come_back_in_time_and_in_colour():
    video = moving_scene(30, 96, 128)
    times, images, keys = decoded(encode_video(video, 24, gop=8, crf=12))
    assert times == [Fraction(i, 24) for i in range(30)]
    assert [i for i, key in enumerate(keys) if key] == [0, 8, 16, 24]
    assert quality(images, video) > 34
    assert np.abs(images.mean((0, 1, 2)) - video.mean((0, 1, 2))).max() < 2, "colours must not shift"


def test_there_are_no_b_frames_and_no_sound():
    with av.open(io.BytesIO(encode_video(moving_scene(30, 64, 64), 30000 / 1001))) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert all(packet.pts == packet.dts for packet in packets)


def test_an_iterable_of_frames_gives_the_same_bytes():
    video = moving_scene(10, 32, 48)
    assert encode_video(iter(video), 10) == encode_video(video, 10)


def test_quality_and_group_of_pictures_are_settings():
    video = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    assert len(encode_video(video, 10, crf=40)) < len(encode_video(video, 10, crf=20)) / 2
    still = np.repeat(video[:1], 24, 0)
    assert len(encode_video(still, 10, gop=2)) > 3 * len(encode_video(still, 10, gop=24))


@pytest.mark.parametrize(
    ("video", "complaint"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        (np.zeros((2, 8, 9, 3), np.uint8), "make both sides even"),
        (np.zeros((2, 9, 8, 3), np.uint8), "make both sides even"),
    ],
)
def test_what_cannot_be_encoded(video, complaint):
    with pytest.raises(ValueError, match=complaint):
        encode_video(video, 10)


REPEAT = """
import hashlib, numpy as np
from tgm_scale.data.video.encode import encode_video
digest = hashlib.md5()
for height, width in ((128, 228), (66, 70), (80, 80), (96, 228)):
    for seed in range(4):
        noise = np.random.default_rng(seed).integers(0, 255, (12, height, width, 3), dtype=np.uint8)
        digest.update(encode_video(noise, 10))
print(digest.hexdigest())
"""


def test_the_same_frames_give_the_same_bytes_whatever_lies_in_memory():
    """x264's macroblock tree reads memory that it did not write: this found it (4 of 40 clips differed)."""
    settings = ({"MALLOC_PERTURB_": "0"}, {"MALLOC_PERTURB_": "85"}, {"MALLOC_MMAP_THRESHOLD_": "1000"})
    runs = [
        subprocess.run(
            [sys.executable, "-c", REPEAT], env={**os.environ, **one}, capture_output=True, text=True, check=True
        )
        for one in settings
    ]
    assert len({run.stdout for run in runs}) == 1


SPANS = [
    ("videos/asl_bird.mkv", "0.5", "1.25"),  # Matroska: times rounded to 1 ms, full range, an offset of 33 ms
    ("videos/intel_bottle.mp4", "2.2", "3"),  # 29.83 frames a second
    ("videos/ucf_Diving_g01_c01.avi", "3.003", "4.2"),  # AVI, MPEG-4
    ("videos/flipping_a_pancake.mkv", "4.1", "5"),
    ("videos/man_skiing.mp4", "0", "0.9"),
    ("edge/av1_video.mkv", "2.2", "3"),
    ("edge/h264_10bits.mp4", "0.4", "0.8"),
    ("edge/nasa_13013.mp4", "5", "6"),  # two video streams
    ("videos/cockatoo.mp4", "4", "4.4"),  # 4:4:4 of an old x264: wrong after a seek
]


@pytest.mark.parametrize(("name", "start", "end"), SPANS, ids=[span[0] for span in SPANS])
def test_a_cut_has_exactly_the_frames_of_its_span(real, name, start, end):
    """Also after a seek: against all frames from the first on, each at its own time."""
    times, images, _ = decoded(real / name, until=Fraction(end))
    inside = [i for i, time in enumerate(times) if time >= Fraction(start)]
    height, width = images.shape[1:3]
    clip = cut_clip(str(real / name), Fraction(start), Fraction(end), short_side=min(height, width) // 2 * 2, crf=12)
    cut_times, cut_images, _ = decoded(clip.data)
    assert clip.frames == len(cut_times) == len(inside) > 5
    wanted = [times[i] - times[inside[0]] for i in inside]
    assert max(abs(a - b) for a, b in zip(cut_times, wanted)) <= Fraction(1, 990)
    assert (clip.height, clip.width) == cut_images.shape[1:3] and min(clip.height, clip.width) == min(height, width)
    assert quality(cut_images, images[inside, :, : clip.width]) > 32


def test_neighbouring_spans_share_no_frame_and_lose_none(real):
    path = real / "videos" / "ucf_BenchPress_g01_c01.avi"
    bounds = [Fraction(bound) for bound in ("0", "0.5", "1.333", "6.04")]
    counts = [cut_clip(str(path), a, b, short_side=32).frames for a, b in zip(bounds, bounds[1:])]
    assert sum(counts) == len(decoded(path)[0]) == 151


def test_times_rounded_to_milliseconds_become_a_constant_rate(real):
    clip = cut_clip(str(real / "videos" / "asl_bird.mkv"), Fraction(0), Fraction(2), short_side=32)
    times, _, _ = decoded(clip.data)
    assert times == [Fraction(i, 30) for i in range(len(times))] and clip.fps == 30


def test_swapped_times_are_put_in_order(real):
    """MPEG-4 with packed B-frames in AVI: the decoder's order is right (it moves smoothly), the times are 1 2 4 3."""
    path = real / "videos" / "ucf_ApplyEyeMakeup_g01_c01.avi"
    times, images, _ = decoded(path)
    assert times != sorted(times)
    clip = cut_clip(str(path), Fraction(0), Fraction("6.56"), short_side=240, crf=12)
    cut_times, cut_images, _ = decoded(clip.data)
    assert cut_times == [Fraction(i, 25) for i in range(164)], "an AVI's first frame is at 0, whatever ffmpeg says"
    assert quality(cut_images, images) > 32


def test_uneven_times_are_kept(tmp_path):
    """A source that stops for a second must not run on."""
    path = tmp_path / "uneven.mkv"
    wanted = [0, 40, 80, 1080, 1120, 1500]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time, image in zip(wanted, moving_scene(6, 64, 64)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    times, _, _ = decoded(cut_clip(str(path), Fraction(0), Fraction("1.54"), short_side=32).data)
    assert times == pytest.approx([time / 1000 for time in wanted], abs=1e-4)


def test_rotated_videos_stand_upright(real):
    """A keyboard, filmed with the telephone held three ways: these turns set its letters upright (seen by eye)."""
    for name, turns in (("video_0.mov", 0), ("video_90.mov", -1), ("video_180.mov", 2)):
        _, images, _ = decoded(real / "edge" / name)
        clip = cut_clip(str(real / "edge" / name), Fraction(0), Fraction(1, 10), short_side=320, crf=12)
        _, cut, _ = decoded(clip.data)
        assert quality(cut, np.rot90(images, turns, (1, 2))) > 32, name


def test_pixels_become_square(real):
    """Stored as 340x256 with pixels of 64:51: shown as 5:3."""
    clip = cut_clip(str(real / "videos" / "arm_wrestling.mp4"), Fraction(0), Fraction(1, 5), short_side=96)
    assert (clip.width, clip.height) == (160, 96)


@pytest.mark.parametrize(
    ("name", "start", "end", "reason", "detail"),
    [
        ("edge/corrupted.mp4", 0, 5, "not_decodable", "InvalidData"),
        ("edge/truncated.mp4", 0, 1, "not_decodable", "InvalidData"),
        ("edge/empty.mp4", 0, 1, "not_decodable", "InvalidData"),
        ("edge/text_not_video.mp4", 0, 1, "not_decodable", "InvalidData"),
        ("videos/intel_bottle.mp4", 45, 48, "span_outside", "starts at 00:00:45.000, the video ends at 00:00:39.8"),
        ("videos/cockatoo.mp4", 13, 20, "span_outside", "the video ends at 00:00:14.000"),
        ("videos/bigbuckbunny.mp4", "0.01", "0.02", "too_short", "no frame between"),
    ],
)
def test_what_cannot_be_cut_says_why(real, name, start, end, reason, detail):
    with pytest.raises(CutError, match=detail) as error:
        cut_clip(str(real / name), Fraction(start), Fraction(end), short_side=32)
    assert error.value.reason == reason


@pytest.mark.parametrize(("kind", "codec", "sound"), [("mp4", "libx264", "aac"), ("mkv", "libx264", "aac"),
                                                      ("flv", "flv", "aac"), ("ts", "libx264", "mp2")])  # fmt: skip
def test_a_video_may_end_before_its_sound_but_a_cover_is_none(tmp_path, kind, codec, sound):
    for frames in (10, 1):
        path = tmp_path / f"{frames}.{kind}"
        with av.open(str(path), "w") as container:
            video, audio = container.add_stream(codec, rate=10), container.add_stream(sound, rate=44100)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for image in np.random.default_rng(0).integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8):
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(video.encode())
            planar = audio.codec_context.format.is_planar
            kind_of_sample = np.int16 if "16" in audio.codec_context.format.name else np.float32
            shape = (2, 1024) if planar else (1, 2048)
            for number in range(5 * 44100 // 1024):
                block = av.AudioFrame.from_ndarray(
                    np.zeros(shape, kind_of_sample), audio.codec_context.format.name, "stereo"
                )
                block.rate, block.pts = 44100, number * 1024
                container.mux(audio.encode(block))
            container.mux(audio.encode())
    assert cut_clip(str(tmp_path / f"10.{kind}"), Fraction(0), None, short_side=32).frames == 10
    with pytest.raises(CutError, match=r"one frame from 00:00:00.000 to 00:00:0[45]") as error:
        cut_clip(str(tmp_path / f"1.{kind}"), Fraction(0), None, short_side=32)
    assert error.value.reason == "still"


def test_a_file_cut_short_is_not_taken_for_a_short_video(tmp_path):
    """With its index in front and its end missing, a file opens and decodes until its bytes end."""
    path = tmp_path / "half.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        for image in np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CutError, match=r"decoding stops at 00:00:0[23]") as error:
        cut_clip(str(path), Fraction(0), Fraction(6), short_side=32)
    assert error.value.reason == "not_decodable"


@pytest.mark.parametrize(
    "script", ["#EXTM3U\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {target}\n"]
)
def test_a_playlist_named_mp4_opens_nothing(tmp_path, script):
    target = tmp_path / "target.mp4"
    target.write_bytes(encode_video(moving_scene(10, 32, 32), 10))
    path = tmp_path / "list.mp4"
    path.write_text(script.format(target=target.name))
    with pytest.raises(CutError, match="not_decodable"):
        cut_clip(str(path), Fraction(0), Fraction(1), short_side=32)


def test_a_cut_is_repeatable(real):
    path = str(real / "videos" / "man_surfing.mp4")
    digests = {hashlib.md5(cut_clip(path, Fraction(0), Fraction(1), short_side=64).data).digest() for _ in range(3)}
    assert len(digests) == 1
