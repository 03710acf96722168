"""The frozen models' look a step ahead: in which order, and to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tgm_scale.contracts import Batch
from tgm_scale.training.clip_guidance import GuidedBatch
from tgm_scale.training.prefetch import prefetched, without_prefetch


def batch(number: int, side: int = 4) -> Batch:
    video = torch.full((1, 3, 2, side, side), number % 251, dtype=torch.uint8)
    return Batch(
        video=video,
        captions=[""],
        keys=[str(number)],
        seeds=torch.tensor([number]),
        weight=torch.ones(1),
        clip_ids=torch.tensor([number]),
        crops=torch.zeros(1, 5),
        starts=torch.zeros(1),
    )


def test_the_next_step_is_looked_at_before_this_one_is_handed_over() -> None:
    done: list[str] = []

    def look(one: Batch) -> GuidedBatch:
        done.append(f"look {one.keys[0]}")
        return GuidedBatch(one, one.seeds, one.seeds, None, {})

    def loader() -> Iterator[tuple[int, list[Batch]]]:
        for step in range(5, 8):
            yield step, [batch(10 * step), batch(10 * step + 1)]

    for step, batches, looks in prefetched(loader(), look, torch.device("cpu")):
        done.append(f"step {step}")
        assert [seen().batch.keys for seen in looks] == [one.keys for one in batches]
    assert done == [
        *("look 50", "look 51", "look 60", "look 61", "step 5"),
        *("look 70", "look 71", "step 6", "step 7"),
    ]
    done.clear()
    for step, _, looks in without_prefetch(loader(), look):
        done.append(f"step {step}")
        assert len([seen() for seen in looks]) == 2
    assert done == [x for n in (5, 6, 7) for x in (f"step {n}", f"look {n}0", f"look {n}1")]
    assert list(prefetched([], look, torch.device("cpu"))) == []


@pytest.mark.gpu
def test_a_stream_of_its_own_gives_the_same_bits_while_memory_is_used_again() -> None:
    """Looks of ten milliseconds beside steps of ten, whose tensors are let go of at once."""
    device = torch.device("cuda")
    weight = torch.rand(2048, 2048, device=device) / 1024

    def slow(x: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            x = x @ weight
        return x

    def look(one: Batch) -> GuidedBatch:
        moved = one.to(device)
        seen = slow(moved.video.float().mean().expand(2048, 2048).contiguous())
        return GuidedBatch(replace(moved), moved.seeds, moved.seeds, None, {"map": seen})

    def stepped(steps: Iterator) -> list[float]:
        sums = []
        for _, _, looks in steps:
            map_ = looks[0]().maps["map"]
            sums.append(slow(slow(map_)).double().sum())
        return torch.stack(sums).tolist()

    loader = [(step, [batch(step + 1, 512)]) for step in range(40)]
    assert stepped(prefetched(loader, look, device)) == stepped(without_prefetch(loader, look))
