"""Sources of annotated clips: their video, or a pre-cut file of the clip alone.

What a name means depends on the folder and on the annotations as a whole, never on which shards a task makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction

from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS
from tgm_scale.data.building.annotations import ClipRow
from tgm_scale.data.shards.video_files import VideoFolder
from tgm_scale.data.video.source import CutError

Span = tuple[str, Fraction, Fraction | None]  # file, start and end in it in seconds; None: the end of the file


class ClipSources:
    """Videos below `root`, found in the same way as those of a list (see `VideoFolder`); a name with a folder means
    that path alone. Listings are read once and held: some 0.3 GB per million videos."""

    def __init__(self, root: str | os.PathLike, annotated: Callable[[str], bool]) -> None:
        """Set the folder. annotated: whether the annotations name a video by this path."""
        self._root = os.path.abspath(root)
        self._folder = VideoFolder(self._root, places_alone=True)
        self._annotated = annotated

    def spans(self, clips: Sequence[ClipRow]) -> list[Span | CutError]:
        """Return the span of each clip in its file, or why it has none. Raises ValueError where the folder holds no
        video."""
        found = [self._span(clip) for clip in clips]
        if found and all(isinstance(span, CutError) for span in found) and self._folder.empty:
            raise ValueError(
                f"--videos {self._root}: holds no video ({', '.join(VIDEO_EXTENSIONS)}); name another folder"
            )
        return found

    def _span(self, clip: ClipRow) -> Span | CutError:
        """Return the clip's span in its video, or the whole file if it holds this clip alone or the row has no
        times."""
        if clip.other_label is not None:
            return CutError("several_labels", f"{clip.label!r} and {clip.other_label!r}: a clip has one label")
        if clip.other_file:
            return CutError("ambiguous", f"{clip.file} and {clip.other_file} would be one clip: rename one of them")
        place = self._find(clip.file or clip.video, clip.video)
        if isinstance(place, str):
            return (
                place,
                *((Fraction(0), None) if clip.whole else (Fraction(clip.start, 1000), Fraction(clip.end, 1000))),
            )
        cuts = [] if clip.whole else [self._find(name, clip.video) for name in clip.cut_names]
        if alone := next((file for file in cuts if isinstance(file, str)), None):
            return alone, Fraction(0), None
        return next((why for why in cuts if isinstance(why, CutError) and why.reason == "ambiguous"), place)

    def _find(self, name: str, video: str) -> str | CutError:
        """Return the file of this video's name, or why there is none: missing_video, ambiguous."""
        if "://" in name or name.startswith("pipe:"):
            return CutError("missing_video", "a URL: download it, and name the file")
        below = os.path.relpath(name, self._root) if name.startswith(self._root + os.sep) else name
        found = self._folder.find([below])
        if found.problems:
            return CutError(found.problems[0].reason, found.problems[0].detail)
        place = found.places[below]
        if other := self._owner(video, place):
            return CutError("ambiguous", f"{place} is what {other} means, too")
        return place

    def _owner(self, video: str, place: str) -> str | None:
        """Return another annotated path that means the folder in which a bare name's file was found, if any."""
        path = os.path.join(os.path.relpath(os.path.dirname(place), self._root), video)
        if "/" in video or path.startswith("./"):
            return None
        return next((way for way in (path, os.path.join(self._root, path)) if self._annotated(way)), None)
