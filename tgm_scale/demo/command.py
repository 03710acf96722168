"""Stages of the demo, each from files to files, so that it can be stopped after any of them and resumed."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from tgm_scale.assembly.run_plan import run_masker, shape_of
from tgm_scale.conversion.convert import convert
from tgm_scale.conversion.read import read
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.demo import story
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.demo.gallery import gallery, strips
from tgm_scale.demo.plan import VARIANTS, Figures, Plan
from tgm_scale.demo.summary import Summary
from tgm_scale.evaluation.labelled import SYNTHETIC_MOTION
from tgm_scale.evaluation.masks import relevance
from tgm_scale.evaluation.variants import Accuracies, compare_variants
from tgm_scale.guidance.image import SCORERS
from tgm_scale.guidance.towers import load_image_tower, load_text_tower, tower_folder
from tgm_scale.report import html
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.files import making, replace_file
from tgm_scale.runtime.progress import ProgressBars

LABELS = {"motion": SYNTHETIC_MOTION, "shape": "truth.objects.0.shape", "colour": "truth.objects.0.colour"}
EVALUATED_CLIPS = 60
STRIPS = 4
_TEST_SEED = 1000  # for held-out corpora; training corpora have seed 0


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(value, indent=1) + "\n")


def make_corpora(plan: Plan, bars: ProgressBars) -> Figures:
    """Make two training corpora (objects with look-alikes; one mover) and three held-out ones, as shards."""
    wanted = {  # mode, clips, seed
        "named": ("named", plan.clips, 0),
        "mover": ("one_mover", plan.clips, 0),
        "mover-probe": ("one_mover", plan.test_clips, _TEST_SEED),
        "mover-test": ("one_mover", plan.test_clips, _TEST_SEED + 1),
        "named-test": ("named", STRIPS, _TEST_SEED + 1),
    }
    task = bars.task("clips made", sum(clips for _, clips, _ in wanted.values()))
    for name, (mode, clips, seed) in wanted.items():
        folder, before = plan.corpus(name), task.done
        if not folder.exists():
            workers = min(os.cpu_count() or 1, 8)
            spec = SyntheticSpec(seed=seed, mode=mode)

            def count(done: int, before: int = before) -> None:
                task.to(before + done)

            with making(folder) as unfinished:
                make_corpus(unfinished, clips, spec, workers, progress=count)
        task.to(before + clips)
    return {}


def evaluate_masks(plan: Plan, bars: ProgressBars) -> Figures:
    """Measure whether relevance points at the named object, on held-out clips, for every scorer and control."""
    config = plan.run_config()
    assert config.guidance.towers is not None, "the demo's configuration names towers"
    towers, grid = tower_folder(config.guidance.towers), shape_of(config).grid
    text = load_text_tower(towers, torch.device("cpu"), torch.float32)
    image = load_image_tower(towers, torch.device("cpu"), torch.float32)
    scorers = {name: relevance.towers_scorer(text, image, name, grid) for name in SCORERS}
    scorers["colour_control"] = relevance.colour_scorer(grid)
    clips = min(EVALUATED_CLIPS, plan.test_clips)
    task = bars.task("masks evaluated", len(scorers) + 1)
    spec = SyntheticSpec(frames=config.data.frames, seed=_TEST_SEED)
    measured = {}
    for name, scorer in scorers.items():
        measured[name] = relevance.evaluate(scorer, clips, grid, spec)
        task.advance()
    chosen, masker = measured[config.guidance.scorer], run_masker(config)
    hidden = chosen.hidden
    own = relevance.evaluate(scorers[config.guidance.scorer], clips, grid, spec, masker)
    task.advance()
    return {
        "mask": {
            **{f"{role}_hidden": share for role, share in hidden.items()},
            "distractor_hidden": (hidden["same_colour"] + hidden["same_shape"]) / 2,
            "random_hidden": masker.hidden_count / grid.tokens,
            "absent_caption_hidden": chosen.absent_hidden,
            "of_the_runs": {f"{role}_hidden": share for role, share in own.hidden.items()},
            "colour_control_same_colour_hidden": measured["colour_control"].hidden["same_colour"],
        },
        "relevance_auc": {**{name: one.auc for name, one in measured.items()}, "absent_caption": chosen.absent_auc},
    }


def probe_features(plan: Plan, bars: ProgressBars) -> Figures:
    """Measure how frozen features predict the mover's motion, shape and colour: joint, MAE alone, random
    initialisation."""
    train, test = (open_corpus(str(plan.corpus(name))) for name in ("mover-probe", "mover-test"))
    task = bars.task("clips through 3 encoders a seed", len(train) + len(test))
    seeds = list(range(plan.seeds))
    variants = {name: [plan.run(name, seed) for seed in seeds] for name in VARIANTS}
    found = compare_variants(variants, seeds, train, test, LABELS, progress=task.advance)
    one = found["motion"]
    return {
        "labels": {label: _of_label(accuracies) for label, accuracies in found.items()},
        "train_clips": one.train_clips,
        "test_clips": one.test_clips,
    }


def _of_label(found: Accuracies) -> Figures:
    return {
        "probe": {
            name: {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0}
            for name, values in found.probe.items()
        },
        "knn": {name: fmean(values) for name, values in found.knn.items()},
        "gain": {name: interval._asdict() for name, interval in found.probe_gain.items()},
        "knn_gain": {name: interval._asdict() for name, interval in found.knn_gain.items()},
        "chance": found.chance,
    }


def export(plan: Plan) -> Figures:
    """Export the first joint run to the Hugging Face layout, checked by loading it with transformers."""
    folder = plan.folder / "huggingface"
    shutil.rmtree(folder, ignore_errors=True)
    return {"max_difference": convert(read(plan.run("joint", 0)), folder, "huggingface").difference}


def summarise(plan: Plan, figures: Figures, seconds: float) -> Summary:
    """Collect the figures under the names that users rely on, and write summary.json."""
    losses = [row["loss_reconstruction"] for row in read_metrics(plan.run("joint", 0))]
    few = max(1, len(losses) // 50)
    features = figures["features"]
    summary = {
        "loss": {"first": fmean(losses[:few]), "last": fmean(losses[-few:])},
        **figures["masks"],
        **{
            figure: {label: found[figure] for label, found in features["labels"].items()}
            for figure in ("probe", "knn", "gain", "knn_gain", "chance")
        },
        "export": figures["export"],
        "seconds": seconds,
    }
    write_json(plan.folder / "summary.json", summary)
    return summary


def write_report(plan: Plan, summary: Summary, figures: Figures) -> Path:
    """Write report.html with embedded pictures, and return its path."""
    features = figures["features"]
    config = plan.run_config()
    cores = f"{os.cpu_count()} {platform.machine()} cores"
    facts = {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else cores,
        "train_clips": features["train_clips"],
        "test_clips": features["test_clips"],
        "seeds": plan.seeds,
        "steps": config.train.steps,
        "batch": config.train.global_batch_size,
        "clips": plan.clips,
        "normalise_by": config.objective.normalise_by,
        "commands": [
            shlex.join(["tgm-scale", "pretrain", "--config", plan.config, *plan.overrides(name, 0)])
            for name in VARIANTS
        ],
    }
    runs = {f"{name} {seed}": plan.run(name, seed) for name in VARIANTS for seed in range(plan.seeds)}
    shown = strips(config, plan.run("joint", 0), open_corpus(str(plan.corpus("named-test"))))
    curves, bars = story.loss_curves(runs), story.probe_bars(summary)
    recipes = gallery(towers=config.guidance.towers or "small", scorer=config.guidance.scorer)
    path = plan.folder / "report.html"
    replace_file(path, html.render(story.compose(summary, shown, recipes, curves, bars, facts)))
    return path
