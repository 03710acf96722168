"""A corpus behind a real HTTP server: what is asked for, and what faults do."""

from __future__ import annotations

import os
import threading
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from loopback import LoopbackServer
from tars import clips, make_corpus, write_tar

from tgm_scale.data.access import patience, storage
from tgm_scale.data.access.disk_cache import DiskCache
from tgm_scale.data.shards.index import DamagedMember
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.shard_manifest import MANIFEST
from tgm_scale.preflight.node_checks import read_one
from tgm_scale.runtime.outside.refusals import PermanentError, Refused


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)


class RangeServer(SimpleHTTPRequestHandler):
    """A file server with range requests, which refuses the first `failures` of them."""

    failures = 0
    ranges: list[str]

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        if wanted is None:
            self.send_response(200)
        elif type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        else:
            self.ranges.append(wanted)
            first, last = wanted.removeprefix("bytes=").split("-")
            if int(first) >= len(data):  # RFC 9110, 15.5.17: of an empty file no byte can be asked for
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, end = int(first), min(int(last or len(data)), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def end_headers(self):
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """A corpus behind http, and the class of its server."""
    folder = make_corpus(tmp_path / "remote", [3, 2])
    handler = type("Handler", (RangeServer,), {"ranges": [], "failures": 0})
    server = LoopbackServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("indexed", [False, True])
def test_a_remote_corpus_is_read_by_range(served, indexed):
    address, folder, handler = served
    local = open_corpus(folder)
    here = local.sample(1, 1)
    if not indexed:
        for path in [*folder.glob("*.index.jsonl"), folder / MANIFEST]:
            path.unlink()
    files = sorted(os.listdir(folder))
    remote = open_corpus(address + "/{00000..00001}.tar", name="remote")
    assert remote.counts.tolist() == [3, 2] and remote.fingerprint == local.fingerprint
    assert handler.ranges == [] or not indexed, "the catalogue is enough to open a corpus"
    ref = remote.sample(1, 1)
    assert ref.members == here.members
    handler.ranges.clear()
    handler.failures = 2
    assert remote.read(ref, ["mp4", "json"]) == local.read(here, ["mp4", "json"])
    assert len(handler.ranges) == 1, "neighbouring members come in one request"
    assert sorted(os.listdir(folder)) == files, "nothing is written to the remote side"


def test_a_read_error_that_does_not_pass_stops(served):
    address, _, handler = served
    remote = open_corpus(address + "/00000.tar")
    ref = remote.sample(0, 0)
    handler.failures = 10
    with pytest.raises(OSError, match=r"00000\.tar.*503.*attempts"):
        remote.read(ref, ["mp4"])


@pytest.mark.parametrize("catalogued", [False, True])
def test_after_one_replaced_shard_the_others_are_looked_at_anew(served, catalogued):
    address, folder, _ = served
    open_corpus(folder)  # which writes a catalogue
    for path in [*folder.glob("*.index.jsonl"), *([] if catalogued else [folder / MANIFEST])]:
        path.unlink()
    both = address + "/{00000..00001}.tar"
    before = open_corpus(both)
    for shard, count in (("00000", 2), ("00001", 4)):
        write_tar(folder / f"{shard}.tar", clips(7, count))
        os.utime(folder / f"{shard}.tar", (2**31, 2**31))
    with pytest.raises(OSError, match="replaced under the run; start the run again"):
        before.sample(0, 0)
    after = open_corpus(both)
    assert after.counts.tolist() == [2, 4] and after.sample(1, 3).key == "7_0003"


@pytest.mark.parametrize("kept", [0, 700])
@pytest.mark.parametrize("beside", [False, True])
def test_a_shard_that_held_nothing_at_first_is_looked_at_again(served, beside, kept):
    """As while it is still uploaded. No sample of it is ever read that would tell of its repair."""
    address, folder, _ = served
    open_corpus(folder)
    whole = (folder / "00001.tar").read_bytes()
    for path in [*folder.glob("*.index.jsonl"), folder / MANIFEST]:
        path.unlink()
    both = address + "/{00000..00001}.tar"
    (folder / "00001.tar").write_bytes(whole[:kept])
    assert open_corpus(both).counts.tolist() == [3]
    (folder / "00001.tar").write_bytes(whole)
    os.utime(folder / "00001.tar", (2**31, 2**31))
    if beside:
        open_corpus(folder)
    assert open_corpus(both).counts.tolist() == [3, 2] == open_corpus(both).counts.tolist()


def test_a_shard_that_lacks_some_samples_is_not_asked_for_at_every_opening(served):
    """With one such sample in each of ten thousand shards these would be twenty thousand requests."""
    address, folder, handler = served
    write_tar(folder / "00001.tar", [*clips(1, 2), ("odd.json", b"{}")])
    both = address + "/{00000..00001}.tar"
    assert open_corpus(both).left_out == {"no_video": 1}
    handler.ranges.clear()
    assert open_corpus(both).left_out == {"no_video": 1} and handler.ranges == []


def test_an_empty_video_of_a_remote_list_is_empty(served):
    address, folder, _ = served
    (folder / "list.csv").write_text("file,caption\na.mp4,one\nb.mp4,two\n")
    (folder / "a.mp4").write_bytes(b"")
    (folder / "b.mp4").write_bytes(b"some")
    corpus = open_corpus(f"{address}/list.csv")
    read = [corpus.read(corpus.sample(number, 0), ["mp4"])["mp4"] for number in range(2)]
    assert read == [b"", b"some"]


@pytest.mark.parametrize("when", ["before", "after it was asked for"])
def test_a_video_of_a_remote_list_that_is_gone_is_left_out_and_named(served, when):
    address, folder, _ = served
    (folder / "list.csv").write_text("file,caption\na.mp4,one\nb.mp4,two\n")
    for name in ("a", "b"):
        (folder / f"{name}.mp4").write_bytes(b"some")
    corpus = open_corpus(f"{address}/list.csv")
    ref = corpus.sample(0, 0)
    (folder / "a.mp4").unlink()
    with pytest.raises(DamagedMember, match=r"a\.mp4: missing_video: http.*a\.mp4: its server has no such file"):
        corpus.read(corpus.sample(0, 0) if when == "before" else ref, ["json", "mp4"])
    assert corpus.read(corpus.sample(1, 0), ["mp4"]) == {"mp4": b"some"}
    read_one(corpus, 0)
    (folder / "b.mp4").unlink()
    with pytest.raises(ValueError, match=r"list\.csv: .*its server has no such file, as of all"):
        read_one(corpus, 0)


@pytest.mark.parametrize("count", [16, 24])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_list_of_which_one_of_two_places_is_gone_is_read(served, count, kept):
    address, folder, _ = served
    (folder / "list.csv").write_text("file,caption\n" + "".join(f"{n:02d}.mp4,one\n" for n in range(count)))
    for number in range(kept, count, 2):
        (folder / f"{number:02d}.mp4").write_bytes(b"some")
    for rank in range(4):
        read_one(open_corpus(f"{address}/list.csv"), rank)


@pytest.mark.parametrize("stated", ["bytes 0-0/*", "none", None, "12", "bytes 5-5/12"])
def test_a_server_that_says_no_size_is_named(served, monkeypatch, stated):
    address, _, handler = served
    said = {"Content-Range": stated, "Content-Length": None}

    def send_header(self, name, value):
        value = said.get(name, value)
        if value is not None:
            super(handler, self).send_header(name, value)

    monkeypatch.setattr(handler, "send_header", send_header)
    with pytest.raises(OSError, match=r"00000\.tar.*does not say how many bytes it has"):
        open_corpus(f"{address}/00000.tar")
    del said["Content-Range"]  # which says it, too
    assert len(open_corpus(f"{address}/00000.tar")) == 3


def test_a_size_is_asked_for_again_while_its_server_is_busy(served, monkeypatch):
    address, _, handler = served
    busy = [503, 503]

    def answered(self):
        if busy:
            self.send_error(busy.pop())
            return True
        return False

    do_get = handler.do_GET
    monkeypatch.setattr(handler, "do_GET", lambda self: answered(self) or do_get(self))
    assert storage.size(f"{address}/00000.tar", patience=5) > 0 and not busy


@pytest.mark.parametrize(
    ("stated", "size"), [("bytes */0", 0), ("Bytes */0", 0), (None, None), ("bytes */12345", None)]
)
def test_of_an_empty_file_no_byte_can_be_asked_for(served, monkeypatch, stated, size):
    address, folder, handler = served
    (folder / "some.mp4").write_bytes(b"")

    def send_header(self, name, value):
        if name != "Content-Range":
            super(handler, self).send_header(name, value)
        elif stated:
            super(handler, self).send_header(name, stated)

    monkeypatch.setattr(handler, "send_header", send_header)
    if size is not None:
        assert storage.size(f"{address}/some.mp4") == size
        return
    with pytest.raises(OSError, match=r"some.mp4: its server does not honour range requests \(status 416"):
        storage.size(f"{address}/some.mp4")


def test_a_size_that_is_forbidden_has_the_way_in(served, monkeypatch):
    address, _, handler = served
    monkeypatch.setattr(handler, "do_GET", lambda self: self.send_error(403))
    with pytest.raises(PermissionError, match=r"403 Forbidden.*the address wants a login") as refused:
        storage.size(f"{address}/00000.tar")
    assert f"{refused.value}".count("wants a login") == 1


def test_a_kept_video_that_was_replaced_is_read_anew(served, tmp_path, monkeypatch):
    """Of equal size, so that its tag alone tells it from what the cache keeps."""
    address, folder, handler = served

    def tagged(self):
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{zlib.crc32(path.read_bytes()):08x}"')
        super(handler, self).end_headers()

    monkeypatch.setattr(handler, "end_headers", tagged)
    (folder / "list.csv").write_text("file,caption\na.mp4,one\n")
    (folder / "a.mp4").write_bytes(b"this")

    def read() -> tuple[bytes, int]:
        corpus = open_corpus(f"{address}/list.csv", cache=DiskCache(tmp_path / "kept", 10**7))
        handler.ranges.clear()
        return corpus.read(corpus.sample(0, 0), ["mp4"])["mp4"], len(handler.ranges)

    assert [read(), read()] == [(b"this", 2), (b"this", 1)], "its size is asked for, and its bytes once"
    (folder / "a.mp4").write_bytes(b"that")
    assert [read(), read()] == [(b"that", 2), (b"that", 1)]


def redirecting(handler, to):
    def do_GET(self):
        if self.path == to:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "19")
            self.end_headers()
            self.wfile.write(b"<form>log in</form>")
            return
        self.send_response(302)
        self.send_header("Location", to or self.path)
        self.end_headers()

    return do_GET


