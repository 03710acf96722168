"""Test of a finetuned classifier: its probabilities averaged over several views of each video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgm_scale.assembly.parts import autoencoder
from tgm_scale.assembly.run_plan import shape_of
from tgm_scale.checkpoints import checkpoint, ema, folders
from tgm_scale.evaluation import baselines, probe, results
from tgm_scale.evaluation.cache import Clips, RowModel, cached_rows
from tgm_scale.evaluation.classes import untrained_note
from tgm_scale.evaluation.clips import PATIENCE, inference, own_samples
from tgm_scale.evaluation.features import FrozenEncoder, row_model
from tgm_scale.evaluation.labelled import written_notes
from tgm_scale.evaluation.settings import FinetuneConfig
from tgm_scale.evaluation.views import Decoding, Views
from tgm_scale.finetuning.classifier import build_classifier, positions_of
from tgm_scale.finetuning.setup import Parts
from tgm_scale.models.classifier import without_head_norm
from tgm_scale.models.patches import IMAGENET
from tgm_scale.runtime.distributed import HostCollectives
from tgm_scale.runtime.progress import ProgressBars


def evaluate(config: FinetuneConfig, folder: Path, parts: Parts) -> dict[str, Any]:
    """Test the newest checkpoint, or its averaged weights, and write results.json. Collective.

    Whole weights are read from the checkpoint, so this works at any ZeRO stage."""
    newest = folders.latest(folder / "checkpoints")
    assert newest is not None, "training ended without a checkpoint"
    reader, settings, data, process = (
        checkpoint.Reader(newest),
        config.finetune,
        config.data,
        parts.collectives.process,
    )
    step = reader.progress.step
    positions = positions_of(reader.manifest)
    module = build_classifier(config, len(parts.classes), positions)
    weights = ema.read(folder, step) if settings.ema else reader.weights()
    module.load_state_dict(without_head_norm(weights, reader.manifest, averaged=settings.ema is not None))
    module.to(process.device).eval()

    @torch.no_grad()
    def probabilities(video: Tensor) -> Tensor:
        with inference(process.device):
            scores_BC = module(video.to(process.device)).float()
        finite_B1 = scores_BC.isfinite().all(1, keepdim=True)  # softmax would turn minus infinity into 0
        return scores_BC.softmax(dim=1).where(finite_B1, torch.nan)

    views = Views(
        data.frames,
        data.size,
        data.stride,
        data.sampling,
        settings.test_temporal_views,
        settings.test_spatial_views,
        data.standardise,
    )
    made_by = ("finetuned", str(step), *(entry["blake2b"] for entry in reader.manifest["files"]), str(settings.ema))
    collectives = HostCollectives(process, PATIENCE)
    with ProgressBars() as bars:
        task = bars.task("videos tested", own_samples(parts.test.refs, process.rank, process.world_size))
        decoding = Decoding(views, data.workers, task.advance)
        model = RowModel(probabilities, module, made_by)
        clips = cached_rows(folder / "test", model, parts.test, decoding, collectives)
        measured = _baselines(config, folder, parts, replace(decoding, progress=lambda videos: None), bars)
    found: dict[str, Any] = {}
    if process.is_main:
        scores_MC = clips.features[0]
        truth_M = results.class_numbers(parts.classes, clips.labels)
        found = {
            "method": "finetuning",
            "checkpoint": str(newest),
            "init_from": config.train.init_from,
            "figures": results.classification_metrics(scores_MC, truth_M, clips.labels),
            "facts": {
                "classes": len(parts.classes),
                **results.interpolation_note(positions, data.frames, data.size),
                **results.optional_note(
                    untrained_note(parts.lacking, len(clips.labels)),
                    *written_notes(parts.classes, parts.train, parts.test),
                ),
                **results.baselines(scores_MC, truth_M, clips, parts.train.sample_labels),
                **results.cautions(scores_MC, parts.classes),
                "training videos": len(parts.train.refs),
                "views": views.described(),
            },
            **parts.opened,
        }
        if measured:
            right_M = scores_MC.argmax(1) == truth_M
            found["baselines"] = {name: one.beside(right_M, clips.keys) for name, one in measured.items()}
        rows = results.predictions(clips, parts.classes, scores_MC)
        found = results.write(folder, found, rows, {"train": parts.train.problems, "test": clips.problems})
        print(results.summary(found, folder), flush=True)
    collectives.barrier()
    return found


def _baselines(
    config: FinetuneConfig, folder: Path, parts: Parts, decoding: Decoding, bars: ProgressBars
) -> dict[str, baselines.Measured]:
    """Measure the run's baselines, on the main process; empty if finetune.baselines is off. Collective."""
    if not config.finetune.baselines:
        return {}
    collectives, seed = HostCollectives(parts.collectives.process, PATIENCE), config.run.seed
    of = baselines.Comparison(
        folder / "baselines", {"train": parts.train, "test": parts.test}, decoding, collectives, seed, bars
    )
    shape, device, data = shape_of(config), parts.collectives.process.device, config.data
    begun = autoencoder(shape, config.model, seed, None, IMAGENET)
    encoder = FrozenEncoder(begun.encoder.to(device), shape.size, data.frames, data.size, data.stride, device=device)

    def scores(train: Clips, labels_N: Tensor, test: Clips) -> Tensor:
        validation = probe.Validation(seed, train.groups)
        return probe.probe(train.features[0], labels_N, test.features[0], validation, device).scores_MC

    what = f"linear probe on 2 x 2 places of the first values ({config.model.initialisation})"
    views = replace(decoding.views, temporal=1, spatial=1)
    random = baselines.Baseline(what, row_model(encoder, "2x2"), scores, views)
    return of.measure({**baselines.of_pixels(of), "random weights": random}, parts.classes)
