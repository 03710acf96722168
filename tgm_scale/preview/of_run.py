"""Reconstruction by a run's newest checkpoint of the clips that `log.pictures_every` draws, for the run's report."""

from __future__ import annotations

import dataclasses
import io
import sys

import torch

from tgm_scale.assembly.checks import check_shards
from tgm_scale.assembly.corpora import open_corpora
from tgm_scale.assembly.learned_masks import load_learned
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.assembly.towers import load_towers
from tgm_scale.checkpoints.folders import steps_in
from tgm_scale.config import Config, checked
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import build
from tgm_scale.evaluation.watched import drawn
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.report.run_view import Reconstruction, RunView
from tgm_scale.runs import status
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.terminal import message
from tgm_scale.training.pictures import masked_clips


def with_reconstruction(view: RunView) -> RunView:
    """Return the run with a picture of its newest checkpoint, unless it has one as new.

    If none can be made, a complaint is added. Finetunings, evaluations of features and runs without a checkpoint stay
    unchanged. Nothing is written."""
    steps = steps_in(view.root / "checkpoints")
    if not steps or "masking" not in view.tree or (view.reconstruction and view.reconstruction.step >= steps[-1]):
        return view
    try:
        return dataclasses.replace(view, reconstruction=_of_newest(view))
    except (ValueError, OSError) as error:
        said = f"The newest checkpoint's reconstructions are not drawn: {error}"
        print(message(f"{view.name}: {said}"), file=sys.stderr)
        return dataclasses.replace(view, complaints=[*view.complaints, said])


def _of_newest(view: RunView) -> Reconstruction | None:
    """Draw the newest checkpoint's reconstruction; None if the run's objective reconstructs nothing."""
    folder = view.root / "checkpoints"
    step = steps_in(folder)[-1]
    config = checked(status.read_tree(str(view.root)), str(view.root / "config.yaml"), Config)
    if not config.objective.reconstruction_weight:
        return None
    print(f"{view.name}: reading the checkpoint of step {step}", flush=True)
    guidance = config.guidance.model_copy(update={"compile": False})
    config = config.model_copy(update={"guidance": guidance})
    cpu = torch.device("cpu")  # a GPU here may be the run's own
    plan = plan_pretraining(config, ProcessInfo(0, 1, 0, cpu))
    assert plan.masker is not None
    check_shards(config.data)
    corpora = open_corpora(config.data, captions=False)
    towers = load_towers(guidance, plan.masker.needs, embed_captions=False, device=cpu)
    checkpoint = folder / f"step-{step:08d}"
    model = build(read(checkpoint))
    if plan.learns_mask:
        towers.maps |= load_learned(checkpoint)
    clips, part, of_what = masked_clips(config, plan, corpora, towers, cpu)
    assert isinstance(model, MaskedVideoAutoencoder) and part.mask is not None
    stream = io.BytesIO()
    drawn(model, clips.keys, clips.video, part.mask, config.objective.normalise_by).save(stream, "PNG", optimize=True)
    return Reconstruction(step, stream.getvalue(), of_what)
