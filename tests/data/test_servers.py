"""Servers that answer otherwise than asked: busy ones, liars, endless ones, and addresses that hold secrets."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from loopback import LoopbackServer
from tars import clips, make_corpus, write_tar

from tgm_scale.data.access import patience, storage
from tgm_scale.data.access.disk_cache import DiskCache, _digest
from tgm_scale.data.shards import index_cache
from tgm_scale.data.shards.index import Corpus, DamagedMember
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.shard_manifest import MANIFEST
from tgm_scale.runtime.terminal import without_secrets

SIGNED = "?X-Amz-Credential=A/2026/s3&X-Amz-Signature=5ec2e7"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 5.0)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)


class Server(BaseHTTPRequestHandler):
    """Files by range. `moods` of the range requests of tars, in turn; then it is well."""

    folder: Path
    moods: list[str]
    asked: list[str]
    sent: list[int]  # bytes of each answer without end
    tag = '"1"'
    endless = False  # its indices
    signed = False  # whether it gives tars alone, to those who have the signature

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        file, wanted = self.folder / path.strip("/"), self.headers.get("Range")
        self.asked.append(self.path)
        if self.signed and (f"?{query}" != SIGNED or file.suffix != ".tar"):
            self._say(403, b"<html>signature wanted</html>")
            return
        if not file.is_file():
            self._say(404, b"<html><b>no such clip\x1b[31m here</b></html>")
            return
        data, mood = file.read_bytes(), ""
        if file.name.endswith(".index.jsonl") and self.endless:
            self._endless()
            return
        if not wanted or self.command == "HEAD":
            self._say(200, data)
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        last = min(last, len(data) - 1)
        if file.suffix == ".tar" and self.moods:
            mood = self.moods.pop(0)
        if mood == "429":
            self._say(429, b"busy", {"Retry-After": "1"})
            return
        part, size = data[first : last + 1], len(data)
        if mood == "other bytes":
            part = bytes(len(part))
        if mood == "a flipped bit":
            part = part[:-9] + bytes([part[-9] ^ 1]) + part[-8:]
        if mood == "another range":
            first, last = first + 512, last + 512
        size += 512 if mood == "another size" else 0
        headers = {"Content-Range": f"bytes {first}-{last}/{size}", "ETag": '"2"' if mood == "replaced" else self.tag}
        self._say(200 if mood == "no ranges" else 206, part, headers)

    def _say(self, status: int, body: bytes, headers: dict[str, str] = {}) -> None:  # noqa: B006
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        sent = 0
        while sent < 64 << 20:
            try:
                sent += self.wfile.write(bytes(1 << 16))
            except OSError:
                break
        self.sent.append(sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, type[Server], Corpus]]:
    folder = make_corpus(tmp_path / "shards", [3, 2])
    local = open_corpus(folder)
    handler = type("Handler", (Server,), {"folder": folder, "moods": [], "asked": [], "sent": []})
    server = LoopbackServer(("127.0.0.1", 0), handler)
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", handler, local
    server.shutdown()
    server.server_close()


def everything(corpus: Corpus) -> list[dict[str, bytes]]:
    places = [(shard, row) for shard, count in enumerate(corpus.counts.tolist()) for row in range(count)]
    return [corpus.read(corpus.sample(*place), ["mp4", "json"]) for place in places]


def keys(corpus: Corpus) -> set[str]:
    return {
        corpus.sample(shard, row).within for shard, count in enumerate(corpus.counts.tolist()) for row in range(count)
    }


def opened(address: str, **settings: object) -> Corpus:
    """With the indices read: what follows is the samples' own requests."""
    corpus = open_corpus(f"http://{address}/{{00000..00001}}.tar", **settings)  # type: ignore[arg-type]
    for shard in range(2):
        corpus.sample(shard, 0)
    return corpus


def test_a_server_that_is_busy_is_asked_again_when_it_says(served, capsys, monkeypatch) -> None:  # type: ignore
    address, handler, local = served
    monkeypatch.setattr(patience, "SAY_AFTER", 0.5)
    corpus = opened(address)
    handler.moods = ["429"]
    began = time.monotonic()
    assert everything(corpus) == everything(local)
    assert time.monotonic() - began >= 1.0
    said = capsys.readouterr().err
    assert "waits for http" in said and "429 Too Many Requests: busy" in said and "has http" in said


def test_a_server_that_wants_more_time_than_there_is_ends_at_once(served) -> None:  # type: ignore
    address, handler, _ = served
    corpus = opened(address, patience=0.5)
    handler.moods = ["429"]
    began = time.monotonic()
    with pytest.raises(OSError, match=r"00000\.tar.*429.*busy.*1 attempt .*1 s more were asked for"):
        everything(corpus)
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("mood", ["other bytes", "another range"])
def test_other_bytes_than_those_of_the_shard_are_neither_given_nor_kept(served, tmp_path: Path, mood: str) -> None:  # type: ignore
    address, handler, local = served
    corpus = opened(address, cache=DiskCache(tmp_path / "cache", 10**7))
    handler.moods = [mood, mood]
    assert everything(corpus) == everything(local)
    asked = len(handler.asked)
    assert everything(corpus) == everything(local) and len(handler.asked) == asked, "from the disk"


