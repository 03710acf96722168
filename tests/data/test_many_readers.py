"""Many readers of remote shards: what each asks of the server, and that their requests overlap."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from loopback import LoopbackServer
from tars import make_corpus
from test_index_remote import RangeServer

from tgm_scale.data.access import storage
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.read_ahead import read_ahead


class Tagged(RangeServer):
    """Says ETags, takes its time, and knows how many requests it had at once."""

    seconds = 0.0
    now, most = 0, 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        kind = type(self)
        with self.lock:
            kind.now += 1
            kind.most = max(kind.most, kind.now)
        time.sleep(self.seconds)
        super().do_GET()
        with self.lock:
            kind.now -= 1

    def end_headers(self) -> None:
        self.send_header("ETag", '"1"')
        super().end_headers()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, type[Tagged]]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = make_corpus(tmp_path / "remote", [3, 2, 2, 2])
    open_corpus(folder)  # leaves indices and the catalogue
    handler = type("Handler", (Tagged,), {"ranges": []})
    server = LoopbackServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/" + "{00000..00003}.tar", folder, handler
    server.shutdown()
    server.server_close()


def test_a_worker_asks_once_for_an_index_that_is_kept(served: tuple[str, Path, type[Tagged]]) -> None:
    address, folder, handler = served
    remote = open_corpus(address)
    refs = list(remote.refs)
    handler.ranges.clear()
    worker = pickle.loads(pickle.dumps(remote))
    assert [worker.sample(shard, 0) for shard in range(4)] == [refs[at] for at in (0, 3, 5, 7)]
    assert handler.ranges == ["bytes=0-0"] * 4, "whether the shard is the one that was indexed"
    (folder / "00000.tar").write_bytes((folder / "00000.tar").read_bytes() + bytes(10240))
    with pytest.raises(OSError, match="it was replaced under the run"):
        pickle.loads(pickle.dumps(remote)).sample(0, 0)


def test_threads_load_several_indices_at_once_and_each_once(served: tuple[str, Path, type[Tagged]]) -> None:
    address, _, handler = served
    remote = open_corpus(address)
    list(remote.refs)
    handler.ranges.clear()
    handler.seconds, handler.most = 0.3, 0
    worker = pickle.loads(pickle.dumps(remote))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: worker.sample(at % 4, at // 4), range(8)))
    assert [ref.name for ref in found[:4]] == [worker.sample(shard, 0).name for shard in range(4)]
    assert handler.most >= 3 and len(handler.ranges) == 4


def test_evaluation_reads_several_samples_at_once_in_their_order(served: tuple[str, Path, type[Tagged]]) -> None:
    address, folder, handler = served
    local, remote = open_corpus(folder), open_corpus(address)
    refs = list(remote.refs)
    handler.seconds, handler.most = 0.1, 0
    found = [(ref.within, members) for ref, members in read_ahead(remote, refs, ["json"])]
    assert found == [(ref.within, members) for ref, members in read_ahead(local, local.refs, ["json"])]
    assert len(found) == 9 and handler.most >= 5
    stopped = read_ahead(remote, refs)
    assert next(stopped)[0] == refs[0]
    stopped.close()


def test_nobody_waits_for_a_server_once_the_reading_has_ended(served: tuple[str, Path, type[Tagged]]) -> None:
    """Else a process that is stopped, or has met an error, ends when the last wait is over."""
    address, folder, handler = served
    remote = open_corpus(address, patience=60)
    refs = list(remote.refs)
    (folder / "00000.tar").unlink()
    handler.failures = 10**6  # of what is there
    before = threading.active_count()
    with pytest.raises(FileNotFoundError):
        list(read_ahead(remote, refs))
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert time.monotonic() < end


def test_a_time_that_is_told_in_two_ways_is_no_other_file() -> None:
    """As by servers whose listings have milliseconds and whose answers have seconds."""
    listed = {"ETag": '"a"', "LastModified": datetime(2026, 1, 1, 0, 0, 24, 789000, UTC), "size": 3}
    asked = {"ETag": '"a"', "LastModified": datetime(2026, 1, 1, 0, 0, 24, 0, UTC), "size": 3}
    assert storage._tag_of(listed) == storage._tag_of(asked) == '"a"'
    assert storage._tag_of({"generation": 7, "updated": "x"}) == "7"
    assert storage._tag_of({"created": 3.5}) == "3.5" and storage._tag_of({}) == ""
    earlier = f'"a" {listed["LastModified"]}'
    assert storage.same_tag(earlier, '"a"') and storage.same_tag("", "")
    assert not storage.same_tag(earlier, '"b"') and not storage.same_tag(earlier, "") and not storage.same_tag("", "b")
