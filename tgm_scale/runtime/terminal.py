"""Output that may lose its reader: a closed terminal, a pipe whose other end has gone, a full disk."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO, cast

_GONE = (errno.EIO, errno.EPIPE)  # of a terminal that was closed, of a pipe that nobody reads


def outlive_the_terminal() -> None:
    """From here on a failed write to stdout or stderr costs its text alone: results are in the run folder."""
    sys.stdout, sys.stderr = cast(TextIO, Outliving(sys.stdout)), cast(TextIO, Outliving(sys.stderr))


class Outliving:
    """A stream that drops what cannot be written. Everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if error.errno in _GONE:  # for good: libraries that write to the descriptor itself are spared the error, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