def test_a_kept_entry_of_other_bytes_is_dropped(served, tmp_path: Path) -> None:  # type: ignore
    address, _, local = served
    cache = DiskCache(tmp_path / "cache", 10**7)
    everything(opened(address, cache=cache))
    for file in (tmp_path / "cache").glob("??/*"):
        other = bytes(file.stat().st_size - 16)
        file.write_bytes(_digest(other) + other)
    assert everything(opened(address, cache=cache)) == everything(local)
    assert everything(opened(address, cache=cache)) == everything(local)


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("another size", "it was replaced"),
        ("replaced", "ETag and time changed"),
        ("no ranges", "does not honour range requests"),
    ],
)
def test_a_shard_that_was_replaced_stops_the_run_at_once(served, mood: str, words: str) -> None:  # type: ignore
    address, handler, _ = served
    corpus = opened(address)
    corpus.read(corpus.sample(0, 0), ["mp4"])
    handler.moods = [mood]
    with pytest.raises(OSError, match=words):
        corpus.read(corpus.sample(0, 1), ["mp4"])


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_that_was_replaced_between_two_starts_is_noticed(  # type: ignore
    served, tmp_path: Path, capsys: pytest.CaptureFixture[str], indexed: bool
) -> None:
    """Of the same size and the same ends: other pixels in its middle, as after encoding them anew."""
    address, handler, _ = served
    for shard in range(2):
        members = [(f"{shard}_{i}.mp4", bytes(range(256)) * 100) for i in range(3)]
        write_tar(handler.folder / f"{shard:05d}.tar", members)
    local = open_corpus(handler.folder)
    everything(local)
    capsys.readouterr()  # that these are others than those that were served before
    if not indexed:
        for file in handler.folder.glob("*.json*"):
            file.unlink()
    cache = DiskCache(tmp_path / "cache", 10**7)
    first = everything(local)
    assert everything(opened(address, cache=cache)) == first
    tar, (at, size) = handler.folder / "00000.tar", local.sample(0, 0).members["mp4"]
    whole = bytearray(tar.read_bytes())
    whole[at : at + size] = bytes(reversed(whole[at : at + size]))
    tar.write_bytes(whole)
    assert everything(opened(address, cache=cache)) == first, (
        "nobody can tell, as long as the server says it is the same"
    )
    assert "replaced" not in capsys.readouterr().err
    handler.tag = '"2"'
    after = opened(address, cache=cache)
    assert everything(after) == everything(local) != first
    assert re.search(r"00000\.tar: its ETag or time is another than when it was indexed", capsys.readouterr().err)
    asked = len(handler.asked)
    assert everything(after) == everything(opened(address, cache=cache)), "once"
    assert "replaced" not in capsys.readouterr().err
    assert not [path for path in handler.asked[asked:] if path.endswith(".index.jsonl")], "its index is kept"


def test_a_kept_index_of_before_the_tag_is_used(served) -> None:  # type: ignore
    address, _, local = served
    opened(address)
    kept = sorted(index_cache.cache_folder().glob("*.index.jsonl"))
    assert len(kept) == 2 and all(json.loads(file.read_bytes().splitlines()[0])["tag"] == '"1"' for file in kept)
    for file in kept:
        head, *lines = file.read_bytes().splitlines()
        plain = {name: value for name, value in json.loads(head).items() if name != "tag"}
        file.write_bytes(b"\n".join([json.dumps(plain).encode(), *lines]) + b"\n")
    assert everything(opened(address)) == everything(local)
    assert all(b'"tag"' in file.read_bytes() for file in kept), "and has it from then on"


def test_other_bytes_within_a_member_are_read_once_more_and_then_left_out(served, tmp_path: Path) -> None:  # type: ignore
    """As from a proxy that has kept half of something else: the index has the sums."""
    address, handler, local = served
    for shard, count in zip(local.shards, local.counts):
        members = [local.read(local.sample(local.shards.index(shard), row), ["mp4", "json"]) for row in range(count)]
        sums = [{name: zlib.crc32(data) for name, data in each.items()} for each in members]
        index_cache.add_sums(shard, dict(enumerate(sums)))
    cache = DiskCache(tmp_path / "cache", 10**7)
    corpus = opened(address, cache=cache)
    ref, wanted = corpus.sample(0, 0), local.read(local.sample(0, 0), ["mp4"])
    assert ref.sums
    handler.moods = ["a flipped bit"]
    assert corpus.read(ref, ["mp4"]) == wanted and not handler.moods
    asked = len(handler.asked)
    assert corpus.read(ref, ["mp4"]) == wanted and len(handler.asked) == asked, "the right bytes are kept"
    handler.moods = ["a flipped bit", "a flipped bit"]
    with pytest.raises(DamagedMember, match="00000/0_0001: damaged_member: the bytes of mp4"):
        corpus.read(corpus.sample(0, 1), ["mp4"])
    assert corpus.read(corpus.sample(0, 2), ["mp4"]) == local.read(local.sample(0, 2), ["mp4"])


