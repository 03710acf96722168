"""Local paths, URLs, and the sample names derived from them. A presigned URL has a signature in its query.

Names are identities: no two samples that a run opens share one. A sample is named "shard/key", where the shard is
its file's base name. Where that is ambiguous (several runs of video2dataset, each with its own 00000.tar), the name
is extended by as much of the path as distinguishes the shards, "part0:00000/key". Names that are already unique
stay as they are, and a folder may be moved as a whole."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote, urlsplit, urlunsplit

from tgm_scale.runtime.terminal import escaped

PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hdfs", "memory")
_SIGNED = re.compile(r"(?i)(^|&)(x-amz-|x-goog-|sig=|signature=|se=|sv=|token=|access_token=|expires=|key-pair-id=)")


def is_url(path: str) -> bool:
    """Return whether `path` is a URL. Raises ValueError for a shell pipe or an unsupported protocol."""
    if path.startswith("pipe:"):
        raise ValueError(
            f"{path!r} asks for a shell command; shards are read from folders and URLs only: give the URL"
        )
    protocol, mark, _ = path.partition("://")
    if mark and protocol not in PROTOCOLS:
        raise ValueError(f"{path!r}: protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}; or give a local path")
    return bool(mark)


def is_http(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def split_query(path: str) -> tuple[str, str]:
    """Return the path of an HTTP address, and "?" with everything after it."""
    before, mark, query = path.partition("?") if is_http(path) else (path, "", "")
    return before, mark + query


def place(path: str) -> str:
    """Return the identity of a file: a URL without login and signature; a path unchanged."""
    if "://" not in path:
        return path
    before, query = split_query(path)
    parts = urlsplit(before)
    kept = "" if _SIGNED.search(query[1:]) else query
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) + kept


def base_name(path: str) -> str:
    """Return the last component of a path or of a URL's path."""
    return os.path.basename(split_query(path)[0])


def folder(path: str) -> str:
    """Return the folder of a path or URL, with the URL's query, which may grant access to the whole folder."""
    before, query = split_query(path)
    return os.path.dirname(before) + query


def joined(within: str, name: str) -> str:
    """Return the address of the file `name` in a folder returned by `folder`."""
    before, query = split_query(within)
    return os.path.join(before, name) + query


def distinct_names(paths: Sequence[str]) -> list[str]:
    """Return a distinct name for each of these different paths or URLs: its last component without .tar, preceded,
    where several share it, by parent components joined by colons. A key may hold slashes; a shard's name never
    does."""
    files = [place(path) for path in paths]
    parts = [path.removesuffix(".tar").replace("://", "/").strip("/").split("/") for path in files]
    parts = [[part for part in each if part not in ("", ".")] for each in parts]
    depth = [1] * len(paths)
    while True:
        names = [":".join(each[-deep:]) for each, deep in zip(parts, depth)]
        count = Counter(names)
        twice = [i for i, name in enumerate(names) if count[name] > 1]
        if not twice:
            return names
        if all(depth[i] >= len(parts[i]) for i in twice):  # for example folders with colons in their names
            return [quote(files[i], safe="") if count[names[i]] > 1 else names[i] for i in range(len(paths))]
        for i in twice:
            depth[i] += 1


def printable(name: str) -> str:
    """Return a file name as text that can be written anywhere, including a terminal: bytes that are not UTF-8,
    which Python keeps as lone surrogates, become \\udcXX; control characters and line ends become \\xXX or \\uXXXX.
    Two names can only collide if one contains such an escape literally."""
    return escaped(name, keep="")


def resolved(path: str) -> str:
    """Return a local path with its links resolved; for a URL, the identity of its file (see `place`)."""
    return place(path) if "://" in path else os.path.realpath(path)


VIDEO_EXTENSIONS = ("mp4", "mkv", "avi", "mov", "webm", "m4v", "mpg", "mpeg", "flv", "wmv", "3gp", "ogv", "gif",
                    "ts", "mts", "m2ts")  # fmt: skip


def split_extension(path: str) -> tuple[str, str]:
    """Return the path and its extension in lower case; "" where the extension is not that of a video."""
    stem, dot, extension = path.rpartition(".")
    return (stem, extension.lower()) if dot and extension.lower() in VIDEO_EXTENSIONS else (path, "")


def video_extension(place: str) -> str:
    """Return the video extension of a file or of a URL, which a query may follow; "" where it is not a video's."""
    return split_extension(place.partition("?")[0] if is_url(place) else place)[1]
