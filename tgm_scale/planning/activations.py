"""Activations that the layers keep for the backward pass, counted as autograd keeps them (tests compare with torch's
own count).

Shapes: N tokens, D width of the model, M width of the MLP, V visible tokens, T targets, P values of a patch."""

from __future__ import annotations

from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.models.generator import generator_values


def activation_bytes(plan: RunPlan, activation_checkpointing: bool) -> float:
    """Return the peak bytes of a micro batch: all that is kept, the tensors made where forward and backward pass meet,
    and with checkpointing one whole block."""
    again = max(_blocks(plan)) if activation_checkpointing else 0.0
    return plan.layout.micro_batch * (kept_bytes(plan, activation_checkpointing) + again + _passing(plan))


def kept_bytes(plan: RunPlan, activation_checkpointing: bool) -> float:
    """Return the bytes kept of one clip at the end of its forward pass; with checkpointing only each block's input."""
    size, value, seen = plan.shape.size, _value(plan), plan.visible
    kept = seen * size.patch_values * value + 2 * seen * size.width * value  # embedded patches, the last norm
    inputs = [size.depth * seen * size.width * value]
    if plan.targets:
        cross = size.decoder_attention == "cross"
        tokens = plan.targets if cross else seen + plan.targets
        inputs.append(size.decoder_depth * tokens * size.decoder_width * value)
        kept += (tokens + plan.targets) * size.decoder_width * value  # input (all tokens) and output of the last norm
        kept += 2 * seen * size.decoder_width * value if cross else 0  # the norm of the visible tokens
        kept += 4 * plan.targets * size.patch_values  # the error, fp32
    depths = [size.depth, size.decoder_depth][: len(inputs)]
    if plan.heads:
        kept += 4 * generator_values(plan.heads, plan.shape.grid.tokens)
    elif plan.learns_mask:  # its block over all tokens, and the fp32 input of its head
        tokens = plan.shape.grid.tokens
        inputs.append(tokens * size.width * value)
        depths.append(1)
        kept += 4 * tokens * size.width
    if activation_checkpointing:
        return kept + sum(inputs)
    return kept + sum(depth * block for depth, block in zip(depths, _blocks(plan), strict=True))


def _blocks(plan: RunPlan) -> list[float]:
    """Return the bytes kept by a block of the encoder, one of the decoder if it runs, and that of a learned mask."""
    size, value = plan.shape.size, _value(plan)
    found = [_block(plan.visible, size.width, size.mlp, size.heads, value)]
    if plan.targets:
        width, mlp, heads = size.decoder_width, size.decoder_mlp, size.decoder_heads
        tokens, context = plan.visible + plan.targets, None
        if size.decoder_attention == "cross":
            tokens, context = plan.targets, plan.visible
        found.append(_block(tokens, width, mlp, heads, value, context))
    if plan.learns_mask and not plan.heads:
        found.append(_block(plan.shape.grid.tokens, size.width, size.mlp, size.heads, value))
    return found


def _block(tokens: int, width: int, mlp: int, heads: int, value: int, context: int | None = None) -> float:
    """Return the bytes kept by a block: inputs and outputs of two norms, q, the attention's output, the MLP before and
    after its GELU, and k and v, which are of `context` tokens in cross-attention; per token also one fp32 number for
    each head and two for each norm."""
    keys = 2 * width * value * (tokens if context is None else context)
    return tokens * ((6 * width + 2 * mlp) * value + 4 * heads + 16) + keys


def _passing(plan: RunPlan) -> float:
    """Return the transient bytes of one clip: predicted and target pixels and their gradient, fp32; or, if larger, the
    gradients on both sides of an MLP."""
    size, value = plan.shape.size, _value(plan)
    pixels = 3 * 4 * plan.targets * size.patch_values
    return max(pixels, 2 * value * plan.visible * size.mlp)


def _value(plan: RunPlan) -> int:
    return 4 if plan.engine.precision == "fp32" else 2
