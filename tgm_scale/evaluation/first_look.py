"""Warnings from a first look at some clips and captions before they are used: one sentence for each kind of
problem."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np

from tgm_scale.contracts import Problem
from tgm_scale.data.access.patience import Stopped
from tgm_scale.data.lists.text import shown
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.inventory import refs_of_some
from tgm_scale.data.shards.read_ahead import read_ahead
from tgm_scale.data.video.decode import frames_in, window
from tgm_scale.evaluation.classes import missing_note
from tgm_scale.guidance.text import TextTower
from tgm_scale.runtime.processes import OrderedPool

_CLIPS = 16  # number of clips opened
_LARGEST = 1 << 25  # largest video opened, bytes: a long film's is not short
_TOLD = 0.05  # least share of repeated frames, over all clips opened, that is reported
_SIDE = re.compile(r"(?<![a-z])(left|right|(counter|anti)?-?clockwise)(wards?|most)?(?![a-z])", re.IGNORECASE)
_NO_SIDE = re.compile(
    r"(is|are|was|were) (left|right)$|left the|right (away|now|before|after)|(that|all)'?s right", re.IGNORECASE
)
_LIST = re.compile(r"\[\s*(['\"]).*\1\s*,?\s*\]", re.DOTALL)


def frame_counts(opened: Sequence[Corpus], workers: int) -> list[int]:
    """Return the frame counts of some clips of all corpora together; unreadable clips are left to the real pass.

    workers: decoding processes of the data; if there are any, another process counts, since a file may crash the
    decoder."""
    with OrderedPool(1) if workers and opened else nullcontext() as pool:
        videos = ((data,) for corpus in opened for data in _videos(corpus, max(1, _CLIPS // len(opened))))
        found = [frames_in(*one) for one in videos] if pool is None else list(pool.map(frames_in, videos))
    return [count for count in found if isinstance(count, int)]


def _videos(corpus: Corpus, count: int) -> Iterator[bytes]:
    refs = [ref for ref in refs_of_some(corpus, count) if ref.members[ref.video][1] <= _LARGEST]
    try:
        for ref, members in read_ahead(corpus, refs):
            if not isinstance(members, Problem):
                yield members[ref.video]
    except Stopped:
        raise
    except OSError:  # reported when the data are read
        return


def short_note(opened: Sequence[Corpus], frames: int, stride: int, sampling: str, workers: int = 0) -> str:
    """Return a warning about clips shorter than a window of `frames` frames, `stride` apart; "" if few are.

    Also "" if frames are sampled from the whole clip. workers: see `frame_counts`."""
    counts = frame_counts(opened, workers) if sampling == "dense" else []
    wanted = (frames - 1) * stride + 1
    repeated = [1 - len(np.unique(window(count, frames, stride, 0.5))) / frames for count in counts]
    if not counts or np.mean(repeated) < _TOLD:
        return ""
    return (
        f"{sum(map(bool, repeated))} of {len(counts)} clips looked at are shorter than a window of {wanted} frames "
        f"({frames} frames, data.stride={stride}) and repeat their last one: {np.mean(repeated):.0%} of what is seen "
        "of them all: lower data.stride or data.frames, or set data.sampling=segments"
    )


def side_note(texts: Iterable[str], what: str = "captions looked at") -> str:
    """Return a warning about captions, or classes, that are wrong for a mirrored clip; "" if there are none."""
    every = list(texts)
    sided = [text for text in every if _SIDE.search(_NO_SIDE.sub("", text))]
    if not sided:
        return ""
    return (
        f"data.flip=true mirrors half of the clips, and {len(sided)} of {len(every)} {what} name a side, such as "
        f"{shown(sided[0])}: of a mirrored clip such words are wrong: set data.flip=false"
    )


def caption_notes(captions: Sequence[str], text: TextTower | None) -> list[str]:
    """Return warnings about captions that are not read as intended. text: the tower that reads them, if any."""
    several = [caption for caption in captions if "\n" in caption]
    lists = [caption for caption in captions if _LIST.fullmatch(caption)]
    cut = [] if text is None else _cut(captions, text)
    found = {
        f"have more tokens than the text tower takes, such as {_named(cut)}: the rest is not read": cut,
        f"have several lines, such as {_named(several)}, and are one each: several captions of a clip are a list in a "
        ".json": several,
        f"are a list in one text, such as {_named(lists)}, and count as one each: give a list in a .json, or a row "
        "each": lists,
    }
    notes = [f"{len(those)} of {len(captions)} captions looked at {what}" for what, those in found.items() if those]
    return list(filter(None, [*notes, missing_note(captions, "captions")]))


def _cut(captions: Sequence[str], text: TextTower) -> list[str]:
    """Return the captions whose end is not read: removing the last word or adding one leaves their tokens unchanged.

    Both are needed: some tokenizers drop punctuation, which may be the last word, and a caption may fit exactly."""
    every = [caption for caption in dict.fromkeys(captions) if len(caption.split()) > 1]
    if not every:
        return []
    shorter, longer = [caption.rsplit(None, 1)[0] for caption in every], [f"{caption} dog" for caption in every]
    whole, less, more = (text.caption_ids(texts) for texts in (every, shorter, longer))
    cut = {caption for caption, same in zip(every, ((whole == less) & (whole == more)).tolist()) if same}
    return [caption for caption in captions if caption in cut]


def _named(captions: Sequence[str]) -> str:
    return shown(captions[0]) if captions else ""
