"""A running evaluation of frozen features: its processes, data, encoder and features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tgm_scale.data.lists.reading import LABELS, NoList, Role, Selection, is_list
from tgm_scale.data.shards.inventory import LEFT_OUT, refuse_above, write_left_out
from tgm_scale.engine import build as engine
from tgm_scale.evaluation import results
from tgm_scale.evaluation.cache import Clips
from tgm_scale.evaluation.clips import PATIENCE, own_samples
from tgm_scale.evaluation.features import DEFAULT_STRIDE, FrozenEncoder, Pooling, cached
from tgm_scale.evaluation.labelled import (
    LabelledCorpus,
    labelled_inventory,
    open_labelled,
    overlap_note,
    refuse_unsplit,
    share_of,
)
from tgm_scale.evaluation.settings import FrozenConfig, LabelledConfig
from tgm_scale.evaluation.views import Decoding
from tgm_scale.models.vit import SIZES
from tgm_scale.runs import run_folder
from tgm_scale.runs.figures import SHARED
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo, find_process, refuse_hidden_gpus
from tgm_scale.runtime.progress import ProgressBars


class Session(NamedTuple):
    """A running evaluation: its folder, and this process with its collectives."""

    config: FrozenConfig
    folder: Path
    process: ProcessInfo
    collectives: HostCollectives
    encoder: FrozenEncoder


PARTS: tuple[Role, ...] = ("train", "test")
_RANDOM_SIZE = "B"  # default encoder.size of random weights


@contextmanager
def session(config: FrozenConfig) -> Iterator[Session]:
    """Claim the run folder, join the processes and load the encoder. Raises ValueError."""
    process = find_process()
    refuse_hidden_gpus(process)
    folder = run_folder.open_folder(config)
    if process.world_size > 1:
        engine.start_processes(process)
    collectives = HostCollectives(process, PATIENCE)
    with run_folder.owned(folder, collectives):
        yield Session(config, folder, process, collectives, _encoder(config, process))
        if process.world_size > 1:
            engine.stop_processes()


def _encoder(config: FrozenConfig, process: ProcessInfo) -> FrozenEncoder:
    settings = config.encoder
    if settings.checkpoint == "random":
        if process.is_main and settings.size is None:
            print(f"encoder.checkpoint=random: of size {_RANDOM_SIZE}; encoder.size={{tiny,S,B,L,H,g}} sets another")
        if process.is_main and config.data.stride is None and config.data.sampling == "dense":
            print(
                f"warning: encoder.checkpoint=random has no stride of a pretraining: frames are {DEFAULT_STRIDE} "
                "apart. To compare it with a pretraining set data.stride to that of this one",
                flush=True,
            )
        return FrozenEncoder.random(
            settings.size or _RANDOM_SIZE,
            settings.frames or 16,
            settings.image_size or 224,
            config.run.seed,
            process.device,
            settings.initialisation or "videomae",
        )
    try:
        found = FrozenEncoder.load(settings.checkpoint, process.device, settings.frames, settings.image_size)
    except ValueError as mistake:
        said = str(mistake)
        key = "encoder.checkpoint=" if said.startswith(settings.checkpoint) else ""
        raise ValueError(f"{key}{said}") from None
    if settings.size is not None and SIZES[settings.size].width != found.size.width:
        raise ValueError(
            f"encoder.size={settings.size}: {settings.checkpoint} is of an encoder of width {found.size.width}; leave "
            "the key out: it is of encoder.checkpoint=random alone"
        )
    if process.is_main and found.sampling == "segments" and config.data.sampling == "dense":
        print(
            f"warning: {settings.checkpoint} was trained on frames of whole clips, and here they are "
            f"{config.data.stride or found.stride} apart: data.sampling=segments takes them as there",
            flush=True,
        )
    return found


def open_split(data: LabelledConfig, role: Role, seed: int = 0) -> LabelledCorpus:
    """Open the training or test part. seed: draws the samples of data.share. Raises ValueError."""
    spec = data.train if role == "train" else data.test
    if spec is None:
        raise ValueError("data.train: missing; give labelled shards or a list file")
    try:
        found = open_labelled(spec, data.selection(role), root=data.root)
    except NoList as missing:
        raise ValueError(f"data.{role}={missing}") from None
    except ValueError as mistake:
        said = str(mistake)
        raise ValueError(said if said.startswith("data.") else f"data.{role}: {said}") from None
    if data.group != Selection.group and not any(is_list(one) for one in (data.train, data.test)):
        raise ValueError(
            f"data.group={data.group}: a column of a list, or of a folder's {LABELS}, and data.train and data.test "
            "are none such: leave it out, or make a list with that column"
        )
    if role == "test" and data.train == data.test:
        refuse_unsplit("data.test", spec, found)
    return share_of(found, data.share, seed) if role == "train" and data.share < 1 else found


def report_data(at: Session, sources: Mapping[Any, LabelledCorpus]) -> dict[str, Any]:
    """Print what was opened and left out, list it in RUN/left_out.jsonl, and return it for results.json.

    Raises ValueError if more than data.max_left_out_share is left out."""
    found = [labelled_inventory(part, source, LEFT_OUT) for part, source in sources.items()]
    if at.process.is_main and not (at.folder / "results.json").exists():  # it has its own
        write_left_out(at.folder / LEFT_OUT, ((part, source.problems) for part, source in sources.items()))
    refuse_above(found, at.config.data.max_left_out_share)
    shared = overlap_note(*sources.values()) if len(sources) == 2 else ""
    if at.process.is_main:
        for inventory in found:
            print("\n".join(inventory.lines()), flush=True)
        if shared:
            print(f"warning: {shared}", flush=True)
    positions = results.interpolation_note(at.encoder.positions, at.encoder.frames, at.encoder.image_size)
    if at.process.is_main:
        print(
            "\n".join(f"positions: {text}" for text in positions.values()), end="\n" if positions else "", flush=True
        )
    data = {
        "data": [inventory.as_dict() for inventory in found],
        "views": decoding_of(at).views.described(),
        **positions,
    }
    return {**data, **({SHARED: shared} if shared else {})}


def features(at: Session, source: LabelledCorpus, pooling: Pooling, name: str, bars: ProgressBars) -> Clips:
    """Return cached features of a part, below the run folder. Collective."""
    if at.process.is_main:  # only once checkpoint and data are open: a mistake must not stamp the folder
        run_folder.write_evaluation(at.folder, at.config)
    task = bars.task(f"features of {name}", own_samples(source.refs, at.process.rank, at.process.world_size))
    decoding = replace(decoding_of(at), progress=task.advance)
    return cached(at.folder / "features", at.encoder, source, decoding, pooling, at.collectives)


def decoding_of(at: Session) -> Decoding:
    """Return how clips are decoded for features."""
    data, encoder = at.config.data, at.encoder
    views = encoder.views(
        stride=data.stride or encoder.stride,
        sampling=data.sampling,
        standardise=encoder.standardise if data.standardise is None else data.standardise,
        temporal=at.config.encoder.temporal_views,
        spatial=at.config.encoder.spatial_views,
    )
    return Decoding(views, data.workers)
