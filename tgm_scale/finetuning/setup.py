"""From a configuration to the parts of a finetuning: data with labels, classifier, groups of parameters."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from tgm_scale.checkpoints import checkpoint
from tgm_scale.contracts import Batch, Grid, Problem
from tgm_scale.conversion.read import read_initial
from tgm_scale.data.access.patience import PATIENCE_SECONDS
from tgm_scale.data.lists.text import shown
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.shards.inventory import LEFT_OUT, Inventory, refuse_above, write_left_out
from tgm_scale.data.shards.replaced import replaced
from tgm_scale.engine.plan import not_used, resolve_precision
from tgm_scale.evaluation import results
from tgm_scale.evaluation.classes import names_of, ordered, single_class_note, untrained_classes, untrained_note
from tgm_scale.evaluation.labelled import LabelledCorpus, labelled_inventory, overlap_note
from tgm_scale.evaluation.results import Clip
from tgm_scale.evaluation.session import open_split
from tgm_scale.evaluation.settings import FinetuneConfig
from tgm_scale.finetuning.augment import AugmentedSamples, Augmenter
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.patches import IMAGENET
from tgm_scale.models.vit import ModelOptions
from tgm_scale.planning.checks import check_boards, check_compile
from tgm_scale.planning.corpora import corpus_metadata
from tgm_scale.planning.parts import autoencoder, checkpoint_metadata
from tgm_scale.planning.run_plan import RunPlan, Shape, engine_of, layout_of
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.training.introduction import few_clips


def shape_of(config: FinetuneConfig) -> Shape:
    return Shape.of(config.model, config.data.frames, config.data.size)


def plan_finetuning(config: FinetuneConfig, process: ProcessInfo) -> RunPlan:
    """Raises ValueError for what does not go together."""
    shape = shape_of(config)
    layout = layout_of(config.train, config.clips_together, process)
    precision = resolve_precision(config.train.precision, process.device)
    engine = engine_of(config.deepspeed, layout, precision, config.optim)
    return RunPlan(shape, layout, config.data.repeated_augmentation, engine, config.optim, process.device)


def storage_seconds(config: FinetuneConfig) -> float:
    """How long a rank may wait for its storage beyond what is called a hang: none is waited for on local disks."""
    return PATIENCE_SECONDS if "://" in f"{config.data.train} {config.data.test}" else 0.0


def check(config: FinetuneConfig, plan: RunPlan) -> None:
    """Every check that needs neither processes nor data. Raises ValueError."""
    stage = plan.stage
    check_compile(config.model.compile, config.deepspeed, stage)
    check_boards(config.log)
    if config.finetune.ema and stage not in (0, 1, 2):
        source = "deepspeed.stage"
        if config.deepspeed.stage is None:
            source = f"deepspeed.config={config.deepspeed.config}: zero_optimization.stage"
        raise ValueError(
            f"{source}={stage}: finetune.ema averages whole weights, which stage 3 has on no process: use stage 2, or "
            "leave finetune.ema out"
        )
    Augmenter(config.finetune.rand_augment, config.finetune.random_erasing, config.data.size)


@dataclass
class Parts:
    """What training and test read."""

    collectives: HostCollectives
    train: LabelledCorpus
    test: LabelledCorpus
    classes: list[str]
    lacking: dict[str, int]  # test clips by class that training lacks
    opened: dict[str, Any]  # what of the data is usable and left out
    plan: RunPlan

    def numbers(self, batch: Batch) -> Tensor:
        """The class of each clip, int64 [B]; 0 for one without a label, which has weight 0."""
        numbers_B = results.class_numbers(self.classes, [self.train.labels.get(key, "") for key in batch.keys])
        return numbers_B.clamp(min=0)

    def leave_out_unlabelled(self, batch: Batch) -> None:
        """Give clips without a label weight 0, and name them."""
        for index, key in enumerate(batch.keys):
            if key not in self.train.labels and batch.weight[index] > 0:
                batch.weight[index] = 0
                batch.problems.append(Problem(key, "no_label"))


class OpenedData(NamedTuple):
    parts: Parts
    found: list[Inventory]  # of training and test part
    notes: list[str]  # warnings


def open_data(config: FinetuneConfig, plan: RunPlan, collectives: HostCollectives, listed: str = "") -> OpenedData:
    """Open both parts of the data. Raises ValueError. listed: the file that will name what is left out."""
    train, test = open_split(config.data, "train"), open_split(config.data, "test")
    classes = _classes(config, train)
    lacking = untrained_classes(train.sample_labels, test.sample_labels)
    found = [labelled_inventory(part, source, listed) for part, source in (("train", train), ("test", test))]
    overlap = overlap_note(train, test)
    facts = {"data": [inventory.as_dict() for inventory in found], **({"in both parts": overlap} if overlap else {})}
    notes = [note for note in (overlap, untrained_note(lacking, len(test.refs)), single_class_note(classes)) if note]
    plan = plan.for_samples(config.train, len(train.corpus))
    return OpenedData(Parts(collectives, train, test, classes, lacking, facts, plan), found, notes)


def prepare(config: FinetuneConfig, plan: RunPlan, collectives: HostCollectives) -> Parts:
    """Open the data, the main process first: it may build indices. Collective. Raises ValueError."""
    if collectives.process.is_main:
        open_split(config.data, "train")
    collectives.barrier()
    parts, found, notes = open_data(config, plan, collectives, LEFT_OUT)
    folder, train, test = Path(config.run.dir), parts.train, parts.test
    if collectives.process.is_main:
        write_left_out(folder / LEFT_OUT, (("train", train.problems), ("test", test.problems)))
    refuse_above(found, config.data.max_left_out_share)
    if collectives.process.is_main:
        lines = [line for inventory in found for line in inventory.lines()]
        lines += [f"warning: {note}" for note in [*notes, *replaced(folder, (train.corpus, test.corpus))]]
        print("\n".join(lines), flush=True)
    return parts


def _classes(config: FinetuneConfig, train: LabelledCorpus) -> list[str]:
    """The classes in the order of the run's checkpoint where there is one. Raises ValueError where they are others."""
    classes = ordered((train.labels[ref.name] for ref in train.refs), config.data.classes)
    newest = checkpoint.newest_whole(Path(config.run.dir) / "checkpoints", {})
    if newest is None:
        return classes
    facts = newest.manifest
    trained = facts.get("class_labels") or facts["labels"]
    if set(trained) == set(classes):
        return list(trained)
    changed = sorted(set(trained) ^ set(classes))
    raise ValueError(
        f"run.dir={config.run.dir}: its checkpoint has {len(trained)} classes, the data {len(classes)}; one of "
        f"them lacks {', '.join(map(shown, changed[:3]))}: restore the labels, or start a new run folder"
    )


