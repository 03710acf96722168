"""Compiled block by block: no graph break, one compilation for all blocks of a shape, the numbers of eager.

The compiler's front runs in full; its kernels ("inductor") only in tests/training/test_memory_and_speed.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.compiling import compile_blocks
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions, ModelSize

SIZE = ModelSize(24, 6, 2, 48, 16, 3, 2, 32, patch=8)
FRAMES, SIDE, TOKENS = 4, 32, 32


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def inputs(clips: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (clips, 3, FRAMES, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(clips)])
    return video, order[:, :8], order[:, 8:]


def pretraining_pass(model: Any) -> tuple[Tensor, ...]:
    """The first pass of cached gradients, then a pass with its backward."""
    video, visible, target = inputs()
    with torch.no_grad():
        first = model(video, visible)
    output = model(video, visible, target)
    (output.prediction_BMP.square().mean() + output.embedding_BE.square().mean()).backward()
    return first.embedding_BE, output.prediction_BMP, output.embedding_BE


def autoencoder(checkpointing: bool, size: ModelSize = SIZE) -> MaskedVideoAutoencoder:
    return MaskedVideoAutoencoder(
        size, FRAMES, SIDE, embedding_width=8, options=ModelOptions(activation_checkpointing=checkpointing)
    )


def same(one: nn.Module, other: nn.Module, results: tuple[Any, Any]) -> None:
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("size", [SIZE, replace(SIZE, decoder_attention="cross")], ids=["self", "cross"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_blocks_share_three_compilations_and_keep_the_numbers(checkpointing: bool, size: ModelSize) -> None:
    """Six blocks without gradient, six and three with: not 15 compilations but 3, and none on the second step."""
    counter = CompileCounterWithBackend("aot_eager")
    eager, compiled = autoencoder(checkpointing, size), autoencoder(checkpointing, size)
    compile_blocks(compiled, backend=counter, fullgraph=True)
    for _ in range(2):
        same(compiled, eager, (pretraining_pass(compiled), pretraining_pass(eager)))
        assert counter.frame_count == 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_classifier_compiles_its_blocks_with_drop_path(checkpointing: bool) -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def classifier() -> VideoClassifier:
        return VideoClassifier(
            SIZE, FRAMES, SIDE, classes=5, options=ModelOptions(drop_path=0.3, activation_checkpointing=checkpointing)
        ).train()

    eager, compiled = classifier(), classifier()
    compile_blocks(compiled, backend=counter, fullgraph=True)
    scores = [model(inputs()[0], torch.arange(2)) for model in (compiled, eager)]
    for each in scores:
        each.square().sum().backward()
    same(compiled, eager, ([scores[0]], [scores[1]]))
    assert counter.frame_count == 1


def test_in_bf16_the_blocks_are_still_one_graph() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model = autoencoder(False).bfloat16()
    compile_blocks(model, backend=counter, fullgraph=True)
    pretraining_pass(model)
    assert counter.frame_count == 3


def test_weights_keep_their_names() -> None:
    model = autoencoder(False)
    names = list(model.state_dict())
    compile_blocks(model, backend="eager")
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("model", [autoencoder(False), autoencoder(True)], ids=["plain", "checkpointed"])
def test_the_whole_model_is_one_graph(model: MaskedVideoAutoencoder) -> None:
    """What lies between the blocks breaks no graph either."""
    video, visible, target = inputs()
    whole = torch.compile(model, backend="eager", fullgraph=True)
    found = whole(video, visible, target)
    torch.testing.assert_close(found.prediction_BMP, model(video, visible, target).prediction_BMP)
