"""The digest of a step's data is the same whichever rank had which clip, in batches of any size."""

from __future__ import annotations

import torch

from tgm_scale.contracts import Mask
from tgm_scale.training import data_digest


def digest(hashes_G: torch.Tensor, visible_GV: torch.Tensor, ranks: int, micro: int) -> str:
    """Of a global batch that is divided over the ranks and their micro steps, summed as the ranks' metrics are."""
    of_ranks = []
    for hashes_B, visible_BV in zip(hashes_G.chunk(ranks), visible_GV.chunk(ranks), strict=True):
        parts = zip(hashes_B.split(micro), visible_BV.split(micro), strict=True)
        sums = [data_digest.with_masks(hashes, Mask(visible, visible)) for hashes, visible in parts]
        of_ranks.append(data_digest.of_rank(sums))
    return data_digest.in_words(float(torch.stack(of_ranks).sum()))


def test_a_digest_does_not_depend_on_ranks_and_micro_steps() -> None:
    draw = torch.Generator().manual_seed(0)
    hashes_G = torch.randint(2**40 - 2**20, 2**40, (131072,), generator=draw)  # large ones: their sum is 2**57
    visible_GV = torch.randint(1568, (131072, 3), generator=draw)
    found = digest(hashes_G, visible_GV, 1, 131072)
    assert found.startswith("3-") and len(found) == 12
    for ranks, micro in ((1, 8), (2, 64), (512, 32), (8192, 16)):
        assert digest(hashes_G, visible_GV, ranks, micro) == found
    again = torch.randperm(131072, generator=draw)
    assert digest(hashes_G[again], visible_GV[again], 64, 32) == found
    hashes_G[77] += 1
    assert digest(hashes_G, visible_GV, 1, 131072) != found