def test_a_catalogue_that_knows_another_shard_is_corrected(served) -> None:  # type: ignore
    """As many samples, others: the run would go on under the old fingerprint."""
    address, handler, _ = served
    before = open_corpus(f"http://{address}/{{00000..00001}}.tar")
    write_tar(handler.folder / "00000.tar", clips(shard=7, count=3))
    with pytest.raises(OSError, match=r"00000\.tar holds 3 samples, 3 when the corpus was opened, or others"):
        before.sample(0, 0)
    after = open_corpus(f"http://{address}/{{00000..00001}}.tar")
    assert after.fingerprint != before.fingerprint and after.sample(0, 0).key == "7_0000"


def test_a_missing_shard_is_told_in_the_servers_words(served) -> None:  # type: ignore
    address, handler, _ = served
    corpus = opened(address)
    (handler.folder / "00000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"00000\.tar: 404 Not Found: no such clip\\x1b\[31m here$"):
        everything(corpus)


def test_an_index_without_end_is_left_and_made_anew(served) -> None:  # type: ignore
    """After what a tar of that size can hold: here 100 kB of its 64 MB."""
    address, handler, local = served
    handler.endless = True
    corpus = open_corpus(f"http://{address}/{{00000..00001}}.tar")
    assert everything(corpus) == everything(local)
    assert handler.sent and max(handler.sent) < 16 << 20, "what fits into the sockets' buffers, and no more"


def test_presigned_addresses_are_shards_and_their_names_have_no_signature(served) -> None:  # type: ignore
    address, handler, local = served
    handler.signed = True
    shards = [f"http://user:secret@{address}/{number:05d}.tar{SIGNED}" for number in range(2)]
    corpus = open_corpus(shards)
    assert everything(corpus) == everything(local) and corpus.fingerprint == local.fingerprint
    assert [ref.name for ref in corpus.refs] == [ref.name for ref in local.refs]
    asked = len(handler.asked)
    again = open_corpus([shard.replace("5ec2e7", "0ther") for shard in shards])  # of tomorrow: by the kept indices
    assert len(again) == len(local) and len(handler.asked) <= asked + 4
    with pytest.raises(ValueError, match="named twice") as caught:
        open_corpus([shards[0], shards[0].replace("5ec2e7", "0ther")])
    with pytest.raises(OSError, match="403") as forbidden:
        everything(again)
    for error in (caught, forbidden):
        assert "5ec2e7" not in str(error.value) and "0ther" not in str(error.value)
        assert "secret" not in str(error.value) and "00000.tar" in str(error.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("read http://me:p@ss@h:1/a.tar, then b", "read http://***@h:1/a.tar, then b"),
        ("'https://h/a.tar?sig=x%2F&se=1': 403", "'https://h/a.tar?sig=***&se=***': 403"),
        ("(https://h/a.tar?token=x) gone", "(https://h/a.tar?token=***) gone"),
        ("s3://bucket/0000?.tar and a@b", "s3://bucket/0000?.tar and a@b"),
        ("/folder/a?b=c", "/folder/a?b=c"),
    ],
)
def test_secrets_of_addresses_are_left_out(text: str, wanted: str) -> None:
    assert without_secrets(text) == wanted


def test_a_small_gzip_of_a_large_file_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SMALL", 1 << 20)
    assert storage.unpacked(gzip.compress(bytes(1 << 20)), "a.gz") == bytes(1 << 20)
    with pytest.raises(ValueError, match=r"a\.gz: a gzip of more than 1,048,576 bytes"):
        storage.unpacked(gzip.compress(bytes(1 << 24)), "a.gz")


def test_an_index_that_stayed_beside_a_replaced_shard_is_not_taken(  # type: ignore
    served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another key in its middle: the size and both ends are those of before, to which the index beside it belongs."""
    address, handler, _ = served
    tar = handler.folder / "00000.tar"
    for shard in range(2):
        members = [(f"{shard}_{i}.mp4", bytes(range(256)) * 400) for i in range(3)]
        write_tar(handler.folder / f"{shard:05d}.tar", members)
    everything(open_corpus(handler.folder))
    (handler.folder / MANIFEST).unlink(missing_ok=True)
    assert "00000/0_1" in keys(opened(address))
    other = tmp_path / "other.tar"
    write_tar(other, [(name, bytes(range(256)) * 400) for name in ("0_0.mp4", "0_x.mp4", "0_2.mp4")])
    assert other.stat().st_size == tar.stat().st_size
    tar.write_bytes(other.read_bytes())
    handler.tag = '"2"'
    assert "00000/0_x" in keys(opened(address))
    assert "it was replaced; its index is rebuilt" in capsys.readouterr().err