def data_metadata(parts: Parts) -> list[dict[str, Any]]:
    """What RUN/data.json says: the corpora of both parts, train first."""
    return [
        {"part": part, **facts}
        for part, of in (("train", parts.train), ("test", parts.test))
        for facts in corpus_metadata([of.corpus])
    ]


def loader(config: FinetuneConfig, parts: Parts, steps: range) -> ClipLoader:
    data, plan = config.data, parts.plan
    sampling = Sampling(
        data.frames,
        data.stride,
        data.size,
        plan.shape.grid,
        config.run.seed,
        repeated_augmentation=plan.repeats,
        crop=data.crop,
        flip=data.flip,
        captions=False,
        segments=data.sampling == "segments",
    )
    augmenter = Augmenter(config.finetune.rand_augment, config.finetune.random_erasing, data.size)
    samples = AugmentedSamples(Samples.in_order([parts.train.corpus], sampling, data.window_shards), augmenter)
    return ClipLoader(samples, plan.layout, steps, workers=data.workers)


class Start(NamedTuple):
    """What a training begins with. positions: frames and side of the clips that its encoder was trained on, where
    they are others than the run's; notes on the weights, for the log."""

    module: VideoClassifier
    positions: Clip | None
    notes: list[str]


def start(config: FinetuneConfig, classes: list[str], newest: Path | None) -> Start:
    """The classifier: of a run that resumes from a checkpoint, with the weights of `train.init_from`, or fresh.

    Raises ValueError."""
    if newest is not None:
        positions = positions_of(checkpoint.Reader(newest).manifest)
        return Start(module_of(config, len(classes), positions), positions, [])
    if config.train.init_from is None:  # as a pretraining run of this configuration would start
        module = module_of(config, len(classes), None)
        begun = autoencoder(shape_of(config), config.model, config.run.seed, None, IMAGENET)
        _load_matching(module, begun.encoder.state_dict())
        return Start(module, None, ["fresh weights: nothing pretrained"])
    found = read_initial(config.train.init_from, shape_of(config).size)
    positions = None if found.clip == (config.data.frames, config.data.size) else found.clip
    try:
        module = module_of(config, len(classes), positions)
    except ValueError as error:
        raise ValueError(
            f"train.init_from={config.train.init_from}: trained on clips that do not fit: {error}"
        ) from None
    fresh = _load_matching(module, {key.removeprefix("model.encoder."): value for key, value in found.weights.items()})
    notes = [f"weights of {config.train.init_from}", *found.report, f"fresh weights: {', '.join(fresh)}"]
    return Start(module, positions, notes)


