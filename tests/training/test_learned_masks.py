"""Masks that are learned with the model: by the real command, on one process and two; and what they learn."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from launch import run
from short_run import arguments
from torch import Tensor

from tgm_scale import config as configuration
from tgm_scale.assembly.checks import check
from tgm_scale.assembly.joint_module import JointModule, MaskSampling
from tgm_scale.assembly.learned_masks import load_learned
from tgm_scale.assembly.objective import weights_of
from tgm_scale.assembly.run_plan import plan_pretraining, run_masker
from tgm_scale.checkpoints.checkpoint import Reader
from tgm_scale.conversion.read import read, read_initial
from tgm_scale.demo.corpus.make import SyntheticSpec, render_clip
from tgm_scale.demo.corpus.truth import object_tokens
from tgm_scale.engine.plan import parameter_groups
from tgm_scale.evaluation.masks.relevance import slot_aucs
from tgm_scale.masking.recipes import build_masker
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelSize
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective
from tgm_scale.preview.looks import Looker
from tgm_scale.preview.settings import resolve
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.distributed import find_process

BASE = ["masking.mask_ratio=0.75", "train.steps=4", "checkpoint.every=2", "guidance.towers=small"]
TAUGHT = {"adamae": ("sampler", "policy"), "automae": ("generator", "adversary")}


def curve(folder: Path, term: str) -> list[list]:
    columns = ("data_digest", "loss", "loss_reconstruction", f"loss_{term}", "grad_norm")
    return [[row[name] for name in columns] for row in read_metrics(folder)]


@pytest.mark.parametrize("recipe", TAUGHT)
def test_a_run_resumes_to_the_bit_and_gives_its_model_without_the_mask(
    recipe: str, config: Path, tmp_path: Path
) -> None:
    """The digests are of the masks, too: they are the same with another layout, and after a stop."""
    folder, two, (source, term) = tmp_path / "run", tmp_path / "two", TAUGHT[recipe]
    settings = [f"masking.recipe={recipe}", *BASE, "model.decoder_attention=cross", "log.pictures_every=2"]
    said = run(1, arguments(config, *settings)).stdout
    assert f"objective 1 pixels + 0.0001 {term}" in said and "8 visible" in said
    pictures = [(folder / f"pictures/step-{step:08d}.png").read_bytes() for step in (2, 4)]
    assert pictures[0] != pictures[1]
    rows = curve(folder, term)
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    run(1, arguments(config, *settings))
    assert curve(folder, term) == rows

    run(2, arguments(config, *settings[:-1], f"run.dir={two}", "train.micro_batch_size=2", "deepspeed.stage=3"))
    others = curve(two, term)
    assert [row[0] for row in others] == [row[0] for row in rows]
    for row, other in zip(rows, others, strict=True):
        assert other[1:] == pytest.approx(row[1:], rel=1e-4)

    found = read(folder)
    assert found.kind == "pretraining" and not [name for name in found.state if "masks" in name]
    held = sum(name.startswith("masks.") for name in Reader(folder / "checkpoints/step-00000004").weights())
    said = f"left out masks.{source}.* ({held} tensors): of a learned mask, and no part of the model"
    assert held > 1 and said in found.notes
    assert not [name for name in read_initial(str(folder), found.size).weights if "masks" in name]
    look, of_two = load_learned(folder)[source], load_learned(two)[source]
    video = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    logits = look(video, look.model.grid)
    assert logits.shape == (2, 2, 4, 4) and look.learned.head.weight.std() > 1e-4, "it has left 0"
    torch.testing.assert_close(of_two(video, look.model.grid), logits, rtol=1e-3, atol=1e-4)

    preview = argparse.Namespace(
        clips=1, output=tmp_path / "page.html", checkpoint=str(folder), config=None, seed=None
    )
    preview.recipes, preview.overrides = None, []
    settings_of_run = resolve(preview)
    assert settings_of_run.maskers[0].name == recipe and source in settings_of_run.learned
    assert settings_of_run.other_than_run == []
    preview.config, preview.overrides = str(config), [*settings, "masking.mask_ratio=0.25"]
    [said] = resolve(preview).other_than_run
    assert said.startswith(f"Not as in the run of {folder}, since --config {config} wins over it: ")
    assert "masking.mask_ratio=0.25 (there 0.75)" in said, said
    preview.config, preview.overrides = None, []
    assert Looker(settings_of_run, torch.device("cpu")).towers.maps[source](video[:1], look.model.grid).std() > 0
    [other] = TAUGHT.keys() - {recipe}
    preview.recipes = [other]
    with pytest.raises(ValueError, match=rf"{other} is learned: give .*; {folder} learned {recipe}, not {other}$"):
        resolve(preview)
    preview.checkpoint, preview.recipes = None, [recipe]
    preview.overrides = [f"data.shards={config.parent}", "guidance.towers=small"]
    with pytest.raises(ValueError, match=rf"^masking\.recipe={recipe} is learned: give --checkpoint with a run that"):
        resolve(preview)


def test_the_sampler_learns_to_see_what_is_hard_to_reconstruct() -> None:
    """It knows no truth, and comes to prefer tokens of objects, also in clips that it has not seen."""
    spec = SyntheticSpec(frames=4, seed=1)
    size = ModelSize(48, 2, 2, 96, 32, 1, 2, 64, patch=8)
    model = MaskedVideoAutoencoder(size, frames=4, image_size=64, seed=0)
    objective = Objective.of({"pixels": 1.0, "policy": 1e-4}, TermSettings(size, normalise_by="clip"))
    module = JointModule(model, objective, masker=build_masker("adamae", model.grid, 0.9))
    clips = [render_clip(index, spec) for index in range(48)]
    video = torch.stack([torch.from_numpy(clip.frames) for clip in clips]).permute(0, 4, 1, 2, 3)
    held_out = [render_clip(index, spec) for index in range(1000, 1012)]

    def auc() -> float:
        found = []
        for clip in held_out:
            objects = torch.stack([torch.from_numpy(object_tokens(o.visible, model.grid)) for o in clip.truth.objects])
            with torch.no_grad():
                logits = module.maps(torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None])["sampler"]
            found += slot_aucs(logits[0], objects.any(0))
        return sum(found) / len(found)

    assert auc() == 0.5, "at first nothing is preferred"
    adam, losses, seen = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.9, 0.95)), [], []
    for step in range(40):
        index = torch.arange(step * 12, step * 12 + 12) % 48
        passed = module(video[index], None, None, sampling=MaskSampling(index + 100 * step))
        loss_T = passed.errors_TB.mean(1)
        (loss_T[0] + 1e-4 * loss_T[1]).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
        adam.step()
        adam.zero_grad()
        losses.append(loss_T.tolist())
        seen.append(passed.visible_BV)
    assert auc() > 0.8
    first, last = (torch.tensor(part).mean(0) for part in (losses[:5], losses[-5:]))
    assert (last < 0.95 * first).all()
    assert {tuple(tokens.shape) for tokens in seen} == {(12, 13)}, "as many as ever"


@pytest.mark.parametrize("recipe", TAUGHT)
def test_the_mask_s_loss_reaches_the_mask_s_parameters_alone(recipe: str) -> None:
    size = ModelSize(24, 1, 2, 48, 16, 1, 2, 32, patch=8)
    model = MaskedVideoAutoencoder(size, frames=4, image_size=32)
    masker, (source, term), heads = build_masker(recipe, model.grid, 0.5), TAUGHT[recipe], 4 * (recipe == "automae")
    module = JointModule(model, Objective.of({"pixels": 1.0, term: 1.0}, TermSettings(size)), 0, masker, heads)
    with torch.no_grad():
        module.masks[source].head.weight.fill_(0.1)
    random = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (3, 3, 4, 32, 32), generator=random, dtype=torch.uint8)
    sampling = MaskSampling(torch.arange(3), torch.rand(3, 4, 2, 4, 4, generator=random) if heads else None)
    for which in (0, 1):
        passed = module(video, None, None, sampling=sampling)
        passed.errors_TB[which].sum().backward()
        reached = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        of_mask = {name for name in reached if name.startswith("masks.")}
        assert reached and (of_mask == reached if which else not of_mask)
        if which:
            assert {name for name, _ in module.named_parameters() if name.startswith("masks.")} == of_mask
        module.zero_grad()


def test_the_generator_comes_to_hide_what_is_hard_by_the_heads_that_find_it() -> None:
    """Of four heads three attend at random and one to a square of noise, on flat ground: at first the square is hidden
    somewhat more often than the rest; then the tokens that are hidden are its own."""
    size = ModelSize(24, 1, 2, 48, 16, 1, 2, 32, patch=8)
    model = MaskedVideoAutoencoder(size, frames=2, image_size=64)
    objective = Objective.of({"pixels": 1.0, "adversary": 1.0}, TermSettings(size, normalise_by="clip"))
    module = JointModule(model, objective, 0, build_masker("automae", model.grid, 0.25), heads=4)
    random = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        """8 clips, where the square is, and the attention of the heads."""
        video = torch.full((8, 3, 2, 64, 64), 128, dtype=torch.uint8)
        square_B1RC = torch.zeros(8, 1, 8, 8)
        for clip in range(8):
            row, column = torch.randint(0, 5, (2,), generator=random).tolist()
            square_B1RC[clip, :, row : row + 4, column : column + 4] = 1
            noise = torch.randint(0, 256, (3, 2, 32, 32), generator=random, dtype=torch.uint8)
            video[clip, :, :, 8 * row : 8 * row + 32, 8 * column : 8 * column + 32] = noise
        heads_BASRC = torch.rand(8, 4, 1, 8, 8, generator=random) + 0.5
        heads_BASRC[:, 2] += 0.25 * square_B1RC
        return video, square_B1RC, heads_BASRC / heads_BASRC.sum((3, 4), keepdim=True)

    def found() -> float:
        """The share of hidden tokens that are the square's, which is a quarter of the frame."""
        shares = []
        for number in range(12):
            video, square_B1RC, heads = batch()
            mask = module.draw(video, MaskSampling(torch.arange(8) + 1000 * number, heads))
            shares.append(square_B1RC.flatten(1).gather(1, mask.target).mean())
        return float(torch.stack(shares).mean())

    before = found()
    groups = parameter_groups(module, 0.05, ("masks.", 10.0))
    for group in groups:
        group["lr"] = 2e-3 * group.get("lr_scale", 1.0)
    adam = torch.optim.AdamW(groups)
    for step in range(60):
        video, _, heads = batch()
        passed = module(video, None, None, sampling=MaskSampling(torch.arange(8) + 100 * step, heads))
        passed.errors_TB.mean(1).sum().backward()
        adam.step()
        adam.zero_grad()
    assert before < 0.3 and found() > 0.6


