"""`tgm-scale retrieve`: a joint model's clips and texts in one space, for retrieval and for zero-shot classes.

A video's embedding is the projection of its mean token with every token visible, as pretraining projects the mean of
the visible ones; a text's embedding is that of the frozen text tower of the pretraining.

Shapes: M test clips, U distinct texts, C classes, E width of the joint space, D width of the encoder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.data.lists.text import shown
from tgm_scale.data.shards.inventory import NAMED
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.evaluation import finite, results
from tgm_scale.evaluation.cache import Clips
from tgm_scale.evaluation.classes import alike_note, missing_note, ordered, single_class_note, texts_of
from tgm_scale.evaluation.labelled import LabelledCorpus, read_captions, told_once
from tgm_scale.evaluation.ranking import dual_softmax, ranks
from tgm_scale.evaluation.session import Session, features, open_split, report_data, session
from tgm_scale.evaluation.settings import FrozenConfig
from tgm_scale.evaluation.unused import tell_unused
from tgm_scale.guidance.text import TextTower
from tgm_scale.guidance.towers import check_folder, load_text_tower, tower_folder
from tgm_scale.runtime.command import reported_as
from tgm_scale.runtime.progress import ProgressBars


def run_retrieve(config: FrozenConfig) -> dict[str, Any]:
    """Evaluate retrieval by captions, or zero-shot classification. Raises ValueError for input that cannot be used."""
    with session(config) as at, ProgressBars() as bars:
        if at.process.is_main:
            tell_unused(config, "retrieve")
        if at.encoder.projection is None:
            raise ValueError(
                f"encoder.checkpoint={config.encoder.checkpoint}: has no projection to text: pretrain with "
                "objective.contrastive_weight above 0, and give the run itself, not a file of another project's format"
            )
        source = captioned(config) if not config.retrieve.zero_shot else open_split(config.data, "test")
        opened = report_data(at, {"test": source})
        if config.retrieve.zero_shot:
            class_texts(config, list(source.labels.values()))
        text = _text_tower(at)
        clips = features(at, source, "mean", "test", bars)
        found: dict[str, Any] = {}
        if at.process.is_main:
            video_ME = clips.features[0].to(at.process.device) @ at.encoder.projection.T
            finite.refuse(video_ME.norm(dim=1), clips.keys, "its projected features")
            video_ME = F.normalize(video_ME, dim=1)
            found = (
                _zero_shot(at, text, video_ME, clips, opened)
                if config.retrieve.zero_shot
                else _ranks(at, text, video_ME, clips, opened)
            )
            print(results.summary(found, at.folder), flush=True)
        at.collectives.barrier()
    return found


def captioned(config: FrozenConfig) -> LabelledCorpus:
    """Return the test part with captions in place of labels. Raises ValueError if no sample has one."""
    selection = replace(config.data.selection("test"), wanted="caption")
    corpus = open_corpus(config.data.test, root=config.data.root, selection=selection)
    captions, problems = read_captions(corpus)
    return LabelledCorpus(corpus, captions, told_once(corpus.all_problems(), problems))


def _text_tower(at: Session) -> TextTower:
    towers = at.config.retrieve.towers
    if towers is None:
        towers = at.encoder.towers
    if towers is None:
        raise ValueError("retrieve.towers: missing, and the checkpoint does not say: give the pretraining's folder")
    folder = tower_folder(towers)
    dtype = torch.float32 if at.process.device.type == "cpu" else torch.bfloat16
    with reported_as("guidance.towers", "retrieve.towers"):
        check_folder(folder, ("text",))
        text = load_text_tower(folder, device=at.process.device, dtype=dtype)
    assert at.encoder.projection is not None
    if text.width != len(at.encoder.projection):
        raise ValueError(
            f"retrieve.towers={towers}: texts of {text.width} numbers, the checkpoint's projection has "
            f"{len(at.encoder.projection)}: give the tower that it was trained with"
        )
    return text


def _ranks(at: Session, text: TextTower, video_ME: Tensor, clips: Clips, opened: dict[str, Any]) -> dict[str, Any]:
    """Return recalls and ranks in both directions, plain and by dual softmax.

    All clips of a caption are right answers to it; captions with equal tokens count as one, as in training."""
    every = sorted(set(clips.labels))
    first: dict[int, str] = {}
    same = {
        caption: first.setdefault(number, caption) for caption, number in zip(every, text.caption_ids(every).tolist())
    }
    texts = list(first.values())
    number = {caption: i for i, caption in enumerate(texts)}
    own_M = torch.tensor([number[same[caption]] for caption in clips.labels])
    scores_MU = (video_ME @ _encoded(text, texts).T).cpu()
    right_MU = own_M[:, None] == torch.arange(len(texts))
    figures: dict[str, Any] = {}
    facts: dict[str, Any] = {"videos": len(clips.keys), "distinct captions": len(texts)}
    best = scores_MU.argmax(1)
    each_M = torch.arange(len(own_M))
    for name, scores, right, alike_M in (
        ("text to video", scores_MU.T[own_M], right_MU.T[own_M], own_M),
        ("video to text", scores_MU, right_MU, each_M),
        ("dual softmax, text to video", dual_softmax(scores_MU.T)[own_M], right_MU.T[own_M], own_M),
        ("dual softmax, video to text", dual_softmax(scores_MU), right_MU, each_M),
    ):
        recalls, places = ranks(name, scores, right, alike_M)
        figures |= recalls
        facts |= places
    found = {
        "method": "retrieval",
        "checkpoint": at.config.encoder.checkpoint,
        "figures": figures,
        "facts": facts,
    }
    rows = (
        {"key": key, "caption": caption, "prediction": texts[number]}
        for key, caption, number in zip(clips.keys, clips.labels, best.tolist())
    )
    return results.write(at.folder, found | opened, rows, {"test": clips.problems})


def _encoded(text: TextTower, texts: list[str]) -> Tensor:
    """Return the texts' embeddings, float32 [U, E]. Raises ValueError if the tower's output is not finite."""
    text_UE = text.encode(texts).float()
    finite.refuse(text_UE, texts, "the text tower's numbers for this text")
    return text_UE


def _zero_shot(at: Session, text: TextTower, video_ME: Tensor, clips: Clips, opened: dict[str, Any]) -> dict[str, Any]:
    """Classify each clip by the nearest class embedding: the mean over the texts of a class, of unit length.

    The texts of a class are its names or descriptions in all templates."""
    descriptions = class_texts(at.config, clips.labels)
    classes = list(descriptions)
    of_labels = (single_class_note(classes), alike_note(clips.labels), missing_note(clips.labels))
    notes = list(filter(None, (*of_labels, _same_texts(text, descriptions))))
    print("".join(f"warning: {note}\n" for note in notes), end="", flush=True)
    class_CE = torch.stack([F.normalize(_encoded(text, texts).mean(0), dim=0) for texts in descriptions.values()])
    scores_MC = (video_ME @ class_CE.T).cpu()
    truth_M = torch.tensor([classes.index(label) for label in clips.labels])
    found = {
        "method": "zero-shot",
        "checkpoint": at.config.encoder.checkpoint,
        "figures": results.classification_metrics(scores_MC, truth_M, clips.labels),
        "facts": {
            "classes": len(classes),
            **results.optional_note(*notes),
            **results.cautions(scores_MC, classes),
            "templates": list(at.config.retrieve.templates),
        },
    }
    rows = results.predictions(clips, classes, scores_MC)
    return results.write(at.folder, found | opened, rows, {"test": clips.problems})


def _same_texts(text: TextTower, descriptions: dict[str, list[str]]) -> str:
    """Return a warning about classes whose texts are the same to the tower; "" if there are none."""
    of: dict[tuple[int, ...], list[str]] = {}
    every = [one for texts in descriptions.values() for one in texts]
    ids = iter(text.caption_ids(every).tolist())
    for label, texts in descriptions.items():
        of.setdefault(tuple(sorted(next(ids) for _ in texts)), []).append(label)
    same = [" and ".join(map(shown, labels)) for labels in of.values() if labels[1:]]
    if not same:
        return ""
    more = f" and {len(same) - NAMED} more" if len(same) > NAMED else ""
    return f"classes of the same texts, of which none is ever told from the other: {', '.join(same[:NAMED])}{more}"


def class_texts(config: FrozenConfig, labels: list[str]) -> dict[str, list[str]]:
    """Return the texts of each class: its name, or the descriptions that data.classes gives it, in every template.

    Classes are those of data.classes, or else the test labels. Raises ValueError for a label that data.classes
    lacks."""
    classes = ordered(labels, config.data.classes)
    listed = texts_of(classes, config.data.classes) if config.data.classes else {}
    names = {label: listed.get(label, [label.replace("_", " ")]) for label in classes}
    if bad := [template for template in config.retrieve.templates if "{}" not in template]:
        raise ValueError(f"retrieve.templates: no {{}} for the class in {bad[0]!r}")
    return {
        label: [template.replace("{}", name) for name in of for template in config.retrieve.templates]
        for label, of in names.items()
    }
