"""Maps of a clip by the frozen image tower: relevance to a caption, class attention, parts of the picture.

Shapes: B clips, K captions a clip, T frames of H x W pixels, S slots x R rows x C columns of tokens, F frames seen
by the tower, h x w its patches, X any channels, N tokens of a clip, E width of the features, A heads, P parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.guidance.image import SCORERS, ImageTower

# Maximum number of tokens of a pass off the CPU, by arithmetic. Enough that a layer's work outlasts its kernel
# launches: 16 clips of CLIP's ViT-B/32 (16 frames of 50 tokens each) are 181 GFLOP a layer. Little memory: a block
# holds some 10 numbers a feature and token at once (stream, norm, q, k, v, hidden layer twice), in bf16 0.42 GB at a
# width of 1024; the pixels, float32 and four copies of them, 0.99 GB at 32-pixel patches and less at smaller ones.
TOKENS_PER_PASS = 20_480
PARTS = 7  # SemMAE's number
_ROUNDS = 8


def clips_per_pass(device: torch.device, tokens: int) -> int:
    """Return how many clips of `tokens` tokens go through a tower at once: one on a CPU, where a row of a product may
    depend on its place; elsewhere the largest power of two whose tokens are at most TOKENS_PER_PASS, at least one.

    The number depends on tower and frames alone, not on the micro batch or the card: a clip's result is the same in
    any layout of a run. An incomplete last pass costs as much as a full one."""
    if device.type == "cpu":
        return 1
    return 1 << (max(1, TOKENS_PER_PASS // tokens).bit_length() - 1)


def in_passes(compute: Callable[..., Tensor], count: int, *inputs: Tensor) -> Tensor:
    """Return `compute(*inputs)`, computed in passes of exactly `count` clips, the last one padded with zeros: a
    clip's result does not depend on its batch."""
    parts = []
    for chunk in zip(*(x.split(count) for x in inputs)):
        lacking = count - len(chunk[0])
        filled = [F.pad(x, (0, 0) * (x.ndim - 1) + (0, lacking)) for x in chunk]
        parts.append(compute(*filled)[: len(chunk[0])])
    return torch.cat(parts)


