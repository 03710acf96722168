"""Samples made wrong in every way that a download, a disk or a forger knows."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from tgm_scale.data.video.encode import encode_video

Bytes = Callable[[np.random.Generator, bytes], bytes]


def flipped(random: np.random.Generator, video: bytes) -> bytes:
    data = bytearray(video)
    for at in random.integers(0, len(data), random.integers(1, 40)):
        data[at] ^= 1 << int(random.integers(8))
    return bytes(data)


def truncated(random: np.random.Generator, video: bytes) -> bytes:
    return video[: int(random.integers(0, len(video) - 1))]


def swapped(random: np.random.Generator, video: bytes) -> bytes:
    data = bytearray(video)
    for _ in range(int(random.integers(1, 6))):
        size = int(random.integers(4, 200))
        one, other = (int(at) for at in random.integers(0, len(data) - size, 2))
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]
    return bytes(data)


def absurd_header(random: np.random.Generator, video: bytes) -> bytes:
    """A box of the MP4's header says something out of this world: sizes, counts, durations, offsets."""
    data = bytearray(video)
    box = [b"moov", b"mvhd", b"trak", b"mdhd", b"stsd", b"avc1", b"stts", b"stsz", b"stco", b"stsc", b"ftyp"][
        int(random.integers(11))
    ]
    at = data.find(box)
    at = at - 4 if random.random() < 0.3 else at + 4 + 4 * int(random.integers(0, 8))
    data[at : at + 4] = struct.pack(">I", int(random.choice([0, 1, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])))
    return bytes(data)


def noise(random: np.random.Generator, video: bytes) -> bytes:
    return random.bytes(int(random.integers(0, 3000)))


def frame_bomb(random: np.random.Generator, video: bytes) -> bytes:
    """Few bytes that claim much: frames of 60,000 pixels a side, two thousand million frames, a day between two."""
    if random.random() < 0.5:
        data = bytearray(_qtrle())
        size = data.index(struct.pack(">HH", 64, 48), data.index(b"stsd"))
        data[size : size + 4] = struct.pack(">HH", *random.integers(7000, 65535, 2).tolist())
        return bytes(data)
    data = bytearray(video)
    at = data.index(b"stsz" if random.random() < 0.5 else b"stts")
    data[at + 12 : at + 20] = struct.pack(">II", 0x7FFFFFF0, 0x7FFFFFF0)
    return bytes(data)


def _qtrle() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as output:
        stream = output.add_stream("qtrle", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def playlist(random: np.random.Generator, video: bytes) -> bytes:
    """Makes ffmpeg read other files, if it is let."""
    return b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


KINDS: tuple[Bytes, ...] = (flipped, truncated, swapped, absurd_header, noise, frame_bomb, playlist)
CERTAIN = {"noise", "playlist"}  # whatever is drawn, no clip can come of it
NAMES = ("../up/{}", "/etc/{}", "c:\\{}", "naïve-😀-{}", "-dash{}", "_under{}", "__key__{}", "a b{}", "'; rm -rf {}")


def write_corpus(folder: Path, fuzzed: int, good: int, per_shard: int = 125) -> list[str]:
    """Shards, as a stranger's tool might have left them; returns the names of the good samples."""
    folder.mkdir()
    random = np.random.default_rng(0)
    videos = []
    for _ in range(8):
        pictures = random.integers(0, 256, (12, 12, 8, 3)).repeat(2, 1).repeat(4, 2).astype(np.uint8)
        videos.append(encode_video(pictures, 25))
    names = []
    wrong = np.zeros(fuzzed + good, bool)
    wrong[random.permutation(fuzzed + good)[:fuzzed]] = True
    for first in range(0, len(wrong), per_shard):
        shard = f"{first // per_shard:05d}"
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number, bad in enumerate(wrong[first : first + per_shard], start=first):
                video = videos[number % len(videos)]
                kind = KINDS[number % len(KINDS)]
                key = NAMES[number % len(NAMES)].format(number) + (f"-{kind.__name__}" if bad else "-good")
                members = {"mp4": kind(random, video) if bad else video, "txt": f"clip {number}".encode()}
                _write(tar, key, members)
                if not bad:
                    names.append(f"{shard}/{key}")
    return names


def _write(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> None:
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def files_below(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        yield f"{path.relative_to(folder)} {path.stat().st_size if path.is_file() else 'folder'}"


def _surrogate(random: np.random.Generator) -> bytes:
    return f'"cut \\u{random.integers(0xD800, 0xE000):04x} here"'.encode()


def _control(random: np.random.Generator) -> bytes:
    return f'"a\\u{random.integers(0, 32):04x}b"'.encode()


def _bytes(random: np.random.Generator) -> bytes:
    return random.bytes(int(random.integers(0, 60)))


def _nested(random: np.random.Generator) -> bytes:
    return b"[" * int(random.integers(1, 20_000))


def _number(random: np.random.Generator) -> bytes:
    return [b"NaN", b"-Infinity", b"1e999", b"1" * 5000, b"-0", b"00", b"3,5", b"0 -1 7"][int(random.integers(8))]


def _other_types(random: np.random.Generator) -> bytes:
    return [b"null", b"true", b"{}", b"[]", b'[null, 3, {"a": "b"}, " x "]', b'""', b'" "'][int(random.integers(7))]


def _scripts(random: np.random.Generator) -> bytes:
    letters = random.integers(0x20, 0x2FFF, 12)
    return ('"' + "".join(map(chr, letters)).replace('"', "").replace("\\", "") + '"').encode()


def _delimiters(random: np.random.Generator) -> bytes:
    return bytes(random.choice(list(b"\",;\t|\n\r \\'a"), int(random.integers(1, 40))).astype(np.uint8))


def _marked(random: np.random.Generator) -> bytes:
    return [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b"][int(random.integers(4))] + b'"text"'


def _json(random: np.random.Generator) -> bytes:
    key = ["caption", "captions", "Caption", "label", "file"][int(random.integers(5))]
    return json.dumps({key: ["one", "\ud83d", "", 3][int(random.integers(4))]}).encode()


TextKind = Callable[[np.random.Generator], bytes]
TEXT_KINDS: tuple[TextKind, ...] = (
    _surrogate, _control, _bytes, _nested, _number, _other_types, _scripts, _delimiters, _marked, _json,
)  # fmt: skip


def fuzzed_text(random: np.random.Generator, kind: TextKind) -> bytes:
    """What may stand where a caption, a json, a name or a label is expected."""
    return kind(random)
