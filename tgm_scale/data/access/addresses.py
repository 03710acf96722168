"""Local paths and URLs, and what names a file. A presigned URL has a signature in its query.

Names are identities: no two samples of all that a run opened share one. A sample is named "shard/key", the shard by
its file's name alone. Where that is ambiguous (several runs of video2dataset, each with its own 00000.tar) the name
is extended by as much of the path as tells the shards apart, "part0:00000/key": so names that were unique before
stay as they are, and a folder may move as a whole."""

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
    """Whether `path` is a URL. Raises ValueError for a shell pipe or a protocol that is not read here."""
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
    """The path, and "?" with all behind it of an HTTP address."""
    before, mark, query = path.partition("?") if is_http(path) else (path, "", "")
    return before, mark + query


def place(path: str) -> str:
    """What identifies a file: a URL without login and signature; a path unchanged."""
    if "://" not in path:
        return path
    before, query = split_query(path)
    parts = urlsplit(before)
    kept = "" if _SIGNED.search(query[1:]) else query
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) + kept


def base_name(path: str) -> str:
    """The last part of a path, or of a URL's."""
    return os.path.basename(split_query(path)[0])


def folder(path: str) -> str:
    """The folder of a path or URL, with the URL's query, which may grant access to the whole folder."""
    before, query = split_query(path)
    return os.path.dirname(before) + query


def joined(within: str, name: str) -> str:
    """A file in a folder that `folder` gave."""
    before, query = split_query(within)
    return os.path.join(before, name) + query


def distinct_names(paths: Sequence[str]) -> list[str]:
    """A name for each of these different paths or URLs: its last part without .tar, with parts before it, joined by
    colons, where others have the same. A key may hold slashes; a name of a shard never does."""
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
        if all(depth[i] >= len(parts[i]) for i in twice):  # such as folders with colons in their names
            return [quote(files[i], safe="") if count[names[i]] > 1 else names[i] for i in range(len(paths))]
        for i in twice:
            depth[i] += 1


def printable(name: str) -> str:
    """A name of a file as text that can be written anywhere, also on a terminal: bytes that are no UTF-8, which Python
    keeps as lone surrogates, become \\udcXX; control characters and line ends \\xXX or \\uXXXX. Another name cannot
    come to be the same unless it holds that very text."""
    return escaped(name, keep="")


def resolved(path: str) -> str:
    """What a local path leads to; what names the file of a URL."""
    return place(path) if "://" in path else os.path.realpath(path)


VIDEO_EXTENSIONS = ("mp4", "mkv", "avi", "mov", "webm", "m4v", "mpg", "mpeg", "flv", "wmv", "3gp", "ogv", "gif",
                    "ts", "mts", "m2ts")  # fmt: skip


def split_extension(path: str) -> tuple[str, str]:
    """Path and extension in lower case; "" where it does not end as a video does."""
    stem, dot, extension = path.rpartition(".")
    return (stem, extension.lower()) if dot and extension.lower() in VIDEO_EXTENSIONS else (path, "")


def video_extension(place: str) -> str:
    """The extension of a file or a URL, which a query may follow; "" where it does not end as a video does."""
    return split_extension(place.partition("?")[0] if is_url(place) else place)[1]
