"""Set-up of a finetuning run from its configuration: its plan, checks and labelled data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tgm_scale.assembly.checks import check_boards, check_compile
from tgm_scale.assembly.corpora import corpus_metadata
from tgm_scale.assembly.run_plan import RunPlan, engine_of, layout_of, shape_of
from tgm_scale.assembly.unused import unused_in_finetuning
from tgm_scale.checkpoints import checkpoint
from tgm_scale.contracts import Batch
from tgm_scale.data.access.mounts import may_stall
from tgm_scale.data.access.patience import PATIENCE_SECONDS
from tgm_scale.data.lists.text import shown
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.shards.inventory import LEFT_OUT, Inventory, refuse_above, write_left_out
from tgm_scale.data.shards.video_list import VideoListCorpus, replaced
from tgm_scale.engine.plan import not_used, resolve_precision
from tgm_scale.evaluation import baselines, results
from tgm_scale.evaluation.classes import ordered, untrained_classes, untrained_note
from tgm_scale.evaluation.first_look import short_note, side_note
from tgm_scale.evaluation.labelled import LabelledCorpus, labelled_inventory, overlap_note, written_notes
from tgm_scale.evaluation.session import open_split
from tgm_scale.evaluation.settings import FinetuneConfig
from tgm_scale.finetuning.augment import AugmentedSamples, Augmenter
from tgm_scale.models.classifier import tokens_read
from tgm_scale.runs.faults import leave_out
from tgm_scale.runs.figures import SHARED
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.training.introduction import few_clips


def plan_finetuning(config: FinetuneConfig, process: ProcessInfo) -> RunPlan:
    """Plan a finetuning run. Raises ValueError for settings that do not go together."""
    shape = shape_of(config)
    layout = layout_of(config.train, config.clips_together, process)
    precision = resolve_precision(config.train.precision, process.device)
    engine = engine_of(config.deepspeed, layout, precision, config.optim)
    read = tokens_read(config.finetune.token_share, shape.grid)
    return RunPlan(shape, layout, config.data.repeated_augmentation, engine, config.optim, process.device, read=read)


def storage_seconds(config: FinetuneConfig) -> float:
    """Return how long a rank may wait for its storage beyond the hang timeout; 0 for local disks."""
    data = config.data
    parts = [place for part in (data.train, data.test) for place in ([part] if isinstance(part, str) else part)]
    return PATIENCE_SECONDS if may_stall([data.root, *parts]) else 0.0


def check(config: FinetuneConfig, plan: RunPlan) -> None:
    """Run every check that needs neither processes nor data. Raises ValueError."""
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
    augmenter_of(config)


def augmenter_of(config: FinetuneConfig) -> Augmenter:
    settings = config.finetune
    return Augmenter(settings.rand_augment, settings.random_erasing, config.data.size, settings.shift)


@dataclass
class Parts:
    """Data of training and test, with the plan of the run."""

    collectives: HostCollectives
    train: LabelledCorpus
    test: LabelledCorpus
    classes: list[str]
    lacking: dict[str, int]  # test clips of each class that training lacks
    opened: dict[str, Any]  # inventory of usable and left-out data
    plan: RunPlan

    def numbers(self, batch: Batch) -> Tensor:
        """Return the class of each clip, int64 [B]; 0 for one without a label, which has weight 0."""
        numbers_B = results.class_numbers(self.classes, [self.train.labels.get(key, "") for key in batch.keys])
        return numbers_B.clamp(min=0)

    def leave_out_unlabelled(self, batch: Batch) -> None:
        """Give clips without a label weight 0, and record them."""
        leave_out(batch, lambda key: key not in self.train.labels, "no_label")


class OpenedData(NamedTuple):
    parts: Parts
    found: list[Inventory]  # of training and test part
    notes: list[str]  # warnings


def open_data(config: FinetuneConfig, plan: RunPlan, collectives: HostCollectives, listed: str = "") -> OpenedData:
    """Open both parts of the data. Raises ValueError. listed: the file that will list what is left out."""
    train, test = open_split(config.data, "train", config.run.seed), open_split(config.data, "test")
    refuse_share(config, train)
    classes = _classes(config, train)
    lacking = untrained_classes(train.sample_labels, test.sample_labels)
    found = [labelled_inventory(part, source, listed) for part, source in (("train", train), ("test", test))]
    overlap = overlap_note(train, test)
    facts = {"data": [inventory.as_dict() for inventory in found], **({SHARED: overlap} if overlap else {})}
    said = (overlap, untrained_note(lacking, len(test.refs)), *written_notes(classes, train, test))
    notes = [note for note in said if note]
    if config.finetune.baselines:
        baselines.refuse("finetune.baselines", train.sample_labels, config.data.share)
    plan = plan.for_samples(config.train, len(train.corpus))
    return OpenedData(Parts(collectives, train, test, classes, lacking, facts, plan), found, notes)


def refuse_share(config: FinetuneConfig, train: LabelledCorpus) -> None:
    """Raise ValueError for a share of data that cannot be divided."""
    if config.data.share < 1 and not isinstance(train.corpus, VideoListCorpus):
        raise ValueError(
            f"data.share={config.data.share:g}: a finetuning takes a share of a list, or of a folder of video files, "
            f"and data.train={config.data.train} is shards: name a list"
        )


def prepare(config: FinetuneConfig, plan: RunPlan, collectives: HostCollectives) -> Parts:
    """Open the data, first on the main process, which may build indices. Collective. Raises ValueError."""
    if collectives.process.is_main:
        open_split(config.data, "train", config.run.seed)
        open_split(config.data, "test")
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
    """Return the classes, in the order of the run's checkpoint if it has one. Raises ValueError if they differ."""
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
    """Return the content of RUN/data.json: the corpora of both parts, train first."""
    found = []
    for part, of in (("train", parts.train), ("test", parts.test)):
        inventory, [facts] = labelled_inventory(part, of), corpus_metadata([of.corpus])
        left_out = {"left_out": inventory.left_out, "left_out_share": inventory.share, "first": inventory.first}
        found.append({"part": part, **facts, **(left_out if inventory.left_out else {})})
    return found


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
        time_jitter=data.time_jitter,
        standardise=data.standardise,
    )
    samples = Samples.in_order([parts.train.corpus], sampling, data.window_shards)
    samples = AugmentedSamples(samples, augmenter_of(config))
    return ClipLoader(samples, plan.layout, steps, workers=data.workers)


def announce(config: FinetuneConfig, parts: Parts, notes: list[str], start: int) -> None:
    """Print what the run will do, before its first step."""
    data = config.data
    looks = [
        short_note([parts.train.corpus], data.frames, data.stride, data.sampling, data.workers),
        side_note(parts.classes, "classes") if data.flip else "",
    ]
    norm, read, tokens = config.finetune.head_norm, parts.plan.visible, parts.plan.shape.grid.tokens
    model = "" if norm == "none" else f", head_norm {norm}"
    model += "" if read == tokens else f", {read} of {tokens} tokens"
    lines = [
        f"run {config.run.dir}: {len(parts.train.refs)} training and {len(parts.test.refs)} test videos of "
        f"{len(parts.classes)} classes, {parts.plan.described()}{model}",
        *few_clips(len(parts.train.refs), parts.plan.layout.global_batch, parts.plan.repeats),
        *(f"warning: {note}" for note in looks if note),
        *notes,
        *unused_in_finetuning(config.data, config.model),
        *not_used(config.deepspeed.config),
        *([f"resuming from step {start}"] if start else []),
    ]
    print("\n".join(lines), flush=True)
