"""Local paths and URLs, and the part of a URL that names the file: a presigned one has a signature in its query."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit, urlunsplit

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
