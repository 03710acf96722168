"""Train the small CLIP of the demo on frames of the synthetic corpus."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from tgm_scale.demo.clip.training import LabelledImages, Recipe, TrainingData, train
from tgm_scale.demo.corpus.patches import attributes, labelled_images, wording
from tgm_scale.demo.corpus.truth import every_caption
from tgm_scale.runtime import command, seeding
from tgm_scale.runtime.progress import ProgressBars

EXAMPLES = """examples:
  python tools/train_small_clip.py --output runs/small_clip                 about 20 minutes on one CPU core
  python tools/train_small_clip.py --output runs/try --steps 200            a look at the beginning

The folder is in the Hugging Face layout and loads like any other CLIP: guidance.towers=runs/small_clip"""

BATCH = 32
EASY, HARD = 0.15, 0.9  # difficulty at the start, and from half of the steps on


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing; not one with a model in it")
    add("--steps", type=int, default=Recipe.steps, help="default %(default)s, of 32 images each")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    return command.exit_code("train_small_clip", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.steps < 1 or (options.output / "config.json").exists():
        raise ValueError(f"--steps {options.steps} is below 1, or {options.output} holds a model already")
    torch.set_num_threads(options.threads)
    recipe = replace(Recipe(), steps=options.steps, seed=options.seed)
    began = time.monotonic()
    with ProgressBars() as bars:
        task = bars.task("steps of the small CLIP", recipe.steps)
        data = TrainingData(
            batches(recipe),
            lambda step: wording(seeding.key(recipe.seed, "wording", step)),
            [*every_caption(), *wording(0)],
            attributes(),
        )
        train(recipe, data, options.output, lambda step, loss: task.to(step, f"loss {loss:.3f}"))
    print(f"{options.output}: {recipe.steps} steps in {(time.monotonic() - began) / 60:.0f} minutes")
    return 0


def batches(recipe: Recipe) -> Iterator[LabelledImages]:
    """Yield fresh images for every step, with growing difficulty."""
    seed = seeding.key(recipe.seed, "training images")
    for step in range(recipe.steps):
        difficulty = EASY + (HARD - EASY) * min(1.0, 2 * step / recipe.steps)
        yield LabelledImages(*labelled_images(seed, step * BATCH, BATCH, difficulty, recipe.image_size, recipe.patch))


if __name__ == "__main__":
    raise SystemExit(main())
