"""Nearest-neighbour accuracy on a small labelled set during pretraining: what the loss curve does not show.

Shapes: B clips, D width of the encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tgm_scale.assembly.run_plan import shape_of
from tgm_scale.config import Config
from tgm_scale.contracts import Problem
from tgm_scale.data.lists.reading import Role, Selection, is_list
from tgm_scale.data.shards.inventory import refuse_above
from tgm_scale.evaluation import knn, results
from tgm_scale.evaluation.classes import in_order, untrained_classes, untrained_note
from tgm_scale.evaluation.clips import PASS
from tgm_scale.evaluation.labelled import (
    LabelledCorpus,
    labelled_inventory,
    open_labelled,
    overlap_note,
    refuse_unsplit,
    written_notes,
)
from tgm_scale.evaluation.session import PARTS
from tgm_scale.evaluation.views import Decoder, Decoding, Views
from tgm_scale.models.patches import patchify
from tgm_scale.runtime.distributed import HostCollectives


def knn_selection(config: Config, role: Role) -> Selection:
    """Return the selection of a list for the nearest neighbours: by the groups of the data if both parts are one
    list."""
    settings, data = config.knn, config.data
    if data.test_groups is None or settings.train != settings.test or not is_list(settings.test):
        return Selection(role, label=settings.label)
    return Selection(role, label=settings.label, group=data.group, test_groups=data.test_groups)


class Neighbours:
    """Labelled clips, decoded once and kept in memory: 2.4 MB a clip of 16 frames at 224, divided over the processes.

    Raises ValueError if a part has no usable clip."""

    def __init__(self, config: Config, collectives: HostCollectives) -> None:
        settings, data = config.knn, config.data
        assert settings.train is not None and settings.test is not None
        self._size = shape_of(config).size
        self._collectives, self._k = collectives, settings.k
        views = Views(data.frames, data.size, data.stride, sampling=data.sampling, standardise=data.standardise)
        specs = {"train": settings.train, "test": settings.test}
        sources = {role: open_labelled(specs[role], knn_selection(config, role), root=settings.root) for role in PARTS}
        if settings.train == settings.test:
            refuse_unsplit("knn.test", settings.test, sources["test"])
        found = [labelled_inventory(f"knn.{role}", source) for role, source in sources.items()]
        refuse_above(found, data.max_left_out_share)
        if collectives.process.is_main:
            print("\n".join(line for inventory in found for line in inventory.lines()), flush=True)
            if settings.k > (clips := found[0].usable):
                print(f"warning: knn.k={settings.k}: only {clips} training clips: all of them vote", flush=True)
        with Decoder(Decoding(views, data.workers)) as decoder:
            self._parts = {role: _Part(source, decoder, collectives) for role, source in sources.items()}
        train, test = (self._parts[role].labels for role in PARTS)
        classes = in_order(train)
        lacking = untrained_classes(classes, test)
        shared = overlap_note(sources["train"], sources["test"])
        notes = written_notes(classes, sources["train"], sources["test"])
        for note in (untrained_note(lacking, len(test)), *notes, shared):
            if note and collectives.process.is_main:
                print(f"knn.test: {note}", flush=True)
        self._truth_M, self._labels_N = (results.class_numbers(classes, labels) for labels in (test, train))

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        """Return the accuracy of the encoder of a `MaskedVideoAutoencoder`, computed in evaluation mode.
        Collective."""
        was_training = model.training
        model.eval()
        train, test = (self._features(model.encoder, part) for part in self._parts.values())
        model.train(was_training)
        device = self._collectives.process.device
        right_M = knn.votes(train, self._labels_N, test, self._k, device=device).argmax(1) == self._truth_M
        return {"knn_accuracy": right_M.double().mean().item()}

    def _features(self, encoder: nn.Module, part: _Part) -> Tensor:
        """Return the mean tokens of all processes' clips in the order of the labels. All make equally many passes."""
        device = self._collectives.process.device
        rows = []
        for clips in part.clips.split(PASS):
            patches = patchify(clips.to(device), self._size.tubelet, self._size.patch)
            rows.append(encoder(patches, None).float().mean(1).cpu())
        gathered = self._collectives.gather(torch.cat(rows)[: part.own])
        ranks = len(gathered)
        found = torch.empty(len(part.labels), rows[0].shape[1])
        for rank, features in enumerate(gathered):
            found[rank::ranks] = features
        return found


class _Part:
    """This process's share of the clips (every world-size-th), padded to the longest share, and all labels."""

    def __init__(self, source: LabelledCorpus, decoder: Decoder, collectives: HostCollectives) -> None:
        rank, ranks = collectives.process.rank, collectives.process.world_size
        refs = source.refs
        own = list(decoder.decode(source.corpus, refs[rank::ranks]))
        broken = [
            name for share in collectives.gather([p.key for p in own if isinstance(p, Problem)]) for name in share
        ]
        if broken:
            raise ValueError(f"knn.train, knn.test: {len(broken)} clips cannot be decoded: {', '.join(broken[:3])}")
        if len(refs) < ranks:
            raise ValueError(f"knn.train, knn.test: {len(refs)} labelled clips for {ranks} processes")
        self.labels = [source.labels[ref.name] for ref in refs]
        self.own = len(own)
        longest = -(-len(refs) // ranks)
        clips = [clip for clip in own if isinstance(clip, Tensor)]
        self.clips = torch.cat([*clips, *clips[: longest - self.own]])
