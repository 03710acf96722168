"""Patches, positions and embedding against their definitions."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tgm_scale.contracts import Grid
from tgm_scale.models.patches import (
    IMAGENET,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PatchEmbed,
    PixelStatistics,
    Positions,
    channel_first,
    channel_last,
    gather_tokens,
    interpolated_table,
    most_varied,
    patchify,
    sine_cosine_table,
    unpatchify,
)

sides = st.integers(1, 3)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@settings(max_examples=30, deadline=None)
@given(slots=sides, rows=sides, columns=sides, tubelet=sides, patch=sides)
def test_unpatchify_undoes_patchify(slots: int, rows: int, columns: int, tubelet: int, patch: int) -> None:
    video = noise(2, 3, slots * tubelet, rows * patch, columns * patch)
    patches = patchify(video, tubelet, patch)
    assert patches.shape == (2, slots * rows * columns, 3 * tubelet * patch**2)
    assert torch.equal(unpatchify(patches, Grid(slots, rows, columns), tubelet, patch), video)


def test_an_embedding_for_other_statistics_gives_the_same_tokens() -> None:
    own = PixelStatistics((0.1, 0.5, 0.9), (0.3, 0.05, 1.0))
    theirs, ours = PatchEmbed(16, 2, 4), PatchEmbed(16, 2, 4, own)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    weight, bias = own.restated(theirs.proj.weight.detach(), theirs.proj.bias.detach(), IMAGENET)
    ours.load_state_dict({"proj.weight": weight, "proj.bias": bias})
    patches = torch.randint(256, (2, 5, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    torch.testing.assert_close(ours(patches), theirs(patches), rtol=1e-4, atol=1e-3)
    flat = torch.tensor(own.mean).repeat_interleave(32) * 255
    torch.testing.assert_close(ours(flat[None, None]), bias[None, None], rtol=1e-4, atol=1e-4)


def test_a_patch_holds_its_pixels_in_the_order_channel_frame_row_column() -> None:
    video = noise(1, 3, 4, 6, 9)
    patches = patchify(video, tubelet=2, patch=3)
    slot, row, column = 1, 0, 2
    token = (slot * 2 + row) * 3 + column
    assert torch.equal(patches[0, token], video[0, :, 2:4, 0:3, 6:9].flatten())
    assert torch.equal(channel_last(patches)[0, token], video[0, :, 2:4, 0:3, 6:9].permute(1, 2, 3, 0).flatten())
    assert torch.equal(channel_first(channel_last(patches)), patches)


def test_gathered_tokens_are_those_named() -> None:
    x = torch.randn(2, 5, 3)
    index = torch.tensor([[0, 4], [3, 1]])
    assert torch.equal(gather_tokens(x, index), torch.stack([x[0, [0, 4]], x[1, [3, 1]]]))


def test_tokens_that_vary_most_are_those_of_the_largest_variance_of_a_channel() -> None:
    patches = torch.zeros(3, 6, 3 * 8, dtype=torch.uint8)
    patches[:, 4] = noise(3, 24)
    patches[:, 2, 3] = 255  # one pixel
    patches[:, 5, 1:3] = 9
    patches[:, 0] = torch.tensor([200, 0, 90], dtype=torch.uint8).repeat_interleave(8)  # a flat colour
    assert most_varied(patches, 3).tolist() == [[2, 4, 5]] * 3
    assert most_varied(patches, 5).tolist() == [[0, 1, 2, 4, 5]] * 3, "of flat ones the first"
    assert torch.equal(most_varied(patches[1:2], 4), most_varied(patches.float(), 4)[1:2])
    busy = noise(2, 40, 3 * 2 * 16**2)
    variance = busy.double().unflatten(-1, (3, -1)).var(-1).sum(-1)
    assert torch.equal(most_varied(busy, 7), variance.topk(7).indices.sort().values)


@pytest.mark.parametrize("width", [8, 384])
def test_positions_by_their_formula(width: int) -> None:
    expected = np.empty((50, width))
    for position in range(50):
        for j in range(width):
            angle = position / 10000 ** (2 * (j // 2) / width)
            expected[position, j] = np.cos(angle) if j % 2 else np.sin(angle)
    assert np.array_equal(sine_cosine_table(50, width).numpy(), expected.astype(np.float32))


def test_embedding_is_the_strided_convolution_of_the_normalised_clip() -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(10, tubelet=2, patch=4)
    torch.nn.init.normal_(embed.proj.weight)
    torch.nn.init.normal_(embed.proj.bias)
    video = noise(2, 3, 4, 8, 12)
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    convolved = F.conv3d((video / 255 - mean) / std, embed.proj.weight, embed.proj.bias, stride=(2, 4, 4))
    embedded = embed(patchify(video, 2, 4))
    torch.testing.assert_close(embedded, convolved.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-4)
    index = torch.stack([torch.randperm(12)[:5] for _ in range(2)])
    gathered_first = embed(gather_tokens(patchify(video, 2, 4), index))
    torch.testing.assert_close(gathered_first, gather_tokens(embedded, index), rtol=1e-6, atol=1e-5)


def test_fixed_tensors_survive_casts_copies_and_allocation_from_meta() -> None:
    exact = sine_cosine_table(20, 6)
    positions = Positions(Grid(5, 2, 2), 6)
    for changed in (positions.bfloat16(), positions.half().float(), copy.deepcopy(positions)):
        assert torch.equal(changed.value, exact)
    with torch.device("meta"):
        later = Positions(Grid(5, 2, 2), 6)
    assert torch.equal(later.to_empty(device="cpu").value, exact)
    assert not positions.state_dict()


def test_positions_are_added_in_float32() -> None:
    positions = Positions(Grid(5, 2, 2), 6).bfloat16()
    x = torch.randn(1, 20, 6).bfloat16()
    index = torch.arange(20)[None]
    exact = (x.float() + sine_cosine_table(20, 6)).bfloat16()
    assert torch.equal(positions(x, index, torch.bfloat16), exact)
    assert torch.equal(positions(x, None, torch.bfloat16), exact)


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75 (Keys 1981, equation 15)."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def weights_of(length: int, wanted: int, kernel: str) -> np.ndarray:
    """[wanted, length]: by how much each old place counts at each new one, by their centres in the clip."""
    found = np.zeros((wanted, length))
    for new in range(wanted):
        at = (new + 0.5) * length / wanted - 0.5
        for old in range(math.floor(at) - 1, math.floor(at) + 3):
            share = cubic(at - old) if kernel == "cubic" else max(0.0, 1 - abs(at - old))
            found[new, min(max(old, 0), length - 1)] += share
    return found


@pytest.mark.parametrize(
    "grid", [Grid(4, 12, 12), Grid(2, 6, 6), Grid(4, 6, 6), Grid(1, 3, 3), Grid(3, 8, 10), Grid(2, 12, 12)], ids=str
)
def test_positions_of_another_grid_are_interpolated_in_space_and_time(grid: Grid) -> None:
    origin = Grid(2, 6, 6)
    found = interpolated_table(origin, grid, 20)
    if grid == origin:
        assert torch.equal(found, sine_cosine_table(origin.tokens, 20)), "to the bit"
    table = sine_cosine_table(origin.tokens, 20).double().numpy().reshape(2, 6, 6, 20)
    slots, rows, columns = (
        weights_of(length, wanted, kernel)
        for length, wanted, kernel in ((2, grid.slots, "linear"), (6, grid.rows, "cubic"), (6, grid.columns, "cubic"))
    )
    wanted = np.einsum("as,br,cq,srqd->abcd", slots, rows, columns, table).reshape(grid.tokens, 20)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_the_twice_as_fine_grid_has_each_token_where_it_was() -> None:
    """Eight tokens of the finer grid cover one of the coarser: in the slow channels their mean is its position, up to
    the borders; and each is nearest to the token that it lies in."""
    origin, grid = Grid(3, 6, 6), Grid(6, 12, 12)
    coarse = sine_cosine_table(origin.tokens, 64)
    fine = interpolated_table(origin, grid, 64).view(3, 2, 6, 2, 6, 2, 64)
    nearest = torch.cdist(fine.reshape(-1, 64), coarse).argmin(1).view(3, 2, 6, 2, 6, 2)
    wanted = torch.arange(origin.tokens).view(3, 1, 6, 1, 6, 1).expand_as(nearest)
    assert (nearest == wanted).float().mean() > 0.99
    for corner in ((0, 0, 0), (2, 5, 5), (1, 3, 3)):
        slot, row, column = corner
        assert (nearest[slot, :, row, :, column, :] == wanted[slot, :, row, :, column, :]).all(), corner
