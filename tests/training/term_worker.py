"""Runs terms of the objective on real engines: `torchrun ... term_worker.py CASES OUT`; see test_terms.py.

Each case trains a small model on made clips by some terms, at a layout and a stage. Where it is asked to, it compares
loss and gradient of each step with the plain formulas, on the whole global batch and without an engine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from step_worker import FRAMES, GLOBAL, MODELS, SIZE, WIDTH, live_weights, prepared
from torch import Tensor
from worker import answer

from tgm_scale.assembly.joint_module import JointModule, MaskSampling
from tgm_scale.checkpoints import checkpoint, folders
from tgm_scale.checkpoints.saver import Saver
from tgm_scale.contracts import BatchLayout
from tgm_scale.engine import build as engine
from tgm_scale.engine import state as engine_state
from tgm_scale.engine.plan import EnginePlan
from tgm_scale.masking.recipes import build_masker
from tgm_scale.models.patches import channel_last, gather_tokens, patchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import CAPTIONS, MASKS, EmbeddingPairs, TermSettings
from tgm_scale.objectives.terms import TERMS, Objective
from tgm_scale.runtime import seeding
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.training import term_state
from tgm_scale.training.step import JointStep, PreparedBatch

FEATURES, QUEUE, STEPS, SAVED, WEIGHT = 10, 11, 3, 1, 0.5
HEADS, GRID = 4, (2, 4, 4)
MODEL = MODELS["less"]
CLIPS = 40


@dataclass
class Whole:
    """A global batch on one process, and what the terms kept before it."""

    module: Any
    part: PreparedBatch
    output: Any
    group: int
    captions_seen: list[Tensor] = field(default_factory=list)

    @property
    def valid(self) -> list[int]:
        return [i for i, weight in enumerate(self.part.batch.weight.tolist()) if weight]

    def others(self, i: int, ids: Tensor | None = None) -> list[int]:
        """The clips that clip i is told from."""
        ids, first = self.part.caption_ids_B if ids is None else ids, i // self.group * self.group
        clips = self.part.batch.clip_ids
        return [j for j in self.valid if first <= j < first + self.group and ids[j] != ids[i] and clips[j] != clips[i]]


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def _normalised(patches_MP: Tensor) -> Tensor:
    x = patches_MP.double().unflatten(-1, (3, -1))
    return channel_last(((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True).sqrt() + 255e-6)).flatten(-2))


def pixels(whole: Whole) -> Tensor:
    prediction, patches = whole.output.prediction_BMP, whole.output.target_BMP
    return _mean([(prediction[i] - _normalised(patches[i])).square().mean() for i in whole.valid])


def differences(whole: Whole) -> Tensor:
    video = whole.part.batch.video.double()
    change = torch.stack([video[:, :, max(t, 1)] - video[:, :, max(t, 1) - 1] for t in range(FRAMES)], dim=2)
    patches = gather_tokens(patchify(change, MODEL.tubelet, MODEL.patch), whole.part.mask.target)
    prediction = whole.module.terms["differences"].head(whole.output.decoded_BMK)
    return _mean([(prediction[i] - _normalised(patches[i])).square().mean() for i in whole.valid])


def _apart(learned_BMF: Tensor, index_BM: Tensor, whole: Whole) -> Tensor:
    """2 - 2 cosine of what is learned of some tokens and the tower's features of them."""
    assert whole.part.features_BNF is not None
    tower_BNF = whole.part.features_BNF
    cosines = [F.cosine_similarity(learned_BMF[i], tower_BNF[i, index_BM[i]]) for i in whole.valid]
    return _mean([(2 - 2 * cosine).mean() for cosine in cosines])


def align(whole: Whole) -> Tensor:
    return _apart(whole.module.terms["align"].head(whole.output.tokens_BVD), whole.part.mask.visible, whole)


def predict(whole: Whole) -> Tensor:
    return _apart(whole.module.terms["predict"].head(whole.output.decoded_BMK), whole.part.mask.target, whole)


