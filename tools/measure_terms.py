"""What each term of the objective costs beside a step of pixels alone: processor time of a clip batch of the debug
configuration through the frozen models, the model, the loss and the backward pass, without the update.

Variants are measured in turns, and the least time of each is shown: other processes of the machine only add to it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tgm_scale import config as configuration
from tgm_scale.assembly.corpora import make_synthetic, open_corpora
from tgm_scale.assembly.parts import clip_loader, joint_module, objective
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.assembly.towers import load_towers
from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import CAPTIONS, MASKS, TARGETS, EmbeddingPairs, gradients
from tgm_scale.objectives.terms import TERMS
from tgm_scale.runtime import command
from tgm_scale.runtime.distributed import find_process
from tgm_scale.training.clip_guidance import ClipGuidance

EXAMPLES = """examples:
  OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= python tools/measure_terms.py     # about a minute of a core"""
# recipe, and the term added to pixels
VARIANTS = [("tube", name) for name in TERMS if MASKS not in TERMS[name].needs]
VARIANTS += [("text_guided", "pixels"), ("text_guided", "predict"), ("adamae", "policy")]
VARIANTS += [("attention", "pixels"), ("automae", "adversary")]
BASES = {"adamae": "tube", "automae": "attention"}  # the recipe that a learned one is compared with


def step_of(data: Path, recipe: str, term: str) -> Callable[[], None]:
    """Return a pass over eight clips, forward and backward."""
    terms = "{" + ", ".join(f"{name}: 1" for name in dict.fromkeys(("pixels", term))) + "}"
    given = [f"objective.terms={terms}", f"masking.recipe={recipe}", f"data.shards={data}", "data.synthetic.clips=8"]
    config, process = configuration.load("debug", given), find_process()
    make_synthetic(config.data)
    plan = plan_pretraining(config, process)
    assert plan.masker is not None
    corpora = open_corpora(config.data, plan.captions)
    towers = load_towers(config.guidance, plan.needs, CAPTIONS in plan.terms, process.device)
    [(_, [batch])] = clip_loader(plan, config.data, config.guidance, 0, corpora, range(1))
    guidance = ClipGuidance(plan.masker, towers, ToDevice(process.device))
    built = objective(config, plan.shape, towers)
    module = joint_module(config, plan.shape, towers, built)

    def step() -> None:
        part = guidance(batch)
        visible, target = (None, None) if part.mask is None else (part.mask.visible, part.mask.target)
        target = target if TARGETS in plan.terms else None
        passed = module(part.batch.video, visible, target, part.features_BNF, sampling=part.sampling)
        loss = sum((error_B.mean() for error_B in passed.errors_TB), torch.zeros(()))
        numbers = iter(passed.learned)
        for one in built.coupled.values():
            assert part.text_BE is not None
            learned = next(numbers) if one.initial_values else torch.zeros(0)
            negatives = Negatives(part.batch.weight, part.caption_ids_B, part.batch.clip_ids, len(batch))
            found = gradients(one, EmbeddingPairs(passed.embedding_BE, part.text_BE, negatives), learned)
            loss = loss + (passed.embedding_BE * found.video_GE).sum() + (learned * found.learned_L).sum()
            one.observe(part.text_BE, part.batch.weight, len(batch))
        loss.backward()
        module.zero_grad()

    return step


def measure(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        steps = {variant: step_of(Path(scratch) / "data", *variant) for variant in VARIANTS}
        least = dict.fromkeys(steps, float("inf"))
        for _ in range(options.turns):
            for variant, step in steps.items():
                began = time.process_time()
                step()
                least[variant] = min(least[variant], 1000 * (time.process_time() - began))
    rows = []
    for recipe, term in VARIANTS:
        spent, base = least[recipe, term], least[BASES.get(recipe, recipe), "pixels"]
        terms = term if term == "pixels" else f"pixels + {term}"
        rows.append((recipe, terms, f"{spent:.0f}", f"{spent - base:+.0f} ms, {spent / base - 1:+.0%}"))
    print(f"{headline()}; configs/debug.yaml, ms of processor time for 8 clips, the least of {options.turns} turns")
    print(table(("recipe", "terms", "forward and backward", "beside pixels"), rows))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    parser.add_argument("--turns", type=int, default=20, metavar="N", help="times that each is measured (default: 20)")
    options = parser.parse_args(arguments)
    return command.exit_code("measure_terms", lambda: measure(options))


if __name__ == "__main__":
    raise SystemExit(main())
