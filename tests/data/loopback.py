"""A server of files on loopback for the tests of remote shards."""

from __future__ import annotations

from http.server import ThreadingHTTPServer


class LoopbackServer(ThreadingHTTPServer):
    """Says nothing of readers that end while it answers: its threads outlive a test, and what they print would be
    another test's."""

    def handle_error(self, *_: object) -> None:
        pass