def _info_nce(whole: Whole, text: Tensor, scale: Any, ids: Tensor | None = None) -> Tensor:
    v, t = F.normalize(whole.output.embedding_BE, dim=-1), F.normalize(text, dim=-1)
    losses = []
    for i in whole.valid:
        among = [i, *whole.others(i, ids)]
        ways = torch.stack([scale * t[among] @ v[i], scale * v[among] @ t[i]])
        losses.append((ways.logsumexp(1) - ways[:, 0]).mean())
    return _mean(losses)


def contrast(whole: Whole) -> Tensor:
    return _info_nce(whole, whole.part.text_BE, whole.module.log_scale.exp())


def sigmoid(whole: Whole) -> Tensor:
    log_scale, bias = whole.module.terms["sigmoid"].learned
    v, t = (F.normalize(x, dim=-1) for x in (whole.output.embedding_BE, whole.part.text_BE))
    losses = []
    for i in whole.valid:
        own, others = log_scale.exp() * v[i] @ t[i] + bias, log_scale.exp() * t[whole.others(i)] @ v[i] + bias
        losses.append(-F.logsigmoid(own) - F.logsigmoid(-others).sum())
    return _mean(losses)


def nearest(whole: Whole) -> Tensor:
    text = whole.part.text_BE
    if not whole.captions_seen:
        return _info_nce(whole, text, 10.0)
    queue = F.normalize(torch.stack(whole.captions_seen[-QUEUE:]), dim=-1)
    chosen = (F.normalize(text, dim=-1) @ queue.T).argmax(1)
    equal = torch.tensor([int((queue == queue[c]).all(1).nonzero()[0]) for c in chosen])
    return _info_nce(whole, queue[chosen], 10.0, equal)


def policy(whole: Whole) -> Tensor:
    """-log p e of each target, p of the softmax over the whole clip."""
    logit_BN = whole.module.masks["sampler"](whole.module.model.embedded(whole.part.batch.video)).flatten(1)
    prediction, patches, target = whole.output.prediction_BMP.detach(), whole.output.target_BMP, whole.part.mask.target
    losses = []
    for i in whole.valid:
        error_M = (prediction[i] - _normalised(patches[i])).square().mean(1)
        log_p_M = logit_BN[i, target[i]] - logit_BN[i].exp().sum().log()
        losses.append((-log_p_M * error_M).mean())
    return _mean(losses)


def adversary(whole: Whole) -> Tensor:
    """Minus the targets' error by the weights of the logits as they were drawn, over those that are hidden."""
    map_BSRC = whole.module.masks["generator"](whole.part.heads_BASRC)
    noise_BN = seeding.gumbel(whole.part.batch.seeds, map_BSRC[0].numel(), "mask.gumbel")
    prediction, patches, target = whole.output.prediction_BMP.detach(), whole.output.target_BMP, whole.part.mask.target
    losses = []
    for i in whole.valid:
        error_M = (prediction[i] - _normalised(patches[i])).square().mean(1)
        slots = (map_BSRC + noise_BN.view_as(map_BSRC))[i].flatten(1)
        share_M = (slots.exp() / slots.exp().sum(1, keepdim=True)).flatten()[target[i]]
        losses.append(-(share_M * error_M).sum() / share_M.sum())
    return _mean(losses)


PLAIN: dict[str, Callable[[Whole], Tensor]] = {
    "pixels": pixels,
    "differences": differences,
    "align": align,
    "predict": predict,
    "contrast": contrast,
    "sigmoid": sigmoid,
    "nearest": nearest,
    "policy": policy,
    "adversary": adversary,
}


def by_itself(name: str, whole: Whole, objective: Objective) -> Tensor:
    """A term without a formula here: its own function of the whole batch, on clips of weight above 0 alone."""
    part, valid = whole.part, torch.tensor(whole.valid)
    if name in objective.clip:
        passed = whole.module(part.batch.video, part.mask.visible, part.mask.target, part.features_BNF)
        found: Tensor = passed.errors_TB[list(objective.clip).index(name)][valid].mean()
        return found
    term = whole.module.terms[name]
    negatives = Negatives(part.batch.weight, part.caption_ids_B, part.batch.clip_ids, whole.group)
    pairs = EmbeddingPairs(whole.output.embedding_BE, part.text_BE, negatives)
    return term.loss(pairs, term() if term.initial_values else torch.zeros(0)).loss


