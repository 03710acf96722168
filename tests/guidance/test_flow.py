"""Flow against known motion: its direction, its unit, RAFT from a file, and what the user is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.demo.corpus.make import SyntheticSpec, render_clip
from tgm_scale.guidance.flow import FlowToBase, check_flow
from tgm_scale.masking.recipes import build_masker
from tgm_scale.masking.saliency import trace

pytest.importorskip("cv2", reason="OpenCV is not installed")
CPU = torch.device("cpu")


def panned(frames: int, size: int, step: tuple[int, int]) -> Tensor:
    """uint8 [1, 3, T, size, size]: a texture that moves by `step` (x, y) pixels a frame."""
    coarse = torch.rand(1, 3, 2 * size // 6, 2 * size // 6, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.interpolate(coarse, (2 * size, 2 * size), mode="bicubic")[0]
    views = []
    for t in range(frames):
        left, top = size // 2 - step[0] * t, size // 2 - step[1] * t
        views.append(texture[:, top : top + size, left : left + size])
    return (torch.stack(views, dim=1) * 255).clamp(0, 255).to(torch.uint8)[None]


@pytest.mark.parametrize("size", [64, 160])
def test_flow_points_to_the_neighbour_nearer_the_base_frame(size: int) -> None:
    """What moves by (3, -2) a frame came from (-3, 2) away; before the base frame it goes to (3, -2) away."""
    flow = FlowToBase("dis", CPU)(panned(8, size, (3, -2)), Grid(4, 8, 8))
    assert flow.shape == (1, 8, 2, 16, 16)
    inside = flow[0, :, :, 3:-3, 3:-3].median(-1).values.median(-1).values * size
    expected = torch.tensor([[3.0, -2.0]] * 4 + [[0.0, 0.0]] + [[-3.0, 2.0]] * 3)
    assert (inside - expected).abs().max() < 0.3


def test_a_clips_flow_does_not_depend_on_the_batch() -> None:
    flow, grid = FlowToBase("dis", CPU), Grid(2, 8, 8)
    clips = torch.cat([panned(4, 64, step) for step in ((1, 0), (0, 2), (-2, 1))])
    assert torch.equal(flow(clips, grid)[2:], flow(clips[2:], grid))


def test_things_are_tracked_within_one_token_of_the_truth() -> None:
    """On synthetic clips of 224 pixels: the middle of the moving object in each frame is traced back to the base
    frame, where the truth says it was. It moves by 17 pixels a frame on average."""
    flow, grid = FlowToBase("dis", CPU), Grid(8, 14, 14)
    traced, still = [], []
    for index in range(16):
        clip = render_clip(index, SyntheticSpec(size=224, seed=5, mode="one_mover"))
        if clip.truth.named.motion not in ("left", "right", "bounce"):
            continue  # the middle of what turns or grows is its own, too, but does not go far
        video = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None]
        middles = [np.argwhere(visible).mean(0)[::-1] / 224 for visible in clip.truth.named.visible]  # x, y
        for (x, y), places in zip(middles, trace(flow(video, grid))):
            side = places.shape[1]
            back = places[0, int(y * side), int(x * side)].numpy()
            traced.append(np.abs(back - middles[8]).max() * 14)
            still.append(np.abs(np.array([x, y]) - middles[8]).max() * 14)
    assert len(traced) > 80
    assert np.mean(np.array(traced) <= 1) > 0.9 and np.mean(traced) < 0.5
    assert np.mean(np.array(still) <= 1) < 0.5  # without tracking


def test_flow_guided_masks_follow_a_pan() -> None:
    """Visible tokens keep to the picture: shifted back by the pan they are those of the base frame's slot."""
    grid = Grid(8, 10, 10)
    video = panned(16, 160, (4, 0))  # half a token a slot
    masker = build_masker("flow_guided", grid, 0.9)
    seeds = torch.arange(4)
    visible = ~masker.hidden(seeds, flow=FlowToBase("dis", CPU)(video, grid).expand(4, -1, -1, -1, -1))
    base = visible[:, 4]
    for slot, shift in ((0, -2), (2, -1), (6, 1)):
        inside = slice(2, 8)
        back = visible[:, slot].roll(-shift, dims=2)[:, :, inside]
        same = (back & base[:, :, inside]).sum() / base[:, :, inside].sum()
        unmoved = (visible[:, slot] & base)[:, :, inside].sum() / base[:, :, inside].sum()
        assert same > 0.75 > 0.6 > unmoved, (slot, same, unmoved)


@pytest.fixture(scope="module")
def raft_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RAFT-small with random weights: the real architecture, made here."""
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("raft") / "raft_small.pth"
    torch.save(raft_small(weights=None, progress=False).state_dict(), file)
    return file


def test_raft_from_a_file_gives_its_models_flow(raft_file: Path) -> None:
    from torchvision.models.optical_flow import raft_small

    check_flow(str(raft_file))
    video, grid = panned(2, 128, (3, 0)), Grid(1, 8, 8)
    flow = FlowToBase(str(raft_file), CPU)(video, grid)
    assert flow.shape == (1, 2, 2, 16, 16) and not flow[0, 1].any()  # the base frame is the second
    model = raft_small(weights=None, progress=False).eval()
    model.load_state_dict(torch.load(raft_file, weights_only=True))
    with torch.no_grad():
        pair = video[0].transpose(0, 1).float() / 127.5 - 1
        own = model(pair[:1], pair[1:], num_flow_updates=6)[-1] / 128
    assert torch.allclose(flow[0, 0], torch.nn.functional.avg_pool2d(own, 8)[0], atol=1e-5)


def test_small_clips_reach_raft_at_its_smallest_size(raft_file: Path) -> None:
    assert FlowToBase(str(raft_file), CPU)(panned(2, 64, (1, 0)), Grid(1, 8, 8)).isfinite().all()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"guidance.flow=raft.pth: wanted 'dis' or a file .*no such file"):
        check_flow("raft.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"guidance.flow=.*broken.pth: not a file of weights"):
        check_flow(str(broken))
    torch.save({"conv.weight": torch.zeros(3)}, broken)
    with pytest.raises(ValueError, match=r"not the weights of torchvision's raft_small or raft_large: context"):
        check_flow(str(broken))
