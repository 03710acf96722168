"""Optical flow from every frame of a clip to its neighbour towards the base frame, for flow-guided masking.

`dis`: OpenCV's Dense Inverse Search (arXiv 1603.03590), on the CPU, without weights: 135 ms a clip of 16 frames at
224, so the data workers compute it (`dis_to_base`). Otherwise a weights file of torchvision's RAFT, small or large
(arXiv 2003.12039), on the towers' device.

Shapes: B clips, T frames of H x W pixels, N pairs of frames, h x w cells of the flow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.guidance.maps import in_passes
from tgm_scale.runtime.compat import prepare_torchvision
from tgm_scale.runtime.files import like
from tgm_scale.runtime.tensors import weights_of

PLACES_PER_TOKEN = 2  # of the flow's grid, along each side
DIS_SIDE = 112  # pixels of a frame's longer side: two flow cells a token need no more
RAFT_UPDATES = 6  # MGMAE's number
RAFT_CLIPS = 4  # clips of a pass on a GPU: 60 pairs of 224 x 224, whose correlations are 0.2 GB
_RAFT_SMALLEST = 128  # pixels: below it, the correlation pyramid is empty

# frames and their neighbours, uint8 [N, 3, H, W] each -> flow, float32 [N, 2, H, W], pixels across and down: the
# content at x in the frame is at x + flow in the neighbour
Estimator = Callable[[Tensor, Tensor], Tensor]


def check_flow(name: str) -> None:
    """Raise a one-line ValueError where `guidance.flow` is unavailable: no OpenCV, no file, other weights."""
    if name == "dis":
        _opencv()
    else:
        _raft_weights(name)


class FlowToBase:
    """Estimator of clips' flow maps. `flow` is 'dis' or a file of RAFT weights. Raises ValueError as `check_flow`
    does."""

    def __init__(self, flow: str, device: torch.device):
        self.device = device
        self.estimate = dis() if flow == "dis" else raft(flow, device)

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """Return the flow from each frame t to frame t - 1 (after the base frame T // 2) or t + 1 (before it), as
        shares of the frame, across then down, averaged over the pixels of each cell: float32 [B, T, 2, h, w]; 0 at the
        base frame.

        video_BCTHW: uint8 RGB."""
        count = 1 if self.device.type == "cpu" else RAFT_CLIPS
        return in_passes(partial(_to_base, self.estimate, grid), count, video_BCTHW)


@torch.no_grad()
def dis_to_base(clip_THW3: Tensor, grid: Grid) -> NDArray[np.float32]:
    """Return the result of `FlowToBase('dis', ...)` for one clip, bit-identical: float32 [T, 2, h, w]. clip_THW3:
    uint8 RGB.

    Picklable, for use in data workers."""
    return _to_base(dis(), grid, clip_THW3.permute(3, 0, 1, 2)[None])[0].numpy()


def _to_base(estimate: Estimator, grid: Grid, clips_BCTHW: Tensor) -> Tensor:
    base = clips_BCTHW.shape[2] // 2
    each_BTCHW = clips_BCTHW.transpose(1, 2)
    outer = torch.cat([each_BTCHW[:, :base], each_BTCHW[:, base + 1 :]], dim=1)
    nearer = torch.cat([each_BTCHW[:, 1 : base + 1], each_BTCHW[:, base:-1]], dim=1)
    flow_N2HW = estimate(outer.flatten(0, 1), nearer.flatten(0, 1)).to(clips_BCTHW.device)
    height, width = flow_N2HW.shape[2:]
    places = (PLACES_PER_TOKEN * grid.rows, PLACES_PER_TOKEN * grid.columns)
    across_Nhw, down_Nhw = F.adaptive_avg_pool2d(flow_N2HW, places).unbind(1)
    share_N2hw = torch.stack([across_Nhw / width, down_Nhw / height], dim=1)
    share_BT2hw = share_N2hw.unflatten(0, (len(clips_BCTHW), -1))
    at_base = share_BT2hw.new_zeros(len(clips_BCTHW), 1, 2, *places)
    return torch.cat([share_BT2hw[:, :base], at_base, share_BT2hw[:, base:]], dim=1)


@cache
def dis() -> Estimator:
    """Return OpenCV's DIS on one thread: with more it splits a frame into as many stripes, and the flow would
    depend on the machine. The settings were chosen by cost and quality on clips of known motion and by warping real
    ones (docs/LOG.md): patches are compared unnormalised (with the mean subtracted, flat ones match anywhere), and
    not refined."""
    cv2 = _opencv()
    cv2.setNumThreads(1)
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    search.setPatchStride(2)
    search.setUseMeanNormalization(False)
    search.setVariationalRefinementIterations(0)

    def estimate(frames_N3HW: Tensor, neighbours_N3HW: Tensor) -> Tensor:
        height, width = frames_N3HW.shape[2:]
        shrunk = min(DIS_SIDE / max(height, width), 1.0)
        size = (round(height * shrunk), round(width * shrunk))
        flows = []
        for pair_23HW in zip(*(x.cpu() for x in (frames_N3HW, neighbours_N3HW))):
            pair = F.interpolate(torch.stack(pair_23HW).float(), size, mode="bilinear", antialias=True)
            flows.append(torch.from_numpy(search.calc(*_one_channel(pair), None)).permute(2, 0, 1))
        scale_211 = torch.tensor([width / size[1], height / size[0]])[:, None, None]
        return F.interpolate(torch.stack(flows), (height, width), mode="bilinear", align_corners=False) * scale_211

    return estimate


def _one_channel(pair_23HW: Tensor) -> np.ndarray:
    """Return the two frames projected on the axis along which their colours vary most, uint8 [2, H, W]. In grey
    levels, an object can be as bright as its background."""
    colour_N3 = pair_23HW.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    mean_3 = colour_N3.mean(axis=0)
    axis_3 = np.linalg.eigh(np.cov((colour_N3 - mean_3).T))[1][:, -1]
    along_N = (colour_N3 - mean_3) @ (axis_3 * (1 if axis_3.sum() > 0 else -1))
    levels_N = 128 + along_N * (127 / max(np.abs(along_N).max(), 1e-6))
    return levels_N.round().astype(np.uint8).reshape(2, *pair_23HW.shape[2:])


def raft(file: str, device: torch.device) -> Estimator:
    """Return torchvision's RAFT with weights from a file."""
    weights = _raft_weights(file)
    model = _raft_model(weights)
    model.load_state_dict(weights)
    model = model.eval().requires_grad_(False).to(device)

    def estimate(frames_N3HW: Tensor, neighbours_N3HW: Tensor) -> Tensor:
        height, width = frames_N3HW.shape[2:]
        size = tuple(max(_RAFT_SMALLEST, -(-side // 8) * 8) for side in (height, width))
        pair = [
            F.interpolate(x.to(device).float() / 127.5 - 1, size, mode="bilinear", align_corners=False)
            for x in (frames_N3HW, neighbours_N3HW)
        ]
        flow_N2hw = model(*pair, num_flow_updates=RAFT_UPDATES)[-1]
        flow_N2HW = F.interpolate(flow_N2hw, (height, width), mode="bilinear", align_corners=False)
        return torch.stack([flow_N2HW[:, 0] * (width / size[1]), flow_N2HW[:, 1] * (height / size[0])], dim=1)

    return estimate


def _raft_model(weights: dict[str, Tensor]) -> Any:
    """Return RAFT without weights, large if the file's weights are: only the large model has a mask predictor for
    upsampling."""
    prepare_torchvision()
    from torchvision.models import optical_flow

    large = any(name.startswith("mask_predictor") for name in weights)
    return (optical_flow.raft_large if large else optical_flow.raft_small)(weights=None, progress=False)


def _raft_weights(file: str) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise ValueError(
            f"guidance.flow={file}: wanted 'dis' or a file of torchvision RAFT weights; no such file{like(file)}"
        )
    try:
        weights = weights_of(Path(file))
    except ValueError as error:
        raise ValueError(f"guidance.flow={file}: not a file of weights: {error}") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"guidance.flow={file}: wanted a state dict of torchvision's raft_small or raft_large")
    wanted = _raft_model(weights).state_dict()
    for name in sorted(wanted.keys() ^ weights.keys()) or [n for n in wanted if wanted[n].shape != weights[n].shape]:
        raise ValueError(f"guidance.flow={file}: not the weights of torchvision's raft_small or raft_large: {name}")
    return weights


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "guidance.flow=dis needs OpenCV, which is not installed: pip install 'tgm_scale[flow]' (or "
            "opencv-python-headless), or set guidance.flow to a file of torchvision RAFT weights"
        ) from None
    return cv2