def clips(ids: list[int], tokens: int, garbage: bool) -> PreparedBatch:
    """garbage: clips of weight 0 show, say and look like something else."""
    part = prepared(ids, tokens)
    made = [torch.randn(tokens, FEATURES, generator=seeding.generator("features", i)) for i in ids]
    part.features_BNF = torch.stack(made)
    made = [torch.rand(HEADS, *GRID, generator=seeding.generator("heads", i)) for i in ids]
    part.heads_BASRC = torch.stack(made).softmax(dim=1)
    for index in (part.batch.weight == 0).nonzero().flatten().tolist() if garbage else []:
        part.batch.video[index], part.text_BE[index] = 255 - part.batch.video[index], 100.0
        part.features_BNF[index] = -1e6
        part.heads_BASRC[index] = 1e6
        part.caption_ids_B[index] += 1
    return part


def sampling_of(part: PreparedBatch, module: JointModule) -> MaskSampling:
    """With the tower's attention for a mask that is made of it, as a run's guidance gives it."""
    return part.sampling if "generator" in module.masks else MaskSampling(part.batch.seeds)


def objective_of(case: dict) -> Objective:
    setup = TermSettings(MODEL, FEATURES, WIDTH, queue=QUEUE)
    return Objective.of(dict.fromkeys(case["terms"], WEIGHT), setup, case.get("contrastive_batch"))


def module_of(objective: Objective) -> JointModule:
    """With the masks of `step_worker.prepared`, or as many tokens by a learned one."""
    model = MaskedVideoAutoencoder(MODEL, frames=FRAMES, image_size=SIZE, embedding_width=WIDTH, seed=0)
    if MASKS not in objective.needs:
        return JointModule(model, objective)
    recipe, heads = ("automae", HEADS) if "adversary" in objective.clip else ("adamae", 0)
    return JointModule(model, objective, 0, build_masker(recipe, model.grid, 0.75, decode_ratio=1 / 3), heads)


def run_case(case: dict, process: ProcessInfo, collectives: HostCollectives) -> dict[str, Any]:
    micro, ranks = case["micro"], process.world_size
    layout = BatchLayout(GLOBAL, micro, process.rank, ranks)
    objective, plain_objective = objective_of(case), objective_of(case)
    module, plain = module_of(objective), module_of(plain_objective)
    tokens = module.model.grid.tokens
    plan = EnginePlan(case["stage"], None, layout, case.get("precision", "fp32"), 1.0, 0.05, (0.9, 0.95))
    ds_engine = engine.build_engine(module, plan, process.device)
    step, progress = JointStep(ds_engine, process, layout, objective), checkpoint.Progress()
    folder = Path(case.get("folder", "."))
    if case.get("load"):
        progress = checkpoint.restore(ds_engine, folders.latest(folder))
        term_state.read(folder, objective, progress.step)
    sums: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros(gradient.shape)) + gradient.float() / ranks

    if case.get("plain"):
        for name, parameter in engine_state.named_parameters(ds_engine):
            parameter.register_hook(lambda gradient, name=name: add(name, gradient))
    found: dict[str, Any] = {"curve": [], "figures": [], "loss apart": 0.0, "gradient apart": 0.0}
    seen: list[Tensor] = []
    for t in range(progress.step, STEPS):
        if t == SAVED and "folder" in case and not case.get("load"):
            folder.mkdir(parents=True, exist_ok=True)
            if process.is_main:
                term_state.write(folder, objective, t, [])
            saver = Saver(folder, checkpoint.Retention(2), process, collectives, 0.0)
            saver.begin(ds_engine, progress, {})
            saver.finish()
        ids = [(t * GLOBAL + i) % CLIPS for i in range(GLOBAL)]
        starts = [(a * ranks + process.rank) * micro for a in range(layout.accumulation)]
        parts = [clips(ids[s : s + micro], tokens, case.get("garbage", False)) for s in starts]
        valid = collectives.sum([sum(float(part.batch.weight.sum()) for part in parts)])[0]
        engine.set_learning_rate(ds_engine, 1e-3)
        for part in parts if module.masker else []:
            part.mask, (_, part.heads_BASRC) = None, sampling_of(part, module)
        weights = live_weights(ds_engine) if case.get("plain") else {}
        sums.clear()
        result = step(parts, valid)
        if case.get("plain"):
            plain.load_state_dict(weights)
            part = clips(ids, tokens, garbage=False)
            if plain.masker:
                part.mask = plain.draw(part.batch.video, sampling_of(part, plain))
            assert part.mask is not None
            output = plain.model(part.batch.video, part.mask.visible, part.mask.target)
            whole = Whole(plain, part, output, case.get("contrastive_batch") or GLOBAL, seen)
            loss = torch.zeros(())
            for name, weight in objective.weights.items():
                own = PLAIN[name](whole) if name in PLAIN else by_itself(name, whole, plain_objective)
                loss = loss + weight * own
            compared(found, loss, float(result.loss or 0.0), plain, sums)
            seen += [part.text_BE[i] for i in whole.valid]
        progress.step = progress.updates = t + 1
        found["curve"].append([result.loss, result.grad_norm])
        found["figures"].append(result.metrics)
    states = {f"{name}.{k}": v for name, term in objective.coupled.items() for k, v in term.state().items()}
    found["kept"] = {name: value.double().sum().item() for name, value in states.items()}
    return found