def module_of(config: FinetuneConfig, classes: int, positions: Clip | None) -> VideoClassifier:
    """The run's classifier with its first values, its positions interpolated from those of clips of another shape."""
    size = shape_of(config).size
    return VideoClassifier(
        size,
        config.data.frames,
        config.data.size,
        classes,
        options=ModelOptions(
            attention=config.model.attention,
            activation_checkpointing=config.model.activation_checkpointing,
            drop_path=config.finetune.drop_path,
            origin=Grid.of(*positions, size.tubelet, size.patch) if positions else None,
        ),
        seed=config.run.seed,
    )


def positions_of(manifest: dict[str, Any]) -> Clip | None:
    """What a checkpoint says of the clips that its positions come from."""
    found = manifest.get("positions")
    return (found[0], found[1]) if found else None


def _load_matching(module: VideoClassifier, weights: dict[str, Tensor]) -> list[str]:
    """Set those of the weights that the classifier has; returns the names of the others of its own."""
    own = module.state_dict()
    usable = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    module.load_state_dict({**own, **usable})
    return sorted(own.keys() - usable.keys())


def layer_groups(module: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Groups by depth and by whether they decay: the head learns at the full rate, each layer below at `layer_decay`
    times that of the one above (ELECTRA, Clark et al. 2020, appendix; BEiT; MAE)."""
    assert isinstance(module, VideoClassifier)
    depth = len(module.blocks)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        layer = depth + 1
        if name.startswith("patch_embed"):
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        decays = sum(side > 1 for side in parameter.shape) > 1 and not name.endswith("bias")
        groups.setdefault((layer, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (depth + 1 - layer),
            "name": f"layer {layer}, {'decay' if decays else 'no decay'}",
        }
        for (layer, decays), parameters in groups.items()
    ]


def classifier_metadata(
    config: FinetuneConfig, shape: Shape, classes: list[str], positions: Clip | None
) -> dict[str, Any]:
    """What a reader of the checkpoint needs beside the tensors."""
    return {
        **checkpoint_metadata(config, dataclasses.replace(shape, size=shape.size.without_decoder())),
        "labels": names_of(classes, config.data.classes),
        "class_labels": classes,
        **({"positions": list(positions)} if positions else {}),
    }


def announce(config: FinetuneConfig, parts: Parts, notes: list[str], start: int) -> None:
    """Print what the run will do, before its first step."""
    lines = [
        f"run {config.run.dir}: {len(parts.train.refs)} training and {len(parts.test.refs)} test videos of "
        f"{len(parts.classes)} classes, {parts.plan.described()}",
        *few_clips(len(parts.train.refs), parts.plan.layout.global_batch, parts.plan.repeats),
        *notes,
        *not_used(config.deepspeed.config),
        *([f"resuming from step {start}"] if start else []),
    ]
    print("\n".join(lines), flush=True)
