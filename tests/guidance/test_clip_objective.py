"""What the small CLIP's training minimises, against its definition, patch by patch and caption by caption."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.demo.clip.objective import MIXED, NOTHING, LabelledImages, Objective

COLOURS, SHAPES, HALF = 2, 3, -0.3
COLOUR_OF, SHAPE_OF = torch.arange(6) // SHAPES, torch.arange(6) % SHAPES


@pytest.fixture
def batch() -> LabelledImages:
    """Two images of five patches; a red thing of shape 1 in the first, a blue of shape 2 in the second."""
    label = torch.tensor([[1, 1, NOTHING, MIXED, NOTHING], [5, NOTHING, NOTHING, MIXED, 5]])
    present = torch.zeros(2, 6, dtype=torch.bool)
    present[0, 1] = present[1, 5] = True
    return LabelledImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), label, present)


def embeddings(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))), dim=-1)


def shared(a: int, b: int) -> int:
    return int(COLOUR_OF[a] == COLOUR_OF[b]) + int(SHAPE_OF[a] == SHAPE_OF[b])


def absent(batch: LabelledImages, image: int, concept: int) -> bool:
    return all(shared(int(there), concept) == 0 for there in batch.present_NC[image].nonzero())


def test_the_terms_are_what_they_are_said_to_be(batch: LabelledImages) -> None:
    objective = Objective([COLOUR_OF, SHAPE_OF], HALF)
    image, patch, caption = embeddings(2, 8), embeddings(2, 5, 8), embeddings(11, 8)
    got = objective(image, patch, caption, torch.tensor(1.0), batch, pattern_weight=0.5)
    cosine = (patch @ caption.T).tolist()
    level = objective.level.item()

    above = wins = error = weights = naming = 0.0
    scale, shown = objective.pattern_scale.exp().item(), 0
    for i in range(2):
        for p, label in enumerate(batch.label_NP[i].tolist()):
            for c in range(6):
                predicted = scale * cosine[i][p][c]
                target, weight = level, 1.0
                if label >= 0:
                    target, weight = {2: 1.0, 1: HALF, 0: 0.0}[shared(label, c)], 3.0
                elif label == MIXED:
                    weight = 2.0 if absent(batch, i, c) else 0.0
                error += weight * (8 if target == 1 else 1) * (predicted - target) ** 2
                weights += weight
                if label >= 0 and absent(batch, i, c):
                    others = [q for q, other in enumerate(batch.label_NP[i].tolist()) if other < 0]
                    above += len(others)
                    wins += sum(cosine[i][p][c] > cosine[i][q][c] for q in others)
            if label >= 0:
                logits = 10 * torch.tensor(cosine[i][p])
                shown += 1
                naming += F.cross_entropy(logits[:6], torch.tensor(label)).item()
                naming += 0.4 * F.cross_entropy(logits[6:8], COLOUR_OF[label]).item()
                naming += 0.4 * F.cross_entropy(logits[8:], SHAPE_OF[label]).item()
    logits = image @ caption[:6].T * torch.e - 4
    pairs = F.binary_cross_entropy_with_logits(logits, batch.present_NC.float(), reduction="none")
    whole = 0.5 * (pairs[batch.present_NC].mean() + pairs[~batch.present_NC].mean()).item()

    assert level == pytest.approx(-0.03 + 0.004 * (wins / above - 0.5))
    assert got.item() == pytest.approx(0.3 * naming / shown + 10 * error / weights + 0.2 * whole, rel=1e-5)


def test_the_level_follows_until_absent_captions_say_nothing(batch: LabelledImages) -> None:
    """Objects that win under absent captions raise the background's target, and the reverse."""
    captions = torch.eye(11)
    for sign in (1.0, -1.0):
        objective = Objective([COLOUR_OF, SHAPE_OF], HALF)
        before = objective.level.item()
        patch = torch.zeros(2, 5, 11)
        patch[batch.label_NP >= 0] = sign
        objective(embeddings(2, 11), patch, captions, torch.tensor(0.0), batch, pattern_weight=1.0)
        assert objective.level.item() == pytest.approx(before + sign * 0.002)
