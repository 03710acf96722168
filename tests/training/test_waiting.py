"""Who waits for which shard shows in a run's heartbeat and in `tgm-scale status`: at the start, and amid the run."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from short_run import CONFIG, rank_file, start, wait_for_steps

from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runs.status import status


class Server(BaseHTTPRequestHandler):
    """Files by range; with `down`, 503 for all shards."""

    folder: Path
    down = False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        file = self.folder / self.path.partition("?")[0].strip("/")
        if self.down:
            self._say(503, b"the \x1b[31mdisks are away, see https://x/y?token=SECRET")
        elif not file.is_file():
            self._say(404, b"")
        elif wanted := self.headers.get("Range"):
            data = file.read_bytes()
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            part = data[first : last + 1]
            self._say(206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"})
        else:
            self._say(200, file.read_bytes())

    def _say(self, code: int, body: bytes, headers: dict[str, str] = {}) -> None:  # noqa: B006
        self.send_response(code)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(shards: Path) -> Iterator[tuple[str, type[Server]]]:
    handler = type("Handler", (Server,), {"folder": shards})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    yield f"http://me:SECRET@127.0.0.1:{server.server_port}/{{00000..00004}}.tar?token=SECRET", handler
    server.shutdown()
    server.server_close()


def waited_for(folder: Path, what: str = "") -> str:
    """The status, once somebody waits for a thing of this name: a heartbeat may still tell of the wait before."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            said = status(str(folder))
            if re.search(f"waiting  .* for [^,]*{re.escape(what)}", said):
                return said
        except (ValueError, OSError):  # its configuration is not written yet
            pass
        time.sleep(0.1)
    raise AssertionError("nobody waits")


def test_status_tells_who_waits_for_which_shard(
    tmp_path: Path, served: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, handler = served
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, config = tmp_path / "run", tmp_path / "run.yaml"
    config.write_text(CONFIG.format(run=folder, shards=f"'{address}'"))
    handler.down = True
    process = start(config, 1, "data.workers=1", "train.steps=100000", "checkpoint.every=100000")
    try:
        said = waited_for(folder)
        assert "none yet" in said and f"process {process.pid} on " in said, said
        handler.down = False
        wait_for_steps(folder, 3)
        handler.down = True
        said = waited_for(folder, ".tar")
        assert re.search(
            r"waiting  rank 0, process \d+ on \S+ for http://\*\*\*@127\.0\.0\.1:\d+/0000\d\.tar\?token=\*\*\*, "
            r"0:00:\d\d by now: "
            r"RetryLater: http\S+: 503 Service Unavailable: the \\x1b\[31mdisks are away, see https://x/y\?token=\*\*\*",
            said,
        ), said
        assert f"process {process.pid} on " not in said, "a data worker waits"
        assert "SECRET" not in said + json.dumps(rank_file(folder, 0))
        before = len(read_metrics(folder))
        handler.down = False
        wait_for_steps(folder, before + 3)
        end = time.monotonic() + 60  # a pause between two attempts may be 20 s by now
        while "waiting  " in (said := status(str(folder))):
            assert time.monotonic() < end, said
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