def slot_frames(video_BCTHW: Tensor, grid: Grid, one_frame: bool) -> Tensor:
    """Return the frames that a tower sees: all, or the middle one of each slot."""
    tubelet = video_BCTHW.shape[2] // grid.slots
    return video_BCTHW[:, :, tubelet // 2 :: tubelet] if one_frame else video_BCTHW


def on_tokens(maps_BXFhw: Tensor, grid: Grid) -> Tensor:
    """Return a tower's maps on the clip's tokens, [B, X, S, R, C]: averaged over each slot's frames and resampled
    from the tower's grid bilinearly, or by averaging the patches of each token where the grids divide."""
    maps_NShw = maps_BXFhw.unflatten(2, (grid.slots, -1)).mean(dim=3).flatten(0, 1)
    height, width = maps_NShw.shape[2:]
    if height % grid.rows == 0 and width % grid.columns == 0:
        tokens = F.avg_pool2d(maps_NShw, (height // grid.rows, width // grid.columns))
    else:
        size = (grid.rows, grid.columns)
        tokens = F.interpolate(maps_NShw, size, mode="bilinear", antialias=True, align_corners=False)
    return tokens.unflatten(0, maps_BXFhw.shape[:2])


class _OfImage:
    """Base of maps of clips, which go through the tower in passes of a fixed size, each clip at a fixed place with
    all its frames. frames_per_tubelet: 'all', or 'one': the middle frame. resolution: the tower's input side in
    pixels."""

    def __init__(self, image: ImageTower, frames_per_tubelet: str = "all", resolution: int | None = None):
        self.image, self.resolution = image, resolution
        self.one_frame = frames_per_tubelet == "one"

    def _in_passes(self, compute: Callable[..., Tensor], video_BCTHW: Tensor, grid: Grid, *more: Tensor) -> Tensor:
        frames_BCFHW = slot_frames(video_BCTHW, grid, self.one_frame)
        count = clips_per_pass(self.image.device, frames_BCFHW.shape[2] * self.image.tokens(self.resolution))
        return in_passes(compute, count, frames_BCFHW, *more)


class Relevance(_OfImage):
    """Cosine similarity of patch features and caption embedding, on the token grid."""

    def __init__(
        self, image: ImageTower, scorer: str = "value", frames_per_tubelet: str = "all", resolution: int | None = None
    ):
        """Check and set the options. scorer: 'raw', 'value' or 'vv' (see guidance.image). Raises ValueError naming
        the guidance.* key."""
        if scorer not in SCORERS:
            raise ValueError(f"guidance.scorer={scorer}: wanted one of {', '.join(SCORERS)}")
        if frames_per_tubelet not in ("all", "one"):
            raise ValueError(f"guidance.frames_per_tubelet={frames_per_tubelet}: wanted 'all' or 'one'")
        if resolution is not None and resolution % image.patch:
            below = resolution // image.patch * image.patch
            near = " or ".join(str(side) for side in (below, below + image.patch) if side)
            raise ValueError(
                f"guidance.resolution={resolution} is not a multiple of the tower's patch of {image.patch} pixels: "
                f"choose {near}"
            )
        super().__init__(image, frames_per_tubelet, resolution)
        self.scorer = scorer

    def __call__(self, video_BCTHW: Tensor, captions_BE: Tensor, grid: Grid) -> Tensor:
        """Return the relevance of each clip's tokens to its caption: float32 [B, S, R, C], cosines.

        video_BCTHW: uint8 RGB. captions_BE: float, unit length, from the text tower of the same model."""
        return self.of_captions(video_BCTHW, captions_BE[:, None], grid)[:, 0]

    @torch.no_grad()
    def of_captions(self, video_BCTHW: Tensor, captions_BKE: Tensor, grid: Grid) -> Tensor:
        """Return the relevance to K captions a clip at the cost of one pass of the tower: float32 [B, K, S, R, C]."""

        def compute(video: Tensor, captions: Tensor) -> Tensor:
            return on_tokens(self.cosines(video, captions), grid)

        return self._in_passes(compute, video_BCTHW, grid, captions_BKE)

    @torch.no_grad()
    def cosines(self, video_BCTHW: Tensor, captions_BKE: Tensor) -> Tensor:
        """Return the cosines before resampling to the token grid, in one pass: float32 [B, K, F, h, w] of all
        frames."""
        return _cosines(self._features(video_BCTHW), captions_BKE)

    @torch.no_grad()
    def with_features(self, video_BCTHW: Tensor, captions_BKE: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return `of_captions`, and the `TokenFeatures` of the same clips, from one pass of the tower."""

        def compute(video: Tensor, captions: Tensor) -> Tensor:
            features_BFhwE = self._features(video)
            relevance_BNK = on_tokens(_cosines(features_BFhwE, captions), grid).flatten(2).transpose(1, 2)
            return torch.cat([relevance_BNK, on_grid(features_BFhwE, grid)], dim=2)

        both = self._in_passes(compute, video_BCTHW, grid, captions_BKE)
        relevance_BNK, features_BNE = both.split([captions_BKE.shape[1], self.image.width], dim=2)
        relevance_BKSRC = relevance_BNK.transpose(1, 2).unflatten(2, (grid.slots, grid.rows, grid.columns))
        return relevance_BKSRC.contiguous(), features_BNE.contiguous()

    def _features(self, video_BCTHW: Tensor) -> Tensor:
        """Return patch features, float32 [B, F, h, w, E]."""
        frames_N3HW = video_BCTHW.transpose(1, 2).flatten(0, 1)
        features_NhwE = self.image.patch_tokens(frames_N3HW, self.scorer, self.resolution)
        return features_NhwE.unflatten(0, (len(video_BCTHW), -1))


def _cosines(features_BFhwE: Tensor, captions_BKE: Tensor) -> Tensor:
    """Return cosines, float32 [B, K, F, h, w]."""
    features_BPE = F.normalize(features_BFhwE, dim=-1).flatten(1, 3)
    # a product for each caption: its bits do not depend on the number of captions
    captions_KBE1 = captions_BKE.transpose(0, 1).contiguous()[..., None]
    cosine_KBP = [(features_BPE @ caption_BE1).squeeze(-1) for caption_BE1 in captions_KBE1]
    return torch.stack(cosine_KBP, dim=1).unflatten(-1, features_BFhwE.shape[1:4])


class TokenFeatures(_OfImage):
    """Patch features of clips, in the joint space with captions, by a scorer of guidance.image: the targets of some
    terms of the objective."""

    def __init__(
        self, image: ImageTower, scorer: str = "value", frames_per_tubelet: str = "all", resolution: int | None = None
    ):
        super().__init__(image, frames_per_tubelet, resolution)
        self.scorer, self.width = scorer, image.width

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """Return the mean of each token's patches, not normalised: float32 [B, N, E]. video_BCTHW: uint8 RGB."""

        def compute(frames_BCFHW: Tensor) -> Tensor:
            frames_N3HW = frames_BCFHW.transpose(1, 2).flatten(0, 1)
            features_FhwE = self.image.patch_tokens(frames_N3HW, self.scorer, self.resolution)
            return on_grid(features_FhwE.unflatten(0, (len(frames_BCFHW), -1)), grid)

        return self._in_passes(compute, video_BCTHW, grid)


def on_grid(features_BFhwE: Tensor, grid: Grid) -> Tensor:
    """Return features of a tower's patches resampled to the grid's tokens: [B, N, E]."""
    return on_tokens(features_BFhwE.movedim(-1, 1), grid).flatten(2).transpose(1, 2)


class ClassAttention(_OfImage):
    """Attention of the tower's pooling token to the patches, averaged over the heads (Unmasked Teacher, arXiv
    2303.16058, section 3.1). CLIP: the class token in the last block. SigLIP: the probe of its attention pooling."""

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """Return the share of the attention that goes to each patch, on the token grid: float32 [B, S, R, C].

        video_BCTHW: uint8 RGB."""

        def compute(frames_BCFHW: Tensor) -> Tensor:
            frames_N3HW = frames_BCFHW.transpose(1, 2).flatten(0, 1)
            attention_Nhw = self.image.attention(frames_N3HW, self.resolution)
            return on_tokens(attention_Nhw.unflatten(0, (len(frames_BCFHW), -1))[:, None], grid)[:, 0]

        return self._in_passes(compute, video_BCTHW, grid)


class HeadAttention(_OfImage):
    """Class attention by head, the input of a learned mask (AutoMAE, arXiv 2303.06583, section 3)."""

    @property
    def heads(self) -> int:
        return self.image.trunk.heads

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """Return each head's attention, float32 [B, A, S, R, C]. video_BCTHW: uint8 RGB."""

        def compute(frames_BCFHW: Tensor) -> Tensor:
            frames_N3HW = frames_BCFHW.transpose(1, 2).flatten(0, 1)
            attention_NhwA = self.image.attention(frames_N3HW, self.resolution, of_heads=True)
            return on_tokens(attention_NhwA.unflatten(0, (len(frames_BCFHW), -1)).movedim(-1, 1), grid)

        return self._in_passes(compute, video_BCTHW, grid)


class Parts(_OfImage):
    """Part labels of clips on the token grid, for part-based masking (SemMAE, arXiv 2206.10207).

    SemMAE trains its own model of parts; here the patches of a clip are clustered into PARTS by their features
    (k-means on the unit sphere), jointly over all slots, so that a part keeps its number while it moves."""

    def __init__(
        self, image: ImageTower, scorer: str = "value", frames_per_tubelet: str = "all", resolution: int | None = None
    ):
        super().__init__(image, frames_per_tubelet, resolution)
        self.scorer = scorer

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """Return the part of each token, 0 to PARTS - 1: float32 [B, S, R, C]. video_BCTHW: uint8 RGB."""

        def compute(frames_BCFHW: Tensor) -> Tensor:
            frames_N3HW = frames_BCFHW.transpose(1, 2).flatten(0, 1)
            features_FhwE = self.image.patch_tokens(frames_N3HW, self.scorer, self.resolution)
            features_BEFhw = features_FhwE.unflatten(0, (len(frames_BCFHW), -1)).movedim(-1, 1)
            features_BNE = on_tokens(features_BEFhw, grid).flatten(2).transpose(1, 2)
            return _clusters(F.normalize(features_BNE, dim=-1))

        label_BN = self._in_passes(compute, video_BCTHW, grid)
        return label_BN.float().view(-1, grid.slots, grid.rows, grid.columns)


def _clusters(x_BNE: Tensor) -> Tensor:
    """Return cluster labels, int64 [B, N], of unit vectors. The first centre is the vector nearest the mean, each
    further one the vector least similar to the previous ones: nothing is random."""

    def likeness(centre_BPE: Tensor) -> Tensor:
        return x_BNE @ centre_BPE.transpose(1, 2)

    def picked(index_B: Tensor) -> Tensor:
        return x_BNE.gather(1, index_B[:, None, None].expand(-1, 1, x_BNE.shape[2]))

    centre_BPE = picked(likeness(x_BNE.mean(dim=1, keepdim=True))[..., 0].argmax(dim=1))
    while centre_BPE.shape[1] < PARTS:
        nearest_BN = likeness(centre_BPE).amax(dim=2)
        centre_BPE = torch.cat([centre_BPE, picked(nearest_BN.argmin(dim=1))], dim=1)
    for _ in range(_ROUNDS):
        member_BNP = F.one_hot(likeness(centre_BPE).argmax(dim=2), PARTS).to(x_BNE.dtype)
        mean_BPE = member_BNP.transpose(1, 2) @ x_BNE
        kept_BP1 = (member_BNP.sum(dim=1) > 0)[..., None]  # a centre without members stays unchanged
        centre_BPE = torch.where(kept_BP1, F.normalize(mean_BPE, dim=-1), centre_BPE)
    return likeness(centre_BPE).argmax(dim=2)
