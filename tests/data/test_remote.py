"""Remote shards over real servers on loopback: faults that pass are ridden out, others stop the run by name, and the
batches are those of the local shards. S3 is moto's server."""

from __future__ import annotations

import errno
import fcntl
import itertools
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import clip_loader
from loopback import LoopbackServer

from tgm_scale.contracts import Grid
from tgm_scale.data.access import http, patience
from tgm_scale.data.access.disk_cache import DiskCache
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.workers import READERS
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video

CLIPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote") / "shards"
    with ShardWriter(path, clips_per_shard=4) as writer:
        for number in range(CLIPS):
            noise = np.random.default_rng(number).integers(0, 256, (6, 16, 20, 3)).astype(np.uint8)
            writer.write(f"c{number}", {"mp4": encode_video(noise, fps=25), "json": {"caption": f"clip {number}"}})
    open_corpus(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


class Waiting:
    """Counts answers that are waited for at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


class Faulty(SimpleHTTPRequestHandler):
    """Files with range requests. `faults` says what happens to each range request in turn; then all is well."""

    faults: Iterator[str]
    served: list[str]
    wait = 0.0  # seconds before each answer of a shard
    waiting: Waiting

    def do_GET(self) -> None:
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start, end = 0, len(data)
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or len(data)), len(data) - 1) + 1
        if wanted and path.suffix == ".tar" and self.wait:
            with self.waiting:
                time.sleep(self.wait)
        fault = next(self.faults, "") if wanted and path.suffix == ".tar" else ""
        if fault.isdigit():  # else -, cut, hang or slow
            self.send_error(int(fault))
            return
        if fault == "hang":
            time.sleep(1.0)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[start : start + (end - start) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault == "slow":
            for at in range(start, end, 1 + (end - start) // 4):
                self.wfile.write(data[at : min(end, at + 1 + (end - start) // 4)])
                self.wfile.flush()
                time.sleep(0.05)
            return
        self.served.append(f"{path.name} {start}-{end}")  # before the client can go on
        self.wfile.write(data[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[str, type[Faulty]]]:
    handler = type("Handler", (Faulty,), {"faults": iter(()), "served": [], "waiting": Waiting()})
    server = LoopbackServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{{00000..00002}}.tar", handler
    server.shutdown()
    server.server_close()


def loader(corpus: Corpus, workers: int = 0, stop_step: int = 3) -> ClipLoader:
    return clip_loader(
        [corpus],
        frames=4,
        stride=1,
        size=8,
        grid=Grid.of(4, 8, 2, 4),
        seed=3,
        global_batch_size=4,
        micro_batch_size=4,
        rank=0,
        world_size=1,
        workers=workers,
        stop_step=stop_step,
    )


def load(corpus: Corpus, workers: int = 0) -> list[tuple]:
    return [
        (key, caption, float(weight), video.contiguous().numpy().tobytes())
        for _, [batch] in loader(corpus, workers)
        for key, caption, weight, video in zip(batch.keys, batch.captions, batch.weight, batch.video)
    ]


def test_faults_that_pass_are_ridden_out(
    served: tuple[str, type[Faulty]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500s, cut connections, a server that hangs, and a slow one: the batches are the local ones to the bit."""
    address, handler = served
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(http, "READ_SECONDS", 0.3)
    remote = open_corpus(address)
    faults = iter("500 503 - - cut - slow - cut - - hang - - 429 - slow - 500 - cut - - 503 slow".split())
    handler.faults = faults
    assert load(remote) == load(open_corpus(folder))
    assert next(faults, None) is None, "all of them happened"


def test_workers_read_remote_shards_through_faults(served: tuple[str, type[Faulty]], folder: Path) -> None:
    """With the real back-off: the first wait is half a second."""
    address, handler = served
    handler.faults = iter(["500", "cut"])
    began = time.monotonic()
    assert load(open_corpus(address), workers=2) == load(open_corpus(folder))
    assert time.monotonic() - began > 0.37


def test_a_worker_reads_ahead_while_it_waits(served: tuple[str, type[Faulty]], folder: Path) -> None:
    """One worker, three answers at a time; and no more than the samples in flight."""
    address, handler = served
    remote = open_corpus(address)
    handler.wait = 0.2
    assert load(remote, workers=1) == load(open_corpus(folder))
    assert handler.waiting.most == READERS


def test_workers_that_wait_for_a_server_end_with_the_loader(served: tuple[str, type[Faulty]]) -> None:
    address, handler = served
    remote = open_corpus(address)
    clips = iter(loader(remote, workers=2, stop_step=10**6))
    next(clips)
    handler.wait = 5.0
    next(clips)  # asks for more, however much was there already
    asked = time.monotonic()
    while not handler.waiting.now:
        assert time.monotonic() - asked < 10, "nobody reads ahead"
        time.sleep(0.02)
    began = time.monotonic()
    clips.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 2.0 and not multiprocessing.active_children()


def test_the_waits_between_attempts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(patience, "pause_for", lambda seconds, _: waits.append(seconds))

    def fail() -> None:
        raise ConnectionResetError("again")

    with pytest.raises(OSError, match=r"http://x: ConnectionResetError: again \(\d+ attempts in \d+ s; data.pat"):
        patience.retrying(fail, "http://x")
    assert waits == sorted(waits) and waits[-1] >= 30 * waits[0] and 200 < sum(waits) <= 300


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_a_fault_that_lasts_stops_the_run_by_name(
    served: tuple[str, type[Faulty]], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    address, handler = served
    remote = open_corpus(address, patience=0.1)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    handler.faults = itertools.repeat(fault)
    asked = time.monotonic()
    with pytest.raises(OSError, match=r"http://127.0.0.1.*\d\.tar.*attempts"):
        load(remote)
    assert time.monotonic() - asked < 60, "no wait within has a patience of its own"


def test_what_is_read_once_comes_from_the_disk(served: tuple[str, type[Faulty]], tmp_path: Path) -> None:
    address, handler = served
    cache = DiskCache(tmp_path / "cache", 10**7)
    remote = open_corpus(address, cache=cache)
    refs = [remote.sample(shard, row) for shard in range(3) for row in range(4)]
    members = {
        f"{Path(ref.shard).name} {min(o for o, _ in places) - 512}-{max(o + n for o, n in places)}"
        for ref in refs
        for places in [ref.members.values()]
    }

    def asked() -> int:
        return sum(request in members for request in handler.served)

    first = load(remote)
    assert asked() == CLIPS
    assert load(open_corpus(address, cache=cache), workers=1) == first
    assert asked() == CLIPS
    entries = list((tmp_path / "cache").glob("??/*"))
    assert len(entries) == CLIPS
    entries[0].write_bytes(entries[0].read_bytes()[:-3] + b"xyz")  # a disk that fails
    entries[1].write_bytes(b"")
    assert load(open_corpus(address, cache=cache)) == first
    assert asked() == CLIPS + 2


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_the_disk_cache_is_bounded(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    folder, limit = tmp_path_factory.mktemp("bounded"), 8000
    cache = DiskCache(folder, limit)
    for number, size in enumerate(sizes):
        cache.put(bytes(size), "v", number)
        held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert held <= limit + limit // 64 + 3016, "the bound, and what came since the last look"
        assert cache.get("v", number) in (bytes(size), None)
    assert cache.get("v", len(sizes) - 1) == bytes(sizes[-1])
    assert cache.get("other version", len(sizes) - 1) is None


def test_a_full_cache_drops_what_was_not_used_for_the_longest_time(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 5000)
    for number in range(4):
        cache.put(bytes(1000), number)
        time.sleep(0.02)
    assert cache.get(0) is not None
    cache.put(bytes(1000), 4)
    assert [cache.get(number) is not None for number in range(5)] == [True, False, True, True, True]


def test_a_cache_that_cannot_be_made_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data.cache.dir=.*file/cache cannot be made"):
        DiskCache(tmp_path / "file" / "cache", 10)


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shards in a bucket of moto's S3 server."""
    pytest.importorskip("s3fs", reason="the s3 extra is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed (the dev extra)")
    import logging

    import fsspec

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server: Any = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}
    for name, value in (settings | {"DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("clips")
    for file in folder.iterdir():
        system.pipe_file(f"clips/part/{file.name}", file.read_bytes())
    yield "s3://clips/part"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def test_a_bucket_is_a_corpus(bucket: str, folder: Path) -> None:
    local = open_corpus(folder)
    for spec in (bucket, f"{bucket}/*.tar", bucket + "/{00000..00002}.tar"):
        remote = open_corpus(spec)
        assert (remote.fingerprint, remote.counts.tolist()) == (local.fingerprint, [4, 4, 4])
    assert load(remote) == load(local)
    with pytest.raises(ValueError, match=r"no shards .* at 's3://clips/none'"):
        open_corpus("s3://clips/none")


def _fill(folder: str, limit: int, process: int) -> int:
    """What the folder holds at most while a process adds to it."""
    cache, most = DiskCache(folder, limit), 0
    for number in range(300):
        cache.put(bytes(1000), process, number)
        time.sleep(0.005)  # as a reader of clips; else hundreds come while one measures
        if number % 25 == 0:
            most = max(most, _held(Path(folder)))
    return most


def _held(folder: Path) -> int:
    found = 0
    for path in folder.glob("??/*"):
        with suppress(FileNotFoundError):  # others thin out
            found += path.stat().st_size
    return found


def test_processes_of_a_node_keep_one_bound_together(tmp_path: Path) -> None:
    """If each counted for itself, 8 would add 8/64 of the limit before they look."""
    limit = 1_000_000
    with ProcessPoolExecutor(8, multiprocessing.get_context("spawn")) as pool:
        held = list(pool.map(_fill, [str(tmp_path)] * 8, [limit] * 8, range(8)))
    assert max(held) < 1.12 * limit
    assert 0.9 * limit < _held(tmp_path) < 1.12 * limit


def test_an_entry_of_another_user_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path, 3000)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    for number in range(6):
        cache.put(bytes(1000), number)
    assert cache.get(5) == bytes(1000)


def test_a_cache_whose_folder_cannot_be_locked_is_bounded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    cache = DiskCache(tmp_path, 5000)
    for number in range(20):
        cache.put(bytes(1000), number)
    assert _held(tmp_path) <= 5000


def test_many_processes_that_add_little_are_counted(tmp_path: Path) -> None:
    for number in range(200):
        DiskCache(tmp_path, 50_000_000).put(bytes(1000), number)
    for number in range(60):
        DiskCache(tmp_path, 20_000).put(bytes(1000), 1, number)
    assert _held(tmp_path) <= 20_000 + 20_000 // 64 + 1016
