"""Storages that will never answer are left at once, with the remedy; those that may answer are waited for as long as
`patience` says, also while they are listed; and whoever waits can be stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler

import pytest
from loopback import LoopbackServer

from tgm_scale import cli
from tgm_scale.data.access import patience, storage
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.runtime.outside import refusals

AT_ONCE = 5.0  # seconds; what is waited for takes PATIENCE_SECONDS, 300


class Speaking(BaseHTTPRequestHandler):
    """Answers everything with one status, as S3 words it."""

    status, code = 403, "AccessDenied"

    def do_GET(self) -> None:
        body = f"<Error><Code>{self.code}</Code><Message>as it said</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def nobody(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without credentials, whose machine has no role."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (("HOME", home), ("XDG_CACHE_HOME", home), ("AWS_EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(patience, "_answered", set())


@pytest.fixture
def server() -> Iterator[tuple[str, type[Speaking]]]:
    handler = type("Handler", (Speaking,), {})
    found = LoopbackServer(("127.0.0.1", 0), handler)
    threading.Thread(target=partial(found.serve_forever, 0.02), daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}", handler
    found.shutdown()
    found.server_close()


@pytest.fixture
def s3(server: tuple[str, type[Speaking]], monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Speaking]]:
    """The server as S3's."""
    s3fs = pytest.importorskip("s3fs", reason="the s3 extra is not installed")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server[0])
    s3fs.S3FileSystem.clear_instance_cache()
    yield server[1]
    s3fs.S3FileSystem.clear_instance_cache()


def log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")


@pytest.mark.parametrize("spec", ["s3://bucket/part", "s3://bucket/*.tar", "s3://bucket/part/{00..01}.tar"])
def test_credentials_that_are_missing_are_a_mistake(s3: type[Speaking], spec: str) -> None:
    began = time.monotonic()
    with pytest.raises(
        refusals.Refused, match=r"s3://bucket.*set AWS_ACCESS_KEY_ID and .*~/.aws/credentials"
    ) as caught:
        open_corpus(spec)
    assert time.monotonic() - began < AT_ONCE and caught.value.exit_code == 2


def test_a_command_ends_with_code_2(s3: type[Speaking], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", "check", "--shards", "s3://bucket/part"]) == 2
    assert "AWS_PROFILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("profile", "status", "code", "words"),
    [
        ("nobody", 200, "", "profile .nobody. could not be found.*AWS_PROFILE"),
        ("", 403, "AccessDenied", "s3://bucket/part: as it said: set AWS_ACCESS_KEY_ID"),
        ("", 403, "SignatureDoesNotMatch", "s3://bucket/part: as it said: set AWS_ACCESS_KEY_ID"),
        ("", 400, "ExpiredToken", "s3://bucket/part: as it said: set AWS_ACCESS_KEY_ID"),
        ("", 400, "InvalidArgument", "s3://bucket/part.*as it said"),
        ("", 404, "NoSuchBucket", "s3://bucket/part: there is no such bucket"),
        ("", 404, "NoSuchKey", "no shards .*s3://bucket/part"),
    ],
)
def test_what_s3_refuses_is_not_waited_for(
    s3: type[Speaking], monkeypatch: pytest.MonkeyPatch, profile: str, status: int, code: str, words: str
) -> None:
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    log_in(monkeypatch)
    s3.status, s3.code = status, code
    began = time.monotonic()
    with pytest.raises((OSError, ValueError), match=words):
        open_corpus("s3://bucket/part")
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_host_that_nobody_knows_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    try:
        socket.getaddrinfo("no-such-host.invalid", 80)
    except socket.gaierror as error:
        if error.errno not in (socket.EAI_NONAME, socket.EAI_NODATA):
            pytest.skip("no resolver that knows what does not exist")
    url = "http://no-such-host.invalid/shards/"
    if scheme == "s3":
        s3fs = pytest.importorskip("s3fs", reason="the s3 extra is not installed")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid")
        log_in(monkeypatch)
        s3fs.S3FileSystem.clear_instance_cache()
        url = "s3://bucket/part"
    began = time.monotonic()
    with pytest.raises(refusals.Refused, match=r"no such host"):
        open_corpus(url)
    assert time.monotonic() - began < AT_ONCE


def test_a_storage_that_answered_before_is_waited_for() -> None:
    """The names of hosts and the credentials of roles come from servers, too."""
    error = OSError("no way")
    error.__cause__ = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert isinstance(refusals.refusal(error, "http://h/a.tar", opened=False), refusals.Refused)
    assert refusals.refusal(error, "http://h/a.tar", opened=True) is None
    assert refusals.refusal(socket.gaierror(socket.EAI_AGAIN, "later"), "http://h/a.tar", opened=False) is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_folder_that_wants_a_login_is_not_waited_for(server: tuple[str, type[Speaking]], status: int) -> None:
    address, handler = server
    handler.status = status
    began = time.monotonic()
    with pytest.raises(refusals.Refused, match=rf"{status}.*wants a login"):
        open_corpus(f"{address}/shards/")
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.parametrize("trouble", ["503", "refused", "s3 503"])
def test_a_listing_is_waited_for_as_long_as_patience_says(
    server: tuple[str, type[Speaking]], monkeypatch: pytest.MonkeyPatch, trouble: str, request: pytest.FixtureRequest
) -> None:
    address, handler = server
    handler.status, handler.code = 503, "SlowDown"
    spec = f"{address}/shards/"
    if trouble == "refused":
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            spec = f"http://127.0.0.1:{unused.getsockname()[1]}/shards/"
    if trouble == "s3 503":
        request.getfixturevalue("s3")
        log_in(monkeypatch)
        spec = "s3://bucket/part"
    began = time.monotonic()
    with pytest.raises(OSError, match=r"\d attempts? in \d+ s; data\.patience"):
        open_corpus(spec, patience=4)
    assert time.monotonic() - began > 1


INTERRUPTED = """
import sys
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.runtime.outside import refusals
print("asks", flush=True)
open_corpus(sys.argv[1])
"""


def test_ctrl_c_ends_the_opening_at_once(server: tuple[str, type[Speaking]]) -> None:
    """Also where threads wait, each for its shard."""
    address, handler = server
    handler.status = 503
    given = [sys.executable, "-c", INTERRUPTED, f"{address}/{{00..19}}.tar"]
    process = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None and process.stdout.readline() == "asks\n"
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - began < AT_ONCE


def test_a_stop_ends_a_wait() -> None:
    asked = threading.Event()
    threading.Timer(0.3, asked.set).start()
    began = time.monotonic()
    with (
        patience.waits_end_when(asked.is_set),
        pytest.raises(patience.StoppedWaiting, match=r"waited for http.*/x\.tar"),
    ):
        storage.size("http://127.0.0.1:9/x.tar")
    assert time.monotonic() - began < 2.5
