"""The extensions of video files."""

from __future__ import annotations

from tgm_scale.data.access.addresses import is_url

VIDEO_EXTENSIONS = ("mp4", "mkv", "avi", "mov", "webm", "m4v", "mpg", "mpeg", "flv", "wmv", "3gp", "ogv", "gif")


def split_extension(path: str) -> tuple[str, str]:
    """Path and extension in lower case; "" where it does not end as a video does."""
    stem, dot, extension = path.rpartition(".")
    return (stem, extension.lower()) if dot and extension.lower() in VIDEO_EXTENSIONS else (path, "")


def video_extension(place: str) -> str:
    """The extension of a file or a URL, which a query may follow; "" where it does not end as a video does."""
    return split_extension(place.partition("?")[0] if is_url(place) else place)[1]
