"""What computes on the device gives what the CPU gives: attention, towers, masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tgm_scale.contracts import Grid
from tgm_scale.guidance.maps import Relevance
from tgm_scale.guidance.towers import load_image_tower, load_text_tower
from tgm_scale.masking.recipes import RECIPES, build_masker
from tgm_scale.models.attention import attend, flash_obstacle

pytestmark = pytest.mark.gpu
GRID = Grid(4, 4, 4)


def heads(device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values [B, N, H, K] that want a gradient."""
    made = [torch.randn(2, 196, 4, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    return [x.to(device, dtype).requires_grad_() for x in made]


def outcome(device: torch.device, dtype: torch.dtype, backend: str) -> list[torch.Tensor]:
    """What attention gives, and the gradients of its inputs, in fp32 on the CPU."""
    inputs = heads(device, dtype)
    found = attend(*inputs, backend)  # type: ignore[arg-type]
    found.float().square().sum().backward()
    return [t.detach().float().cpu() for t in (found, *(x.grad for x in inputs if x.grad is not None))]


@pytest.mark.parametrize("backend", ["sdpa", "flash"])
def test_attention_in_bf16_is_that_of_fp32_on_the_cpu(device: torch.device, backend: str) -> None:
    if backend == "flash" and (obstacle := flash_obstacle(device, torch.bfloat16, 64)):
        pytest.skip(obstacle)
    wanted = outcome(torch.device("cpu"), torch.float32, "sdpa")
    for here, there in zip(outcome(device, torch.bfloat16, backend), wanted, strict=True):
        assert (here - there).abs().max() < 2e-2 * there.abs().max()


def test_relevance_in_bf16_is_that_of_fp32_on_the_cpu(device: torch.device, towers: Path) -> None:
    video = torch.randint(0, 256, (3, 3, 8, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def cosines(where: torch.device, dtype: torch.dtype) -> torch.Tensor:
        captions = load_text_tower(towers, where, dtype).encode(["texture 1", "3 moving", "texture 11"])
        return Relevance(load_image_tower(towers, where, dtype))(video.to(where), captions, GRID).cpu()

    wanted = cosines(torch.device("cpu"), torch.float32)
    assert wanted.std() > 0.01
    assert (cosines(device, torch.float32) - wanted).abs().max() < 5e-3
    assert (cosines(device, torch.bfloat16) - wanted).abs().max() < 5e-2


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_mask_on_the_device_is_that_on_the_cpu(device: torch.device, recipe: str) -> None:
    masker = build_masker(recipe, GRID, mask_ratio=0.75, visible_ratio=0.2, decode_ratio=0.5)
    seeds = torch.arange(16) * 7919 + 11
    generator = torch.Generator().manual_seed(0)
    maps = {name: torch.rand(16, 4, 4, 4, generator=generator) for name in masker.needs}
    if "flow" in maps:
        maps["flow"] = (torch.rand(16, 8, 2, 8, 8, generator=generator) - 0.5) / 5
    wanted = masker(seeds, **maps)
    found = masker(seeds.to(device), **{name: map_.to(device) for name, map_ in maps.items()})
    assert torch.equal(found.visible.cpu(), wanted.visible)
    assert torch.equal(found.target.cpu(), wanted.target)
