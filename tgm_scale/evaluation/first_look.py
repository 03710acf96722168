"""What a look at some clips and captions shows of them before they are used: sentences, one of each kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from tgm_scale.data.lists.text import shown
from tgm_scale.data.shards.index import Corpus, DamagedMember
from tgm_scale.data.shards.inventory import refs_of_some
from tgm_scale.data.video.decode import DecodeError, Video, window
from tgm_scale.evaluation.classes import missing_note
from tgm_scale.guidance.text import TextTower

_CLIPS = 16  # of a corpus that are opened
_LARGEST = 1 << 25  # bytes of a video that is opened: one of a long film is not short
_TOLD = 0.05  # of the frames of the clips looked at: fewer that are repeated are not told
_SIDE = re.compile(r"(?<![a-z])(left|right|(counter|anti)?-?clockwise)(wards?|most)?(?![a-z])", re.IGNORECASE)
_LIST = re.compile(r"\[\s*(['\"]).*\1\s*,?\s*\]", re.DOTALL)


def frame_counts(opened: Iterable[Corpus]) -> list[int]:
    """Frames of some clips of each corpus; what cannot be read is named when the run comes to it."""
    found = []
    for corpus in opened:
        for ref in refs_of_some(corpus, _CLIPS):
            if ref.members[ref.video][1] > _LARGEST:
                continue
            with suppress(DamagedMember, DecodeError), Video(corpus.read(ref, [ref.video])[ref.video]) as video:
                found.append(video.count)
    return found


def short_note(opened: Iterable[Corpus], frames: int, stride: int, sampling: str) -> str:
    """On clips that are shorter than a window of so many frames, this far apart; "" where they are few, or frames are
    of the whole clip."""
    counts = frame_counts(opened) if sampling == "dense" else []
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
    """On captions, or classes, that are wrong of a clip that is mirrored; "" if there are none."""
    every = list(texts)
    sided = [text for text in every if _SIDE.search(text)]
    if not sided:
        return ""
    return (
        f"data.flip=true mirrors half of the clips, and {len(sided)} of {len(every)} {what} name a side, such as "
        f"{shown(sided[0])}: of a mirrored clip they are wrong: set data.flip=false"
    )


def caption_notes(captions: Sequence[str], text: TextTower | None) -> list[str]:
    """On captions that are read otherwise than they were meant. text: the tower that reads them, if any does."""
    several = [caption for caption in captions if "\n" in caption]
    lists = [caption for caption in captions if _LIST.fullmatch(caption)]
    shorter = {caption: caption.rsplit(None, 1)[0] for caption in captions if len(caption.split()) > 1}
    cut = []
    if text is not None and shorter:
        whole, less = text.caption_ids(list(shorter)), text.caption_ids(list(shorter.values()))
        cut = [caption for caption, same in zip(shorter, (whole == less).tolist()) if same]
    found = {
        f"have more tokens than the text tower takes, such as {_named(cut)}: the rest is not read": cut,
        f"have several lines, such as {_named(several)}, and are one each: several captions of a clip are a list in a "
        ".json": several,
        f"are a list in one text, such as {_named(lists)}, and count as one each: give a list in a .json, or a row "
        "each": lists,
    }
    notes = [f"{len(those)} of {len(captions)} captions looked at {what}" for what, those in found.items() if those]
    return list(filter(None, [*notes, missing_note(captions, "captions")]))


def _named(captions: Sequence[str]) -> str:
    return shown(captions[0]) if captions else ""
