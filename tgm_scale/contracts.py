"""Data types that the subpackages share: a clip's grid of tokens, a batch of clips, a mask.

Shapes: B clips, T frames, H W pixels, V visible tokens, M target tokens; a grid has S slots (of `tubelet` frames),
R rows and C columns. Tokens are numbered slot by slot, row by row: index = (slot * rows + row) * columns + column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # commands without tensors do without torch, whose import takes 2 seconds of a core
    import torch
    from torch import Tensor


Told = TypeVar("Told")

# limits of a clip and of the views per video: above all in use, and below what ends a process for its memory
MAX_FRAMES, MAX_SIDE, MAX_STRIDE, MAX_VIEWS = 4096, 4096, 10**6, 1000
STANDARD_MEAN, STANDARD_DEVIATION = 116, 57  # of 255, about ImageNet's: of a clip's pixels with data.standardise
WEEK = 7 * 24 * 3600.0  # seconds: the longest that anything waits


@dataclass(frozen=True)
class Grid:
    """The token grid of a clip."""

    slots: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.slots * self.rows * self.columns

    @property
    def per_slot(self) -> int:
        return self.rows * self.columns

    @classmethod
    def of(cls, frames: int, size: int, tubelet: int, patch: int) -> Grid:
        """Return the grid of a clip of `frames` frames of `size` x `size` pixels.

        Raises ValueError where the frames or the size do not divide."""
        if frames % tubelet:
            raise ValueError(f"data.frames={frames} is not a multiple of the model's tubelet of {tubelet} frames")
        if size % patch:
            raise ValueError(f"data.size={size} is not a multiple of the model's patch of {patch} pixels")
        return cls(frames // tubelet, size // patch, size // patch)


def share_of(tokens: int, share: float) -> int:
    """Return that share of the tokens, rounded down, with a margin: 0.29 * 100 is 28.999999999999996 in binary."""
    return int(share * tokens + 1e-9 * tokens)


@dataclass(frozen=True)
class BatchLayout:
    """Distribution of a global batch over ranks and gradient accumulation steps. Raises ValueError where the clips do
    not divide."""

    global_batch: int
    micro_batch: int  # clips per rank and accumulation step
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size
        per_pass = self.micro_batch * self.world_size
        if self.global_batch % per_pass:
            raise ValueError(
                f"train.global_batch_size={self.global_batch} is not a multiple of train.micro_batch_size="
                f"{self.micro_batch} x {self.world_size} processes = {per_pass}: change the micro batch, or the "
                "number of processes"
            )

    @property
    def accumulation(self) -> int:
        return self.global_batch // (self.micro_batch * self.world_size)


@dataclass(frozen=True)
class Problem:
    """Reason why a sample keeps its place with weight 0: `reason` is a fixed short word to count, `detail` is free
    text."""

    key: str
    reason: str
    detail: str = ""


NOTICES = ("duplicate_member", "duplicate_row", "bad_caption", "bad_label")  # of samples that are used nevertheless


def lost_and_noted(by_reason: Mapping[str, Told]) -> tuple[dict[str, Told], dict[str, Told]]:
    """Split a mapping by reason into reasons for lost samples and those of samples used nevertheless (`NOTICES`)."""
    noted = {reason: of for reason, of in by_reason.items() if reason in NOTICES}
    return {reason: of for reason, of in by_reason.items() if reason not in noted}, noted


@dataclass
class Batch:
    """Clips in the order of the run. A broken sample keeps its place: weight 0, black video, caption ''."""

    video: Tensor  # uint8 [B, 3, T, H, W], RGB
    captions: list[str]  # B
    keys: list[str]  # B, "shard-name/sample-key"
    seeds: Tensor  # int64 [B]: keyed by run seed, epoch, corpus, sample key and repeat; seeds the mask
    weight: Tensor  # float32 [B]: 1, or 0 for a broken sample
    clip_ids: Tensor  # int64 [B]: equal for repeats of one sample
    crops: Tensor  # float32 [B, 5]: top, left, height, width in source pixels, and 1 if flipped
    starts: Tensor  # float32 [B]: time of the first frame in the source, seconds
    relevance: Tensor | None = None  # float32 [B, S, R, C]: cached scores, through the same crop
    motion: Tensor | None = None  # float32 [B, S, R, C]: camera-compensated codec motion, through the same crop
    flow: Tensor | None = None  # float32 [B, T, 2, h, w]: optical flow towards the base frame (masking.saliency)
    caption_sets: list[list[str]] | None = None  # B: all captions of each sample
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the same batch with `change` applied to each tensor."""
        from torch import Tensor

        changed: dict[str, Any] = {
            f.name: change(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch with its tensors on `device`. The host waits for the copies; `data.to_device` does not
        wait."""
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class Mask:
    """Tokens that the encoder sees, and tokens that the decoder reconstructs.

    Indices ascend in each row and are disjoint; a token in neither is dropped (`visible_ratio`, `decode_ratio`). The
    counts are fixed by the configuration, so every batch is dense and every shape static."""

    visible: Tensor  # int64 [B, V]
    target: Tensor  # int64 [B, M]
