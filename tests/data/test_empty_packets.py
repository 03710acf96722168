"""Frames that are never shown, and packets of none: Theora's, hidden ones of VP8, VP9 and AV1, AVI's packed B-frames.

A player goes on showing the picture before; each index and each span must have what it shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest
from numbered import FORMATS, HEIGHT, WIDTH, Format, cut, number_in, numbers, write
from theora import SHOWN, STREAM

from tgm_scale.data.video.decode import Video

RATE = Fraction(25)
Packets = list[tuple[int, bytes, bool]]  # tick, bytes, whether a keyframe


def packets_in(data: bytes) -> list[tuple[bytes, bool]]:
    with av.open(io.BytesIO(data)) as container:
        return [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


def muxed(format: Format, packets: Packets, clock: Fraction) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format.container) as output:
        stream = output.add_stream(format.codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, format.pixels
        stream.codec_context.time_base = stream.time_base = clock
        for tick, content, key in packets:
            packet = av.Packet(content)
            packet.pts = packet.dts = tick
            packet.time_base, packet.stream, packet.is_keyframe = clock, stream, key
            output.mux(packet)
    return buffer.getvalue()


def alone(data: bytes, index: int) -> int:
    """The number of the frame of an index, asked for by itself."""
    with Video(data) as video:
        [(_, image)] = video.frames([index])
        return number_in(image)


def check(
    folder: Path, data: bytes, shown: Sequence[int], starts: Sequence[int], spans: Sequence[tuple[int, int]]
) -> None:
    """shown: the number at each index. starts: the indices at which a frame begins; spans have those."""
    assert numbers(data) == list(shown)
    assert [alone(data, k) for k in range(len(shown))] == list(shown)
    for first, end in spans:
        found, times = cut(folder, data, first / RATE, end / RATE)
        begins = [k for k in starts if first <= k < end]
        assert found == [shown[k] for k in begins]
        assert max(abs(time - (k - begins[0]) / RATE) for time, k in zip(times, begins)) < Fraction(1, 900)


SPANS = [(0, 5), (2, 14), (3, 9), (6, 7), (8, 13), (9, 22), (12, 20), (13, 23)]


def test_theora_repeats_a_picture_by_an_empty_packet(tmp_path: Path) -> None:
    """Also before a keyframe, and several in a row; the last picture's index is the last."""
    with av.open(io.BytesIO(STREAM)) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.pts is not None]
        assert container.streams.video[0].average_rate is None
    assert len(sizes) == len(SHOWN) and [k for k, size in enumerate(sizes) if not size][:4] == [1, 2, 4, 7]
    check(tmp_path, STREAM, SHOWN[:-1], [k for k, size in enumerate(sizes) if size], SPANS)


def hidden(content: bytes) -> bytes:
    """A VP8 frame that is decoded and not shown (RFC 6386, 9.1)."""
    return bytes([content[0] & ~0x10]) + content[1:]


@pytest.mark.parametrize("name", ["webm, VP8", "matroska"])
def test_a_hidden_frame_takes_nobodys_place(tmp_path: Path, name: str) -> None:
    """One in the place of a shown frame, one a tick after the frame before, as encoders place their references."""
    format = Format(FORMATS[name].container, "libvpx")
    sources = packets_in(write(format, range(24), 1 / RATE, RATE))
    instead = [(40 * k, hidden(one) if k in (5, 14) else one, key) for k, (one, key) in enumerate(sources)]
    shown, left = [k - (k in (5, 14)) for k in range(24)], [k for k in range(24) if k not in (5, 14)]
    check(tmp_path, muxed(format, instead, Fraction(1, 1000)), shown, left, SPANS)
    between: Packets = []
    for number, (content, key) in enumerate(sources):
        aside = number in (5, 14)
        tick = 40 * (number - sum(k < number for k in (5, 14)))
        between.append((tick - 39, hidden(content), key) if aside else (tick, content, key))
    spans = [span for span in SPANS if span[1] <= len(left)]
    check(tmp_path, muxed(format, between, Fraction(1, 1000)), left, range(len(left)), spans)


def superframe(*frames: bytes) -> bytes:
    """Frames of VP9 in one packet, of which the last is shown (VP9 bitstream specification, annex B)."""
    marker = bytes([0xC8 | len(frames) - 1])  # sizes of two bytes
    sizes = b"".join(len(frame).to_bytes(2, "little") for frame in frames)
    return b"".join(frames) + marker + sizes + marker


