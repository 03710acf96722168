"""Table of the rows, in order of importance: those that do not fit --minutes are left out from the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gpu_checks import others, pretraining, restarts
from gpu_checks.bench import Bench, Found
from gpu_checks.pretraining import GUIDED, TUBE


@dataclass(frozen=True)
class Row:
    """Promise of the docs. cuda, cpu: estimated seconds on one H100, and on one CPU core at tiny size."""

    name: str
    proves: str
    check: Callable[[Bench], Found]
    cuda: float
    cpu: float
    always: bool = False  # the other rows need it

    def seconds(self, device: str) -> float:
        return self.cpu if device == "cpu" else self.cuda

    def limit(self, device: str) -> float:
        """Return the time limit in seconds, with room for a first start that builds DeepSpeed's extensions, and on a
        CPU for other processes that share it."""
        return (600 if device == "cpu" else 120) + 5 * self.seconds(device)


def _speed(size: str, *own: str) -> Callable[[Bench], Found]:
    return lambda bench: pretraining.speed(bench, size, *own)


def _variant(*own: str, same_masks: bool = True) -> Callable[[Bench], Found]:
    return lambda bench: pretraining.variant(bench, "vitb-guided", *own, same_masks=same_masks)


def _zero(stage: int, offload: str = "none") -> Callable[[Bench], Found]:
    return partial(pretraining.zero, stage=stage, offload=offload)


ROWS = (
    Row("inputs", "shards and a CLIP, made here for the others", others.inputs, 15, 10, always=True),
    Row("card", "the GPUs, who else uses them, their own matrix rate", others.card, 8, 5),
    Row("tests", "the tests marked gpu", others.tests, 45, 60),
    Row("vitb-tube", "ViT-B, 16 x 224, bf16, tubes at 0.9", _speed("B", *TUBE), 16, 7),
    Row("vitb-guided", "ViT-B, guided by CLIP B/32 at 0.6, joint objective", _speed("B", *GUIDED), 18, 8),
    Row("resume", "kill and resume in bf16: the same clips, the curve as bf16 allows", restarts.bf16, 30, 20),
    Row("zero0", "ZeRO-0, two micro steps", _zero(0), 14, 8),
    Row("zero1", "ZeRO-1, against ZeRO-0", _zero(1), 14, 8),
    Row("zero2", "ZeRO-2, against ZeRO-0", _zero(2), 14, 8),
    Row("zero3", "ZeRO-3, against ZeRO-0", _zero(3), 14, 8),
    Row("several", "all visible GPUs over NCCL, against one", others.several, 30, 16),
    Row("exact", "kill and resume in deterministic fp32, ZeRO 0-2: to the last bit", restarts.exact, 30, 20),
    Row("vitl-tube", "ViT-L, 16 x 224, bf16, tubes at 0.9", _speed("L", *TUBE), 20, 7),
    Row("vitl-guided", "ViT-L, guided by CLIP B/32 at 0.6, joint objective", _speed("L", *GUIDED), 24, 8),
    Row("flash", "flash-attn's attention, against SDPA's", pretraining.flash, 18, 2),
    Row("compile", "torch.compile of model and tower, against eager",
         _variant("model.compile=true", "guidance.compile=true", same_masks=False), 60, 60),
    Row("checkpointing", "activation checkpointing: the same curve, less memory",
         _variant("model.activation_checkpointing=true"), 18, 8),
    Row("own-stream", "guidance a step ahead on a stream of its own: the same masks",
         _variant("guidance.own_stream=true"), 18, 8),
    Row("versus", "speed against transformers.VideoMAEForPreTraining, eager and compiled", others.versus, 45, 60),
    Row("preflight", "tgm-scale preflight", others.preflight, 12, 6),
    Row("two-ranks-one-gpu", "two ranks that are given one GPU are refused", others.shared_gpu, 12, 0),
    Row("data", "clips from shards through workers: what a step waits", others.data, 22, 10),
    Row("offload-optimizer", "Adam's state in the host's memory, against ZeRO-0", _zero(2, "optimizer"), 35, 10),
    Row("offload-all", "weights and Adam's state in the host's memory, against ZeRO-0", _zero(3, "all"), 18, 10),
    Row("masks", "every recipe's share of a step", others.masks, 30, 20),
    Row("demo", "the demo's short form", others.demo, 50, 60),
)  # fmt: skip
