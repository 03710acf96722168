"""What pairs captions with clips is chance where captions say nothing of them, whatever else is in the figures."""

from __future__ import annotations

import pytest
import torch

from tgm_scale.contracts import Grid
from tgm_scale.guidance.image import SCORERS, memoised
from tgm_scale.guidance.maps import ClassAttention, Relevance
from tgm_scale.guidance.towers import SMALL_TOWERS, load_image_tower
from tgm_scale.preview.figures import pairing
from tgm_scale.preview.looks import lift

N = 12
ALL_DIFFER = ~torch.eye(N, dtype=torch.bool)


def noise(seed: int, n: int = N) -> torch.Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_is_a_clips_own_or_a_captions_is_no_pairing() -> None:
    additive = noise(0)[:, :1] + 3 * noise(1)[:1]
    found = pairing(additive, ALL_DIFFER, seed=0, level=0.01)
    assert found.p > 0.9 and not found.known


def test_right_captions_win_and_noise_does_not() -> None:
    right = pairing(noise(0) + 4 * torch.eye(N), ALL_DIFFER, seed=0, level=0.01)
    assert right.share > 0.95 and right.known
    ps = torch.tensor([pairing(noise(seed), ALL_DIFFER, seed=0, level=0.01).p for seed in range(200)])
    assert 0.42 < ps.mean() < 0.58 and (ps <= 0.01).float().mean() < 0.035, "p is uniform where there is nothing"
    shares = torch.tensor([pairing(noise(seed), ALL_DIFFER, seed=0, level=0.01).share for seed in range(200)])
    assert 0.47 < shares.mean() < 0.53


@pytest.mark.parametrize(("captions", "enough"), [(4, False), (5, True)])
def test_few_captions_are_too_few_to_tell(captions: int, enough: bool) -> None:
    said = torch.arange(N) % captions
    found = pairing(noise(0) + 9 * (said[:, None] == said), said[:, None] != said, seed=0, level=0.01)
    assert found.captions == captions and found.share == 1.0
    assert found.known == found.enough == enough


def test_lift_is_of_the_hidden_over_the_visible() -> None:
    relevance = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    hidden = torch.tensor([[[[False, True], [False, True]]]])
    assert lift(relevance, hidden).tolist() == [2.0]


def test_a_tower_that_remembers_makes_the_same_and_works_once() -> None:
    image = load_image_tower(SMALL_TOWERS)
    once = memoised(image)
    calls = []
    last = image.trunk.blocks[0]
    last.register_forward_hook(lambda *_: calls.append(1))
    grid = Grid.of(8, 64, 2, 8)
    videos = torch.randint(256, (2, 3, 8, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    captions = torch.nn.functional.normalize(
        torch.randn(2, image.width, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    for video in videos[:, None]:
        plain = [Relevance(image, scorer)(video, captions[:1], grid) for scorer in SCORERS]
        plain.append(ClassAttention(image)(video, grid))
        before = len(calls)
        again = [Relevance(once, scorer)(video, captions[:1], grid) for scorer in SCORERS]
        again.append(ClassAttention(once)(video, grid))
        assert len(calls) == before + 1
        assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert not torch.equal(*(Relevance(once, "raw")(video, captions[:1], grid) for video in videos[:, None]))