@pytest.mark.parametrize("container", ["webm", "matroska", "mp4"])
def test_a_hidden_frame_of_vp9_is_in_the_packet_of_the_next(tmp_path: Path, container: str) -> None:
    """The keyframes 12, 24 are references that nobody sees; the third is hidden, and shown by a packet of its own."""
    format = Format(container, "libvpx-vp9")
    sources = [content for content, _ in packets_in(write(format, range(48), 1 / RATE, RATE))]
    assert [k for k, one in enumerate(sources) if not one[0] & 0x04] == [0, 12, 24, 36], "where its keyframes are"
    unseen = {k: bytes([sources[k][0] & ~0x02]) + sources[k][1:] for k in (12, 24, 36)}
    shown, packets = [k for k in range(48) if k not in (12, 24)], []
    for place, k in enumerate(shown):
        content = superframe(unseen[k - 1], sources[k]) if k - 1 in (12, 24) else sources[k]
        if k == 36:
            content = superframe(unseen[36], b"\x88")  # "show the frame of the first place"
        packets.append((place if container == "mp4" else 40 * place, content, k in (0, 13, 25, 36)))
    clock = 1 / RATE if container == "mp4" else Fraction(1, 1000)
    data = muxed(format, packets, clock)
    with av.open(io.BytesIO(data)) as opened:
        assert [number_in(frame.to_ndarray(format="rgb24")) for frame in opened.decode(video=0)] == shown
    spans = [(0, 5), (3, 12), (10, 14), (12, 13), (13, 30), (22, 24), (23, 25), (33, 36), (34, 35), (35, 46)]
    check(tmp_path, data, shown, range(len(shown)), spans)


def frames_in(unit: bytes) -> int:
    """How many frames a temporal unit of AV1 holds (AV1 bitstream specification, 5.3)."""
    at = frames = 0
    while at < len(unit):
        kind, extended = unit[at] >> 3 & 15, unit[at] >> 2 & 1
        assert unit[at] & 2, "each says its size"
        at, size, shift = at + 1 + extended, 0, 0
        while True:
            size |= (unit[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if not unit[at - 1] & 128:
                break
        frames += kind in (3, 6)
        at += size
    return frames


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="wants an AV1 encoder")
@pytest.mark.parametrize("container", ["webm", "mp4"])
def test_hidden_frames_of_av1_take_nobodys_place(tmp_path: Path, container: str) -> None:
    data = write(Format(container, "libsvtav1", scale=4), range(40), 1 / RATE, RATE)
    assert max(frames_in(content) for content, _ in packets_in(data)) > 2
    check(tmp_path, data, range(40), range(40), [(0, 5), (3, 17), (20, 21), (24, 40)])


VOP = b"\0\0\1\xb6"  # MPEG-4 part 2: the start of a frame; the two bits after it are 0 of an I, 1 of a P, 2 of a B
NOT_CODED = VOP + b"\x50\x4f"


def packed(sources: list[tuple[bytes, bool]]) -> Packets:
    """B-frames as DivX and Xvid put them into AVI: behind the frame that they refer to, in one packet, then a packet
    that holds none."""
    chunks: list[tuple[bytes, bool]] = []
    for content, key in sources:
        if content[content.index(VOP) + 4] >> 6 == 2:
            chunks[-1] = chunks[-1][0] + content, chunks[-1][1]
            chunks.append((NOT_CODED, False))
        else:
            chunks.append((content, key))
    at = chunks[0][0].index(VOP)
    chunks[0] = chunks[0][0][:at] + b"\0\0\1\xb2DivX503b1393p" + chunks[0][0][at:], True
    return [(number, content, key) for number, (content, key) in enumerate(chunks)]


def test_packed_frames_of_an_avi_are_each_in_its_place(tmp_path: Path) -> None:
    """Also after a seek, when the decoder has not seen the packet that says that they are packed."""
    format = Format("avi", "mpeg4", b_frames=1)
    source = packed(packets_in(write(format, range(40), 1 / RATE, RATE)))
    assert sum(content == NOT_CODED for _, content, _ in source) > 15
    data = muxed(Format("avi", "mpeg4"), source, 1 / RATE)
    spans = [(0, 5), (11, 12), (11, 14), (12, 13), (12, 24), (13, 20), (23, 40), (24, 25), (25, 26), (36, 40)]
    check(tmp_path, data, range(40), range(40), spans)
