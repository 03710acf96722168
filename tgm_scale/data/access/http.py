"""Reads from HTTP servers through fsspec's session: every response is checked against its request and bounded in
size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fsspec.asyn import sync

from tgm_scale.data.access.patience import RetryLater, retry_after
from tgm_scale.runtime.outside.refusals import PASSING, PermanentError
from tgm_scale.runtime.terminal import escaped, without_secrets

CONNECT_SECONDS, READ_SECONDS = 10.0, 20.0  # timeouts for a connection, and for the next bytes
_WHOLE_SECONDS, _SLOWEST = 60.0, 1e5  # a response's time limit: seconds, plus its size at this rate in bytes a second
_WORDS = 200  # bytes of a response that are quoted in an error
_PIECE = 1 << 20


@dataclass(frozen=True)
class Answer:
    """Response of a server. `total`: bytes of the whole file, where the server states it; `tag`: a string that
    changes with the file's content."""

    data: bytes
    total: int | None
    tag: str


def client_settings() -> dict[str, Any]:
    """Return the settings of fsspec's HTTP session: bytes arrive unchanged (no decompression), and every wait is
    bounded."""
    from aiohttp import ClientTimeout  # by default 5 minutes: a run would be stopped as hung well before

    timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return {"timeout": timeout, "auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}


def read_range(system: Any, url: str, start: int, size: int) -> Answer:
    """Read exactly `size` bytes from `start`. Raises OSError: RetryLater and network errors are transient,
    PermanentError is not."""
    return sync(system.loop, _get, system, url, size, start)


def read_whole(system: Any, url: str, limit: int) -> bytes:
    """Read a file of up to `limit` bytes. Raises as `read_range` does, and FileNotFoundError and PermissionError."""
    return sync(system.loop, _get, system, url, limit, None).data


def tag(system: Any, url: str) -> str:
    """Return a string that changes with the file's content, from the server's headers; "" where they give none.
    Raises as `read_whole` does."""
    return sync(system.loop, _tag, system, url)


def size_and_tag(system: Any, url: str) -> tuple[int | None, str]:
    """Return the size of a file in bytes, where its server states it, and its tag. Raises as `read_whole` does."""
    return sync(system.loop, _size_and_tag, system, url)


async def _tag(system: Any, url: str) -> str:
    return _tag_of(await _first_byte(system, url))


async def _size_and_tag(system: Any, url: str) -> tuple[int | None, str]:
    answer = await _first_byte(system, url)
    return _size_of(answer), _tag_of(answer)


def _size_of(answer: Any) -> int | None:
    if answer.status == 200:
        said, pattern = answer.headers.get("Content-Length", ""), r"(\d+)"
    else:
        said, pattern = answer.headers.get("Content-Range", ""), r"bytes 0-0/(\d+)"
    if answer.status == 416:  # as for an empty file, which has no byte 0
        if re.fullmatch(r"bytes +\*/0", said.strip(), re.IGNORECASE):
            return 0
        raise _no_ranges(answer, said)
    found = re.fullmatch(pattern, said.strip(), re.IGNORECASE)
    return int(found[1]) if found else None


async def _first_byte(system: Any, url: str) -> Any:
    """Request the first byte and return the response, by range as for samples: an address signed for GET rejects
    HEAD."""
    session = await system.set_session()
    async with session.get(system.encode_url(url), headers={"Range": "bytes=0-0"}) as answer:
        if answer.status not in (200, 206, 416):
            raise _refusal(answer, await answer.content.read(_WORDS))
        return answer


def _tag_of(answer: Any) -> str:
    return answer.headers.get("ETag", "") + answer.headers.get("Last-Modified", "")


async def _get(system: Any, url: str, size: int, start: int | None) -> Answer:
    from aiohttp import ClientTimeout

    bound = ClientTimeout(_WHOLE_SECONDS + size / _SLOWEST, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    headers = {} if start is None else {"Range": f"bytes={start}-{start + size - 1}"}
    session = await system.set_session()
    async with session.get(system.encode_url(url), headers=headers, timeout=bound) as answer:
        if answer.status not in (200, 206):
            raise _refusal(answer, await answer.content.read(_WORDS))
        total = None if start is None else _total(answer, start, size)
        data = await _body(answer, size)
    if start is not None and len(data) != size:
        raise OSError(f"{len(data)} bytes came where {size} were asked for at {start}")
    return Answer(data, total, _tag_of(answer))


def _total(answer: Any, start: int, size: int) -> int | None:
    """Return the size of the whole file, as the response states it. Raises PermanentError where it does not answer
    a range request."""
    stated = answer.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", stated.strip(), re.IGNORECASE)
    if answer.status != 206 or found is None:
        raise _no_ranges(answer, stated)
    if (int(found[1]), int(found[2])) != (start, start + size - 1):
        raise OSError(f"{stated!r} came where bytes {start}-{start + size - 1} were asked for")
    return None if found[3] == "*" else int(found[3])


def _no_ranges(answer: Any, stated: str) -> PermanentError:
    """Return the error for a response without range support: the requested address, any redirect, the response, the
    remedy."""
    asked, answered = without_secrets(str((*answer.history, answer)[0].url)), without_secrets(str(answer.url))
    led = f" (which leads to {answered})" if answer.history else ""
    page = "text/html" in answer.headers.get("Content-Type", "").lower()
    sent = ", and an HTML page, which may want a login" if page else ""
    return PermanentError(
        f"{asked}{led}: its server does not honour range requests (status {answer.status}, Content-Range "
        f"{escaped(repr(stated), keep='')}{sent}): name a server that does, or copy the files here"
    )


async def _body(answer: Any, limit: int) -> bytes:
    pieces, length = [], 0
    while piece := await answer.content.read(_PIECE):
        pieces.append(piece)
        length += len(piece)
        if length > limit:
            raise PermanentError(f"an answer of more than {limit:,} bytes")
    return b"".join(pieces)


def _refusal(answer: Any, body: bytes) -> OSError:
    text = " ".join(re.sub(r"<[^>]*>", " ", body.decode(errors="replace")).split())
    words = f"{answer.status} {answer.reason}" + (f": {text}" if text else "")
    described = f"{without_secrets(str(answer.url))}: {without_secrets(escaped(words, keep=''))}"
    if answer.status in (404, 410):
        return FileNotFoundError(described)
    if answer.status in (401, 403):
        return PermissionError(described)
    if answer.status in PASSING or answer.status >= 500:
        return RetryLater(described, retry_after(answer.headers))
    return PermanentError(described)
