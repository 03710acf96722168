"""Lookup of video files below a folder by the names in a list, never matching a different video."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from tgm_scale.contracts import Problem
from tgm_scale.data.access import storage
from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS, split_extension, video_extension

UNREADABLE, MISSING = "folder_unreadable", "missing_video"
_ENDINGS = ", ".join(VIDEO_EXTENSIONS)


def walk(root: str, unread: list[Problem] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder at or below `root` with its files, sorted by name. Links are followed, and each real folder
    comes once: links to a folder above would have no end. `unread` collects the folders that cannot be read. Skips
    the ._NAME files that macOS writes beside a file on foreign disks, which only look like videos."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            place = os.stat(folder)
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except (OSError, ValueError) as error:
            if unread is not None:
                unread.append(Problem(folder, UNREADABLE, _why(error)))
            continue
        if (place.st_dev, place.st_ino) in seen:
            continue
        seen.add((place.st_dev, place.st_ino))
        yield folder, [entry.name for entry in entries if not entry.name.startswith("._") and _holds(entry.is_file)]
        waiting += [entry.path for entry in reversed(entries) if _holds(entry.is_dir)]


def _holds(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a link to itself is neither file nor folder
        return False


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@dataclass(frozen=True)
class Found:
    """Locations of the paths of a list; problems of the others, by reason: missing_video, ambiguous,
    folder_unreadable, or not_a_video, whose name has no video extension."""

    places: dict[str, str]  # path in the list -> file or URL
    problems: list[Problem]
    by_name: list[str]  # those paths whose file lies in another folder below the root


class VideoFolder:
    """Videos below a root. A path of a list means, in this order: the file itself; the file of that path with its
    accents written as one letter or as two (Unicode's NFC and NFD); the file of that path with another video
    extension, or with one where the list has none; the only video of that bare name anywhere below, unless both paths
    end in folders of different names (`A/000.mp4` is not `B/000.mp4`). No file stands for two paths: it belongs to the
    path that matches it exactly, else to the one that matches it but for the extension, else to none.

    places_alone: a path with a folder is looked up there and nowhere else."""

    def __init__(self, root: str, places_alone: bool = False) -> None:
        self.root = root or "."
        self._places_alone = places_alone
        self._listings: dict[str, dict[str, list[str]]] = {}
        self._unread: list[Problem] = []

    def find(self, paths: Sequence[str]) -> Found:
        places: dict[str, str] = {}
        why: dict[str, Problem] = {}
        taken: set[str] = set()
        for way in (self._named, self._other_form, self._other_extension, self._by_bare_name):
            found: dict[str, str] = {}
            for path in paths:
                if path in places or path in why:
                    continue
                try:
                    place = way(path)
                except _Unclear as unclear:
                    why[path] = Problem(path, unclear.reason, str(unclear))
                    continue
                if place is not None:
                    found[path] = place
            users = Counter(found.values())
            for path, place in found.items():
                if way != self._named and (place in taken or users[place] > 1):
                    why[path] = Problem(path, "ambiguous", f"{place} is what another line of the list means, too")
                else:
                    places[path] = place
            taken |= users.keys()
        problems = [why.get(path) or self._missing(path) for path in paths if path not in places]
        by_name = [path for path in paths if path in found and path in places]  # from the last way, `_by_bare_name`
        return Found({path: places[path] for path in paths if path in places}, problems, by_name)

    @property
    def empty(self) -> bool:
        """Whether there is no video below the root."""
        return not self._everywhere

    def _missing(self, path: str) -> Problem:
        if os.path.isfile(os.path.join(self.root, path)):
            return Problem(path, "not_a_video", f"is there, but its name does not end as a video's does: {_ENDINGS}")
        detail = f"not below {self.root}"
        if self._unread:
            detail += f"; {len(self._unread)} folders cannot be read ({self._unread[0].key}: {self._unread[0].detail})"
        return Problem(path, MISSING, detail)

    def _named(self, path: str) -> str | None:
        place = path if storage.is_url(path) else os.path.join(self.root, path)
        if storage.is_url(place):
            if not video_extension(place):
                raise _Unclear("not_a_video", f"a URL that does not end as a video does: {_ENDINGS}")
            return place  # not checked: that would be a request for each
        folder, base = os.path.split(place)
        stem, extension = split_extension(base)
        return place if extension and base in self._listing(folder).get(stem, []) else None

    def _other_form(self, path: str) -> str | None:
        if path.isascii():
            return None
        return self._named(unicodedata.normalize("NFC", path)) or self._named(unicodedata.normalize("NFD", path))

    def _other_extension(self, path: str) -> str | None:
        folder, base = os.path.split(os.path.join(self.root, path))
        listing = self._listing(folder)
        names = listing.get(base) or listing.get(split_extension(base)[0])
        if not names:
            return None
        return os.path.join(folder, min(names, key=lambda name: VIDEO_EXTENSIONS.index(split_extension(name)[1])))

    def _by_bare_name(self, path: str) -> str | None:
        above, base = os.path.split(path)
        if above and self._places_alone:
            return None
        found = self._everywhere.get(base) or self._everywhere.get(split_extension(base)[0]) or []
        if not found:
            return None
        if len(found) > 1:
            raise _Unclear("ambiguous", f"{len(found)} videos have this name: {', '.join(sorted(found)[:3])}")
        here, there = os.path.basename(above), os.path.basename(os.path.relpath(os.path.dirname(found[0]), self.root))
        if here and there not in ("", ".", here):
            raise _Unclear(MISSING, f"not below {self.root}; {found[0]} has its name, in another folder")
        return found[0]

    @cached_property
    def _everywhere(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for folder, names in walk(self.root, self._unread):
            for name in names:
                stem, extension = split_extension(name)
                if extension:
                    found[stem].append(os.path.join(folder, name))
        return found

    def _listing(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._listings:
            found: defaultdict[str, list[str]] = defaultdict(list)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        stem, extension = split_extension(entry.name)
                        if extension and _holds(entry.is_file):
                            found[stem].append(entry.name)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except (OSError, ValueError) as error:
                raise _Unclear(UNREADABLE, f"{folder}: {_why(error)}") from None
            self._listings[folder] = found
        return self._listings[folder]


class _Unclear(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