@pytest.mark.parametrize("stage", [1, 3])
def test_a_learned_mask_has_a_learning_rate_of_its_own(stage: int, config: Path, tmp_path: Path) -> None:
    """From 0, Adam's first update is the learning rate, whatever the gradient."""
    changes = []
    for rate in (1, 10):
        folder = tmp_path / str(rate)
        settings = [f"masking.options={{rate: {rate}}}", "optim.warmup_share=0", f"deepspeed.stage={stage}"]
        settings += ["masking.recipe=automae", *BASE, f"run.dir={folder}", "train.steps=1", "optim.base_lr=0.01"]
        run(1, arguments(config, *settings))
        changes.append(load_learned(folder)["generator"].learned.head.weight.abs().mean().item())
    assert changes[1] == pytest.approx(10 * changes[0], rel=1e-3) and changes[0] > 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objective.terms={contrast: 1}", "guidance.towers=small"],
         r"masking\.recipe=adamae learns from the error of reconstructed pixels, and objective\.terms\.pixels=0"),
        (["objective.terms={pixels: 1, policy: 0}"],
         r"objective\.terms\.policy=0: masking\.recipe=adamae would learn nothing by it: .*(1e-04|0\.0001)"),
        (["masking.recipe=tube", "objective.terms={pixels: 1, policy: 0.1}"],
         r"objective\.terms\.policy teaches another mask than that of masking\.recipe=tube: .*recipe=adamae"),
        (["objective.terms={pixels: 1, adversary: 0.1}"],
         r"objective\.terms\.adversary teaches another mask than that of masking\.recipe=adamae: .*recipe=automae"),
        (["masking.options={sources: {sampler: 1, random: 1}}", "objective.terms={pixels: 1}"],
         r"masking\.options\.sources: sampler is learned"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_learned_mask_is_refused(settings: list[str], message: str) -> None:
    base = ["guidance.towers=null", "masking.recipe=adamae"]
    with pytest.raises(ValueError, match=message):
        plan_pretraining(configuration.load("configs/debug.yaml", [*base, *settings]), find_process())


def test_its_weight_is_the_paper_s_unless_another_is_given() -> None:
    base = ["guidance.towers=null", "masking.recipe=adamae"]
    for given, weight in (
        (["objective.contrastive_weight=0"], 1e-4),
        (["objective.terms={pixels: 1, policy: 0.1}"], 0.1),
    ):
        config = configuration.load("configs/debug.yaml", [*base, *given])
        assert weights_of(config.objective, run_masker(config)) == {"pixels": 1.0, "policy": weight}


def test_a_mask_that_is_made_of_a_tower_s_attention_needs_one_before_anything_is_loaded() -> None:
    settings = ["masking.recipe=automae", "guidance.towers=null", "objective.contrastive_weight=0"]
    config = configuration.load("configs/debug.yaml", settings)
    with pytest.raises(
        ValueError, match=r"masking\.recipe=automae is guided by a frozen model \(heads\): set guidance"
    ):
        check(config, plan_pretraining(config, find_process()))