def compared(found: dict[str, Any], loss: Tensor, result: float, plain: Any, sums: dict[str, Tensor]) -> None:
    """Note how far a step's loss and whole gradient are from the plain ones."""
    names, parameters = zip(*plain.named_parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    apart, norm = torch.zeros(()), torch.zeros(())
    for name, gradient in zip(names, gradients):
        wanted = torch.zeros(()) if gradient is None else gradient.float()
        mine = sums.get(name, torch.zeros_like(wanted))
        if dist.get_world_size() > 1:
            dist.all_reduce(mine := mine + torch.zeros_like(wanted))
        apart, norm = apart + (mine - wanted).square().sum(), norm + wanted.square().sum()
    wanted_loss = loss.item()
    found["loss apart"] = max(found["loss apart"], abs(wanted_loss - result) / abs(wanted_loss))
    found["gradient apart"] = max(found["gradient apart"], float((apart / norm).sqrt()))


def cases_of(terms: list[str], folder: str) -> tuple[dict[str, dict], dict[str, dict]]:
    """What one process runs, and what two do."""
    one: dict[str, dict] = {}
    two: dict[str, dict] = {}
    together = [name for name in terms if name != "adversary"]  # no run learns two masks
    every = [[name] for name in terms] + ([together] if len(terms) > 1 else [])
    for names in every:
        said = "+".join(names)
        base = {"terms": names, "stage": 0, "micro": GLOBAL}
        one[f"{said}: base"] = base | {"plain": True, "folder": f"{folder}/{said}"}
        one[f"{said}: again"] = base | {"load": True, "folder": f"{folder}/{said}"}
        one[f"{said}: garbage"] = base | {"garbage": True}
        one[f"{said}: accumulated"] = base | {"micro": 2, "plain": True}
        if any(CAPTIONS in TERMS[name].needs for name in names):
            one[f"{said}: groups"] = base | {"contrastive_batch": 4, "plain": True}
            two[f"{said}: groups, two processes"] = base | {"stage": 1, "micro": 2, "contrastive_batch": 4}
        two[f"{said}: stage 2"] = base | {"stage": 2, "micro": 2, "plain": True}
        two[f"{said}: stage 3"] = base | {"stage": 3, "micro": 4}
    order = sorted(two, key=lambda name: two[name]["stage"])  # ZeRO-3 last: it rounds differently from then on
    return one, {name: two[name] for name in order}


def results(process: ProcessInfo) -> dict[str, Any]:
    listing = json.loads(Path(sys.argv[1]).read_text())
    collectives = HostCollectives(process)
    cases = cases_of(listing["terms"] or list(TERMS), listing["folder"])[process.world_size - 1]
    return {name: run_case(case, process, collectives) for name, case in cases.items()}


if __name__ == "__main__":
    answer(results, sys.argv[2])
