"""`tgm-scale preview`: from a corpus and a tower to one page."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter

import torch

from tgm_scale.assembly.corpora import make_synthetic, open_corpora
from tgm_scale.contracts import Problem
from tgm_scale.conversion.weights import build
from tgm_scale.data.access.storage import write_atomically
from tgm_scale.data.shards.inventory import corpus_inventory, refuse_without_captions
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.preview import words
from tgm_scale.preview.clips import Clip, read_clips, sampling_of
from tgm_scale.preview.figures import Figures, figures_of
from tgm_scale.preview.looks import Looker
from tgm_scale.preview.page import Shown, compose, picture_clip
from tgm_scale.preview.settings import Settings, resolve
from tgm_scale.report import html
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import message

WITHOUT_CAPTIONS = "--recipes tube motion_guided"


def preview(options: argparse.Namespace) -> int:
    """Write the page and return the exit code. Raises ValueError for wrong options, or if no clip can be shown."""
    began = time.monotonic()
    settings = resolve(options)
    model = _model(settings)
    with ProgressBars() as bars:
        clips, problems = _read(settings, options, bars)
        found, shown = _look(settings, clips, model, bars)
    verdict = words.verdict(settings, found, len(clips), all(clip.synthetic for clip in clips))
    said = [*settings.other_than_run, *verdict]
    page = html.render(compose(settings, said, found, shown, problems, _again(options)))
    write_atomically(options.output, page.encode())
    print("\n".join(map(message, said)))
    seconds = time.monotonic() - began
    print(message(f"{options.output}: {len(shown)} clips, {len(page) / 1e6:.1f} MB, in {seconds:.0f} s"))
    return 0


def _model(settings: Settings) -> MaskedVideoAutoencoder | None:
    """Return the model that reconstructs; None without a checkpoint, or if it has not learned to."""
    weights = settings.weights
    if weights is None:
        return None
    if not ((weights.config or {}).get("objective") or {}).get("reconstruction_weight", 1.0):
        print("no reconstructions: the checkpoint's objective has no term pixels")
        return None
    model = build(weights)
    assert isinstance(model, MaskedVideoAutoencoder)
    return model


def _read(settings: Settings, options: argparse.Namespace, bars: ProgressBars) -> tuple[list[Clip], list[Problem]]:
    data = settings.config.data
    make_synthetic(data)
    opened = open_corpora(data, captions=False)
    for corpus in opened:
        print("\n".join(corpus_inventory(corpus.name, corpus).lines()), flush=True)
    if settings.speaks:
        refuse_without_captions(opened, WITHOUT_CAPTIONS)
    count = len(options.keys) or min(options.clips, sum(map(len, opened)))
    sampling = sampling_of(settings.config, settings.needs, settings.speaks)
    clips, problems = read_clips(
        settings.config, opened, sampling, count, options.keys, bars.task("clips read", count)
    )
    for problem in problems:
        print(message(f"left out: {problem.key}: {problem.reason}: {problem.detail}"), file=sys.stderr)
    if not clips:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(one.reason for one in problems).items())
        remedy = f"; recipes that read no caption: {WITHOUT_CAPTIONS}" if "no_caption" in reasons else ""
        raise ValueError(f"none of {len(problems)} clips looked at can be shown ({reasons}){remedy}")
    return clips, problems


def _look(
    settings: Settings, clips: list[Clip], model: MaskedVideoAutoencoder | None, bars: ProgressBars
) -> tuple[list[Figures], list[Shown]]:
    looker = Looker(settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    captions_nE = looker.embed(clips)
    task = bars.task("clips looked at", len(clips))  # only now: the towers' loading time is no clip's
    looks, shown = [], []
    for number, clip in enumerate(clips):
        looks.append(looker.look(clip, number, captions_nE))
        shown.append(picture_clip(clip, looks[-1], looker.ways, model, settings))
        task.advance()
    differ_nn = looker.differ(clips)
    return figures_of(looker.ways, looks, differ_nn, settings.config.run.seed), shown


def _again(options: argparse.Namespace) -> str:
    return message(f"tgm-scale preview {shlex.join(options.given)}")
