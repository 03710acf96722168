"""The guidance alarm: cheap metrics that show whether the captions influence the masks.

Shapes: B clips, S slots, R rows, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tgm_scale.masking import rules
from tgm_scale.masking.recipes import Masker

METRICS = ("mask_swapped_overlap", "mask_centre_overlap", "mask_slot_repeat")
ALARM = 0.9  # of the way from the overlap of independent masks to that of equal ones
CLIPS_BEFORE_ALARM = 64


def overlap(hidden_BSRC: Tensor, other_BSRC: Tensor) -> Tensor:
    """Return the share of hidden tokens that the other mask hides, too: float32 [B]. By chance: the other's mask
    ratio."""
    both_B = (hidden_BSRC & other_BSRC).flatten(1).sum(dim=1)
    return both_B / hidden_BSRC.flatten(1).sum(dim=1).clamp(min=1)


def slot_repeat(hidden_BSRC: Tensor) -> Tensor:
    """Return the share of hidden tokens that were hidden in the previous slot, too: float32 [B]; 1 for a clip of
    one slot."""
    if hidden_BSRC.shape[1] == 1:
        return torch.ones(len(hidden_BSRC), device=hidden_BSRC.device)
    return overlap(hidden_BSRC[:, 1:], hidden_BSRC[:, :-1])


def centre_box(masker: Masker) -> Tensor:
    """Return a fixed mask: in each group, the masker's count of tokens nearest the frame's centre: bool [1, S, R,
    C]."""
    grid, scope = masker.grid, masker.recipe.scope
    row_R, column_C = ((torch.arange(n) + 0.5) / n - 0.5 for n in (grid.rows, grid.columns))
    distance_RC = torch.maximum(row_R[:, None].abs(), column_C.abs())
    nearness = -distance_RC.expand(1, grid.slots, -1, -1)
    hidden, _ = rules.split(
        rules.pool(nearness, scope), scope, masker.hidden_per_group, grid, torch.zeros(1, dtype=torch.int64)
    )
    box = torch.zeros(1, grid.tokens, dtype=torch.bool).scatter_(1, hidden, True)
    return box.view(1, grid.slots, grid.rows, grid.columns)


def of_another_clip(caption_ids_B: Tensor, clip_ids_B: Tensor, weight_B: Tensor, shift: int) -> Tensor:
    """Return whether rolling the captions by `shift` gives a clip the caption of another clip, which differs from
    its own: bool [B]. Neighbours in a batch may be repeats of one sample, with the same caption or another of its
    captions."""
    whole_B = weight_B > 0
    return (
        whole_B
        & whole_B.roll(shift)
        & (clip_ids_B != clip_ids_B.roll(shift))
        & (caption_ids_B != caption_ids_B.roll(shift))
    )


class _Monitor:
    """Accumulator on the device, read by the host only when its metrics are requested."""

    def __init__(self, *shape: int) -> None:
        self._since_read: Tensor | None = None
        self._total = torch.zeros(shape, dtype=torch.float64)

    def _add(self, counted: Tensor) -> None:
        self._since_read = counted.double() if self._since_read is None else self._since_read + counted.double()

    def _latest(self) -> Tensor | None:
        if self._since_read is None:
            return None
        latest, self._since_read = self._since_read.cpu(), None
        self._total += latest
        return latest


class MotionMonitor(_Monitor):
    """Monitor of clips without any motion: a stream of keyframes, a codec that exports no vectors, or a still picture.

    mask_without_motion   their share; their boxes are at random places"""

    def __init__(self) -> None:
        super().__init__(2)  # without motion, clips

    @torch.no_grad()
    def observe(self, motion_BSRC: Tensor, weight_B: Tensor) -> None:
        """Count a micro batch, without waiting for the device. weight_B: 0 for broken samples."""
        whole_B = weight_B > 0
        still_B = (motion_BSRC == 0).flatten(1).all(dim=1)
        self._add(torch.stack([(still_B & whole_B).sum(), whole_B.sum()]))

    def metrics(self) -> dict[str, float]:
        """Return the share since the last call; empty where no clip was counted."""
        if (latest := self._latest()) is None:
            return {}
        still, clips = latest.tolist()
        return {"mask_without_motion": still / clips} if clips else {}

    def warning(self) -> str | None:
        """Return a warning if hardly any clip has motion; else None."""
        still, clips = self._total.tolist()
        if clips < CLIPS_BEFORE_ALARM or still < ALARM * clips:
            return None
        return (
            f"{still:.0f} of {clips:.0f} clips bring no motion, so their masks are boxes at random places: the videos "
            "may be HEVC, AV1 or VP9, which export no motion vectors, or hold keyframes only. Rebuild the shards "
            "with `tgm-scale shards make`, which encodes H.264, or choose masking.recipe=flow_guided"
        )


class GuidanceMonitor(_Monitor):
    """Monitor of the guidance metrics over a process's own clips, and of the warning.

    mask_swapped_overlap   overlap of a clip's mask with the one from another clip's caption
    mask_centre_overlap    overlap with a fixed box in the centre of the frame, of the same count
    mask_slot_repeat       share of the mask that was hidden in the previous slot"""

    def __init__(self, masker: Masker):
        super().__init__(2, len(METRICS))  # sums and counts
        self.masker = masker
        self.box = centre_box(masker)

    @torch.no_grad()
    def observe(
        self,
        seeds_B: Tensor,
        weight_B: Tensor,
        another_B: Tensor,
        relevance_BSRC: Tensor,
        swapped_BSRC: Tensor | None = None,
        progress: float = 0.0,
        /,
        **aux: Tensor | None,
    ) -> None:
        """Count a micro batch, without waiting for the device.

        weight_B: 0 for broken samples. swapped_BSRC: relevance of each clip to the caption of another, or None
        where it is unavailable; it counts where `another_B` (`of_another_clip`). aux: all other maps that the
        masker needs. progress: as for the masker."""
        hidden = self.masker.hidden(seeds_B, progress, relevance=relevance_BSRC, **aux)
        whole_B = weight_B > 0
        self.box = self.box.to(hidden.device, non_blocking=True)  # a copy only once
        figures = [(torch.zeros_like(weight_B), torch.zeros_like(whole_B))]
        if swapped_BSRC is not None:
            swapped = self.masker.hidden(seeds_B, progress, relevance=swapped_BSRC, **aux)
            figures = [(overlap(hidden, swapped), another_B)]
        figures += [(overlap(hidden, self.box), whole_B), (slot_repeat(hidden), whole_B)]
        self._add(torch.stack([torch.stack([(value * rows).sum(), rows.sum()]) for value, rows in figures], dim=1))

    def metrics(self) -> dict[str, float]:
        """Return the means over the clips since the last call; a metric without any clip is left out."""
        return {} if (latest := self._latest()) is None else _means(latest)

    def warning(self) -> str | None:
        """Return a warning if the metrics read so far show that the guidance does not work; else None."""
        means = _means(self._total * (self._total[1] >= CLIPS_BEFORE_ALARM))
        independent = self.masker.hidden_count / self.masker.grid.tokens
        bar = independent + ALARM * (1 - independent)
        if means.get("mask_swapped_overlap", 0.0) > bar:
            return (
                f"the captions hardly change the masks: another clip's caption hides {means[METRICS[0]]:.0%} of "
                f"the same tokens ({independent:.0%} would be chance). The run is not text-guided. Look at the "
                "captions, at guidance.towers, and try another guidance.scorer or masking.recipe"
            )
        if means.get("mask_centre_overlap", 0.0) > bar:
            return (
                f"the masks are little else than a box in the centre of the frame: {means[METRICS[1]]:.0%} of "
                f"the hidden tokens lie in it ({independent:.0%} would be chance). Look at guidance.towers and try "
                "another guidance.scorer"
            )
        return None


def _means(sums_and_counts: Tensor) -> dict[str, float]:
    sums, counts = sums_and_counts.tolist()
    return {name: total / count for name, total, count in zip(METRICS, sums, counts) if count}
