"""Everything of a training step that is not the engine's, on the `meta` device: no host sync, no mixed devices.

What waits for the device is DECLARED, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from watch import META, Watch, empty, video, whole

from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.assembly.towers import Towers
from tgm_scale.contracts import Batch, BatchLayout, Grid, Mask
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.engine.plan import parameter_groups
from tgm_scale.masking.diagnostics import GuidanceMonitor, MotionMonitor
from tgm_scale.masking.recipes import RECIPES, build_masker
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions, ModelSize
from tgm_scale.objectives.contrastive import caption_ids
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import CoupledTerm, EmbeddingPairs, TermSettings, gradients
from tgm_scale.objectives.terms import TERMS, Objective
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training.clip_guidance import ClipGuidance
from tgm_scale.training.step import JointStep, PreparedBatch
from tgm_scale.training.task import Steps

# where a step reads the device, once, after the update's kernels are queued
DECLARED = "engine/build.py:make_update: a tensor copied to the host"

SIZE = ModelSize(48, 2, 2, 96, 24, 2, 2, 48, patch=8)
FRAMES, SIDE, WIDTH, CLIPS, HEADS = 4, 32, 16, 4, 2
GRID = Grid.of(FRAMES, SIDE, SIZE.tubelet, SIZE.patch)


def maps(needs: set[str], clips: int = CLIPS) -> dict[str, Tensor]:
    """What a masker may need, as the guidance gives it."""
    flow = empty((clips, FRAMES, 2, 2 * GRID.rows, 2 * GRID.columns))
    of_tokens = empty((clips, GRID.slots, GRID.rows, GRID.columns))
    return {name: flow if name == "flow" else of_tokens for name in needs}


def masks(recipe: str = "random", clips: int = CLIPS) -> Mask:
    masker = build_masker(recipe, GRID, 0.75, visible_ratio=0.2, decode_ratio=0.5)
    return masker(whole(clips), **maps(masker.needs, clips))


VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"recipe": name} for name in RECIPES},
    "mixed by rank, drawn": {"recipe": "text_guided", "sources": {"text": 0.7, "random": 0.3}, "temperature": 0.1},
    "running cell": {"recipe": "tube", "targets": "running_cell"},
    "parts by rank, whole": {"recipe": "part_based", "scale": "rank", "whole_parts": 0.5, "sources": {"text": 1.0}},
    "box over the clip": {"recipe": "motion_guided", "scale": "rank", "scope": "slot"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_are_made_without_waiting(variant: str) -> None:
    options = dict(VARIANTS[variant])
    masker = build_masker(options.pop("recipe"), GRID, 0.75, visible_ratio=0.2, decode_ratio=0.5, **options)
    with Watch() as watch:
        mask = masker(whole(CLIPS), **maps(masker.needs))
    assert not watch.waits
    assert mask.visible.shape == (CLIPS, masker.visible_count) and mask.visible.device == META
    assert mask.target.shape == (CLIPS, masker.target_count) and mask.target.device == META


def test_the_monitors_count_without_waiting_and_read_when_asked() -> None:
    masker = build_masker("text_guided", GRID, 0.75)
    guidance, motion = GuidanceMonitor(masker), MotionMonitor()
    relevance, weight = empty((CLIPS, GRID.slots, GRID.rows, GRID.columns)), empty((CLIPS,))
    with Watch() as watch:
        for _ in range(3):
            guidance.observe(whole(CLIPS), weight, whole(CLIPS), relevance, relevance)
            motion.observe(relevance, weight)
        assert not watch.waits
        guidance.metrics()
        motion.metrics()
    assert set(watch.waits.values()) == {2} and all("diagnostics.py:_latest" in site for site in watch.waits)


def batch(clips: int = CLIPS) -> Batch:
    captions = [f"a caption {i}" for i in range(clips)]
    numbers, weight = whole(clips), empty((clips,))
    motion = empty((clips, GRID.slots, GRID.rows, GRID.columns))
    crops = empty((clips, 5))
    return Batch(video(clips), captions, captions, numbers, weight, numbers, crops, weight, motion, motion)


class OnTheWay(ToDevice):
    """Moves as to a GPU: without a wait."""

    def __call__(self, batch: Batch) -> Batch:
        return batch.map(self.numbers)

    def numbers(self, tensor: Tensor) -> Tensor:
        return tensor.to(META, non_blocking=True)


@pytest.mark.parametrize("recipe", ["text_guided", "motion_guided", "tube"])
def test_the_guide_brings_a_batch_to_the_device_and_prepares_it_without_waiting(recipe: str) -> None:
    guidance = ClipGuidance(build_masker(recipe, GRID, 0.75), Towers(), OnTheWay(META))
    loaded = batch().map(lambda tensor: torch.ones(tensor.shape, dtype=tensor.dtype))
    with Watch() as watch:
        prepared = guidance(loaded)
    assert not watch.waits
    assert {prepared.caption_ids_B.device, prepared.hashes_B.device, prepared.batch.video.device} == {META}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("normalise_by", ["patch", "clip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decoder_attention", ["self", "cross"])
def test_model_loss_backward_and_update_wait_for_nothing(
    checkpointing: bool, normalise_by: Any, dtype: Any, decoder_attention: Any
) -> None:
    module = joint(checkpointing, normalise_by, replace(SIZE, decoder_attention=decoder_attention)).to(dtype)
    adam = torch.optim.AdamW(parameter_groups(module, 0.05), lr=1e-3, betas=(0.9, 0.95))
    mask = masks()
    with Watch() as watch:
        for _ in range(2):
            error_1B, embedding_BE, [log_scale], *_ = module(video(CLIPS), mask.visible, mask.target)
            (error_1B.mean() + embedding_BE.sum() + log_scale.sum()).backward()
            assert all(p.grad is not None and p.grad.device == META for p in module.parameters())
            adam.step()
            adam.zero_grad()
    assert not watch.waits


def joint(
    checkpointing: bool = False,
    normalise_by: Any = "patch",
    size: ModelSize = SIZE,
    weights: dict[str, float] | None = None,
) -> JointModule:
    with META:
        model = MaskedVideoAutoencoder(
            size, FRAMES, SIDE, embedding_width=WIDTH, options=ModelOptions(activation_checkpointing=checkpointing)
        )
        taught = {"policy": ("adamae", 0), "adversary": ("automae", HEADS)}
        recipe, heads = next((taught[name] for name in weights or {} if name in taught), ("", 0))
        masker = build_masker(recipe, model.grid, 0.75) if recipe else None
        return JointModule(model, terms(size, normalise_by, **(weights or {})), 0, masker, heads)


def terms(size: ModelSize = SIZE, normalise_by: Any = "patch", **weights: float) -> Objective:
    return Objective.of(
        weights or {"pixels": 1.0, "contrast": 1.0}, TermSettings(size, text=WIDTH, normalise_by=normalise_by)
    )


@pytest.mark.parametrize("name", [name for name in TERMS if issubclass(TERMS[name], CoupledTerm)])
def test_a_coupled_term_and_its_gradients_wait_for_nothing(name: str) -> None:
    clips = 8
    with META:
        term = terms(**{name: 1.0}).coupled[name]
    with Watch() as watch:
        negatives = Negatives(empty((clips,)), whole(clips), whole(clips), 4)
        for _ in range(2):
            pairs = EmbeddingPairs(empty((clips, WIDTH)), empty((clips, WIDTH)), negatives)
            found = gradients(term, pairs, empty((len(term.initial_values),)))
            term.observe(pairs.text_GE, negatives.weight_G, clips - 1)
        caption_ids(["a", "b"]).to(META, non_blocking=True)
    assert not watch.waits
    assert found.coupled.loss.shape == () and found.video_GE.shape == (clips, WIDTH)
    assert found.learned_L.shape == (len(term.initial_values),)


class StandIn:
    """In the engine's place: DeepSpeed's own reads and moves its parameters at start, which `meta` has none of."""

    def __init__(self, module: nn.Module, watch: Watch) -> None:
        self.module, self.optimizer, self.watch = module, torch.optim.AdamW(module.parameters(), lr=1e-3), watch
        self.optimizer.defaults["fused"] = True  # as on a GPU: Adam leaves out an update by a flag there
        self.waits_before_update: list[int] = []

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.waits_before_update.append(sum(self.watch.waits.values()))

    def zero_optimization_stage(self) -> int:
        return 1

    def get_global_grad_norm(self) -> Tensor:
        return empty(())

    def was_step_applied(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("more", "contrastive_batch", "passes"),
    [
        ({}, 8, 2),
        ({"contrast": 1.0}, 4, 2),
        ({"contrast": 1.0}, 8, 4),
        ({"contrast": 1.0, "policy": 1.0}, 8, 4),
        ({"contrast": 1.0, "adversary": 1.0}, 8, 4),
    ],
    ids=["reconstruction", "one pass", "two passes", "two passes, adamae", "two passes, automae"],
)
def test_a_joint_step_waits_only_where_it_is_declared(
    more: dict[str, float], contrastive_batch: int, passes: int
) -> None:
    module = joint(weights={"pixels": 1.0} | more)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    watch = Watch()
    engine = StandIn(module, watch)
    with META:
        objective = Objective.of({"pixels": 1.0} | more, TermSettings(SIZE), contrastive_batch)
    step = JointStep(engine, ProcessInfo(0, 1, 0, META), BatchLayout(2 * CLIPS, CLIPS), objective)
    with watch:
        micro = []
        for _ in range(2):
            mask = None if {"policy", "adversary"} & more.keys() else masks()
            micro.append(PreparedBatch(batch(), mask, empty((CLIPS, WIDTH)), whole(CLIPS), whole(CLIPS)))
            if "adversary" in more:
                grid = module.model.grid
                micro[-1].heads_BASRC = empty((CLIPS, HEADS, grid.slots, grid.rows, grid.columns))
        result = step(micro, 8.0, limit=2.0)
    assert len(calls) == passes and result.refusal is None
    assert dict(watch.waits) == {DECLARED: 1}
    assert engine.waits_before_update == [0, 0], "micro step, update: both are queued before the host waits"
    assert engine.optimizer.found_inf.device == META, "the device itself leaves out an update that is not fit"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_classifier_drops_paths_without_waiting(checkpointing: bool) -> None:
    with META:
        model = VideoClassifier(
            SIZE, FRAMES, SIDE, classes=5, options=ModelOptions(drop_path=0.5, activation_checkpointing=checkpointing)
        ).train()
    with Watch() as watch:
        scores = model(video(CLIPS), whole(CLIPS))
        torch.nn.functional.cross_entropy(scores.float(), empty((CLIPS, 5))).backward()
        model.eval()(video(CLIPS))
    assert not watch.waits
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_pairs_are_mixed_without_waiting(mixup: float, cutmix: float) -> None:
    from tgm_scale.finetuning.augment import PairMixer

    mixer = PairMixer(mixup, cutmix, 0.1, classes=5, repeats=2)
    with Watch() as watch:
        mixed, targets = mixer(video(8), whole(8), list(range(8)), [1.0] * 8)
    assert not watch.waits
    assert mixed.shape == (8, 3, 4, 32, 32) and targets.shape == (8, 5)


def test_a_finetuning_copies_a_step_ahead_once_its_unlabelled_clips_are_left_out() -> None:
    from tgm_scale.finetuning.task import Finetuning

    order: list[str] = []

    class Recording(ToDevice):
        def ahead(self, steps: Steps) -> Iterator[tuple[int, list[Batch]]]:
            for step, batches in super().ahead(steps):
                order.append(f"copy {step}")
                yield step, batches

    task = Finetuning.__new__(Finetuning)
    task.to_device = Recording(torch.device("cpu"))
    task.parts = SimpleNamespace(leave_out_unlabelled=lambda one: order.append("left out"))  # type: ignore[assignment]
    assert [ready.step for ready in task.prepare_steps([(3, [batch(), batch()]), (4, [batch()])])] == [3, 4]
    assert order == ["left out", "left out", "copy 3", "left out", "copy 4"]
