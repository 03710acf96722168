"""torch.compile, one transformer block at a time."""

from __future__ import annotations

from typing import Any

from torch import nn

from tgm_scale.models.vit import Block, CrossBlock


def compile_blocks(module: nn.Module, **options: Any) -> None:
    """Compile every `Block` and `CrossBlock` of `module`, in place; what lies between them stays as it is.

    All blocks share their code, so those of one shape share one compilation: 40 blocks take the compiler as long as
    one does, where a whole compiled model takes it 40 times as long (regional compilation). Shapes are static: each
    kind of pass (encoder, decoder, without gradient) is compiled once. Not for ZeRO stage 3 (see
    assembly.checks.check_compile). options: for torch.compile."""
    for block in module.modules():
        if isinstance(block, Block | CrossBlock):
            block.compile(dynamic=False, **options)