def test_a_redirect_to_a_page_names_what_was_asked_for(served, monkeypatch):
    address, _, handler = served
    monkeypatch.setattr(handler, "do_GET", redirecting(handler, "/login"))
    said = rf"{address}/00000\.tar \(which leads to {address}/login\): its server does not honour range requests "
    with pytest.raises(PermanentError, match=rf"{said}\(status 200, .*an HTML page, which may want a login\): name a"):
        storage.open_seekable(f"{address}/00000.tar")


def test_a_circle_of_redirects_is_not_waited_for(served, monkeypatch):
    address, _, handler = served
    monkeypatch.setattr(handler, "do_GET", redirecting(handler, ""))
    with pytest.raises(Refused, match=r"00000\.tar: its server redirects in a circle: correct the address"):
        storage.size(f"{address}/00000.tar", patience=60)


def test_shards_on_a_server_without_ranges_are_refused_by_name(served, monkeypatch):
    address, folder, handler = served
    for path in folder.glob("*.index.jsonl"):
        path.unlink()
    monkeypatch.setattr(handler, "do_GET", SimpleHTTPRequestHandler.do_GET)
    with pytest.raises(OSError, match=r"00000\.tar: its server does not honour range requests .*copy the files here"):
        open_corpus(f"{address}/00000.tar")
