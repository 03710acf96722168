"""SIGTERM while a server does not answer: the run saves what it made, and ends as after any stop, within seconds."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from launch import run
from short_run import arguments, start, wait_for_steps

from tgm_scale.checkpoints.folders import steps_in
from tgm_scale.runs.metrics import read_metrics


class Files(BaseHTTPRequestHandler):
    """Files by range, while it is `up`."""

    folder: Path
    up = threading.Event()

    def do_GET(self) -> None:
        file = self.folder / self.path.strip("/")
        if not self.up.is_set() or not file.is_file():
            return self._say(404 if self.up.is_set() else 503, b"", {})
        data, wanted = file.read_bytes(), self.headers.get("Range")
        if not wanted:
            return self._say(200, data, {})
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        last = min(last, len(data) - 1)
        return self._say(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, threading.Event]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = type("Handler", (Files,), {"folder": shards, "up": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    yield f"data.shards=http://127.0.0.1:{server.server_port}/{{00000..00004}}.tar", handler.up
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_a_stop_ends_the_wait_for_a_server(
    config: Path, served: tuple[str, threading.Event], workers: int | None
) -> None:
    """None: while the data is opened. Else between two steps, of which those made are saved; the run goes on."""
    spec, up = served
    folder = config.parent / "run"
    given = [spec, f"data.workers={workers or 0}", "train.steps=100000", "checkpoint.every=100000"]
    if workers is not None:
        up.set()
    process = start(config, 1, *given)
    if workers is None:
        time.sleep(8)
    else:
        wait_for_steps(folder, 3)
        up.clear()
        made, last = -1, 0
        while made != last:
            time.sleep(2)
            made, last = last, len(read_metrics(folder))
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 85, said
    assert time.monotonic() - began < 6 and "SIGTERM" in said and "Traceback" not in said
    if workers is None:
        assert "stopped while it waited for http" in said
        return
    assert steps_in(folder / "checkpoints") == [last] and "while clips were waited for" in said
    if not workers:
        return
    up.set()
    run(1, arguments(config, *given, "train.max_minutes=1e-9"), 85)
    assert [row["step"] for row in read_metrics(folder)] == list(range(1, last + 2))
