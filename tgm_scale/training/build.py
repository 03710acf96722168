"""From a configuration to the parts of a run. All checks that need no process group come first.

The ways a run can start, in order: 1. the newest checkpoint in its own folder; 2. `train.init_from`; 3. fresh weights.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgm_scale.config import Config, DataConfig
from tgm_scale.contracts import Grid
from tgm_scale.data.disk_cache import DiskCache
from tgm_scale.data.index import Corpus
from tgm_scale.data.inventory import (
    LEFT_OUT,
    Inventory,
    of_corpus,
    refuse_above,
    refuse_without_captions,
)
from tgm_scale.data.loader import ClipLoader
from tgm_scale.data.names import tell_apart
from tgm_scale.data.torchcodec_frames import check_torchcodec
from tgm_scale.guidance.attention import ClassAttention
from tgm_scale.guidance.cache import RelevanceCache, fingerprint
from tgm_scale.guidance.flow import FlowToBase, check_flow, dis_to_base
from tgm_scale.guidance.parts import Parts
from tgm_scale.guidance.relevance import Relevance
from tgm_scale.guidance.towers import TextTower, check_folder, load_image_tower, load_text_tower
from tgm_scale.masking.recipes import Masker, build_masker
from tgm_scale.models.local_start import start_locally
from tgm_scale.models.patches import IMAGENET, PixelStatistics
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.pretraining import macs_per_clip as count_macs
from tgm_scale.models.vit import SIZES, ModelSize
from tgm_scale.runtime.distributed import Place
from tgm_scale.runtime.secrets import tree_without_secrets
from tgm_scale.training.engine_plan import EnginePlan, engine_config, resolve_precision
from tgm_scale.training.module import JointModule
from tgm_scale.training.optim import Schedule

# (train.init_from, the model's size) -> weights by the names of `JointModule`, and notes on what was left out:
# conversion.read.read_initial, which training may not import
# weights, notes, frames and side of the clips that they were trained on
ReadInitial = Callable[[str, ModelSize], tuple[dict[str, Tensor], list[str], tuple[int, int]]]

IMAGE_MAPS = {"relevance", "attention", "parts"}  # what a masker may need that comes from the image tower
_FILES = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".tar", ".gz", ".tgz", ".zip", ".mp4", ".webm", ".mkv", ".avi"}
_PATTERN = set("*?[]{},")
SMALL_TOWERS = Path(__file__).parents[1] / "assets" / "small_clip"


def tower_folder(name: str) -> str:
    """The folder behind `guidance.towers`: 'small' is the packaged CLIP."""
    return str(SMALL_TOWERS) if name == "small" else name


def model_size(config: Config) -> ModelSize:
    """The named size with the configuration's patch, tubelet and depths."""
    changes = {
        name: value
        for name in ("patch", "tubelet", "depth", "decoder_depth")
        if (value := getattr(config.model, name)) is not None
    }
    return dataclasses.replace(SIZES[config.model.size], **changes)


def token_grid(config: Config) -> Grid:
    size = model_size(config)
    return Grid.of(config.data.frames, config.data.size, size.tubelet, size.patch)


def masker(config: Config) -> Masker:
    return build_masker(
        config.masking.recipe,
        token_grid(config),
        mask_ratio=config.masking.mask_ratio,
        visible_ratio=config.masking.visible_ratio,
        decode_ratio=config.model.decode_ratio,
        **config.masking.options,
    )


def engine_plan(config: Config, place: Place) -> EnginePlan:
    return EnginePlan(
        stage=config.deepspeed.stage,
        config_file=config.deepspeed.config,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        world_size=place.world_size,
        precision=resolve_precision(config.train.precision, place.device),
        clip_norm=config.optim.clip_norm,
        weight_decay=config.optim.weight_decay,
        betas=config.optim.betas,
    )


def for_processes(config: Config, processes: int) -> Config:
    """The configuration with a micro batch no larger than a process's share of the global batch: `micro_batch_size` is
    what a GPU can hold, and many GPUs leave each less. Nothing but speed depends on it."""
    share, rest = divmod(config.train.global_batch_size, processes)
    if rest or share >= config.train.micro_batch_size or share % config.data.repeated_augmentation:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_size": share})})


def check(config: Config, place: Place) -> None:
    """Every check of the configuration that needs neither processes nor a GPU. Raises ValueError."""
    check_shards(config)
    plan = masker(config)
    check_compile(config, engine_config(engine_plan(config, place))["zero_optimization"]["stage"])
    guidance, of_image = config.guidance, plan.needs & IMAGE_MAPS
    if of_image and guidance.towers is None:
        raise ValueError(
            f"masking.recipe={config.masking.recipe} is guided by a frozen model ({', '.join(sorted(of_image))}): set "
            "guidance.towers to the folder of a CLIP or SigLIP model, or to 'small'"
        )
    if guidance.towers is not None:
        online = of_image - ({"relevance"} if guidance.cached else set())
        check_folder(tower_folder(guidance.towers), ("text", "image") if online else ("text",))
    if "flow" in plan.needs:
        check_flow(guidance.flow)
    if config.data.decoder != "pyav":
        if "motion" in plan.needs:
            raise ValueError(
                f"masking.recipe={config.masking.recipe} reads motion vectors, which data.decoder="
                f"{config.data.decoder} does not give: set data.decoder=pyav"
            )
        check_torchcodec()


def check_compile(config: Config, stage: int) -> None:
    """Raise ValueError for `model.compile` at ZeRO stage 3, where DeepSpeed gathers each layer's weights in Python as
    the layer is called: the compiler finds no two layers in one piece, and gives up after eight of its hooks."""
    if config.model.compile and stage == 3:
        origin = f"deepspeed.stage={stage}"
        if config.deepspeed.stage is None:
            origin = f"deepspeed.config={config.deepspeed.config} (zero_optimization.stage={stage})"
        raise ValueError(
            f"model.compile=true does not go with {origin}, which gathers weights inside each block: set "
            "model.compile=false, or stage 0, 1 or 2"
        )


def check_shards(config: Config) -> None:
    """Raises ValueError where a local file or folder is not there, before a run folder is made; and where a corpus
    would be made at a name that was meant for a list, shards or a video."""
    missing = [entry.path for entry in config.data.corpora() if "://" not in entry.path]
    missing = [name for name in missing if not Path(name).exists()]
    if config.data.synthetic is None:
        if plain := [name for name in missing if not set(name) & _PATTERN]:
            raise ValueError(
                f"data.shards={plain[0]}: no such file or folder; wanted shards, videos or a list of them "
                "(data.synthetic.clips=64 beside it makes a corpus there)"
            )
    elif missing and (Path(missing[0]).suffix.lower() in _FILES or set(missing[0]) & _PATTERN):
        raise ValueError(
            f"data.shards={missing[0]}: no such file, and no name for the folder of a corpus that data.synthetic "
            "makes: correct data.shards, or set data.synthetic=null beside it"
        )


def make_synthetic(config: Config) -> None:
    """Make the synthetic corpus that the configuration describes, where it is not there yet."""
    synthetic, folder = config.data.synthetic, Path(config.data.corpora()[0].path)
    if synthetic is None or folder.exists():
        return
    from tgm_scale.data.synthetic import make_corpus

    unfinished = folder.with_name(folder.name + ".making")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a start that was killed
    print(
        f"data.synthetic: there is no {folder}: making a corpus of {synthetic.clips} clips there (for clips of your "
        "own correct data.shards)",
        flush=True,
    )
    make_corpus(unfinished, clips=synthetic.clips, seed=synthetic.seed, mode=synthetic.mode)
    unfinished.rename(folder)


def corpora(config: Config) -> list[Corpus]:
    kept = config.data.cache
    cache = DiskCache(kept.dir, round(kept.gigabytes * 1e9)) if kept else None
    settings: dict[str, Any] = {"cache": cache, "root": config.data.root, "patience": config.data.patience}
    opened = [Corpus.open(entry.path, **settings) for entry in config.data.corpora()]
    tell_apart(opened)
    limit = config.data.max_left_out_share
    if any(corpus.lost > limit * (len(corpus) + corpus.lost) for corpus in opened):
        refuse_above(inventories(opened), limit)
    if config.objective.contrastive_weight and sum(map(len, opened)) < 2:
        weight = config.objective.contrastive_weight
        raise ValueError(
            f"objective.contrastive_weight={weight:g} tells clips from others, and {opened[0].origin} has one clip: "
            "give more clips, or set objective.contrastive_weight=0"
        )
    if uses_captions(config) and config.data.max_skipped_share < 1:
        refuse_without_captions(opened)
    return opened


def storage_seconds(data: DataConfig) -> float:
    """How long a rank may wait for its storage beyond what is called a hang: none is waited for on local disks."""
    return data.patience if any("://" in corpus.path for corpus in data.corpora()) else 0.0


def uses_captions(config: Config) -> bool:
    return config.objective.contrastive_weight > 0 or "relevance" in masker(config).needs


def inventories(opened: list[Corpus], listed: str = "") -> list[Inventory]:
    return [of_corpus(corpus.name, corpus, listed) for corpus in opened]


def samples_per_step(config: Config) -> int:
    return config.train.global_batch_size // config.data.repeated_augmentation


def total_steps(config: Config, samples: int) -> int:
    """Steps of the run; an epoch is as many steps as it takes to see every sample once."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.epochs is not None
    return math.ceil(config.train.epochs * samples / samples_per_step(config))


def schedule(config: Config, steps: int) -> Schedule:
    optim = config.optim
    return Schedule.of(optim.base_lr, optim.min_lr, optim.warmup_share, steps, config.train.global_batch_size)


def loader(config: Config, opened: list[Corpus], place: Place, start: int, stop: int) -> ClipLoader:
    guidance = config.guidance
    relevance = None
    if guidance.cached and guidance.towers and "relevance" in masker(config).needs:
        made_by = fingerprint(tower_folder(guidance.towers), guidance.scorer, guidance.resolution)
        one_of = model_size(config).tubelet if guidance.frames_per_tubelet == "one" else 1
        relevance = RelevanceCache(made_by, one_of).read
    weights = [entry.weight for entry in config.data.corpora() if entry.weight is not None]
    return ClipLoader(
        opened,
        weights=weights or None,
        frames=config.data.frames,
        stride=config.data.stride,
        size=config.data.size,
        grid=token_grid(config),
        seed=config.run.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        rank=place.rank,
        world_size=place.world_size,
        workers=config.data.workers,
        repeated_augmentation=config.data.repeated_augmentation,
        start_step=start,
        stop_step=stop,
        crop=config.data.crop,
        flip=config.data.flip,
        window_shards=config.data.window_shards,
        captions=uses_captions(config),
        relevance=relevance,
        motion="motion" in masker(config).needs,
        caption_sets=guidance.captions == "mean" and "relevance" in masker(config).needs,
        flow=dis_to_base if "flow" in masker(config).needs and guidance.flow == "dis" else None,
        torchcodec=config.data.decoder == "torchcodec",
    )


@dataclasses.dataclass
class Towers:
    """The frozen towers of a run, outside the engine: not sharded, not optimised, not saved."""

    text: TextTower | None = None
    relevance: Relevance | None = None
    maps: dict[str, Callable[[Tensor, Grid], Tensor]] = dataclasses.field(default_factory=dict)  # of pixels alone


def towers(config: Config, needs: set[str], device: torch.device) -> Towers:
    """Load what the objective and the masking recipe ask for."""
    guidance = config.guidance
    found = Towers()
    if "flow" in needs:
        found.maps["flow"] = FlowToBase(guidance.flow, device)
    if guidance.towers is None or not (needs & IMAGE_MAPS or config.objective.contrastive_weight):
        return found
    folder = tower_folder(guidance.towers)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if "relevance" in needs or config.objective.contrastive_weight:
        found.text = load_text_tower(folder, device=device, dtype=dtype)
    online = needs & IMAGE_MAPS - ({"relevance"} if guidance.cached else set())
    if not online:
        return found
    image = load_image_tower(folder, device=device, dtype=dtype, compiled=guidance.compile)
    view = (guidance.frames_per_tubelet, guidance.resolution)
    if "relevance" in online:
        found.relevance = Relevance(image, guidance.scorer, *view)
    if "attention" in online:
        found.maps["attention"] = ClassAttention(image, *view)
    if "parts" in online:
        found.maps["parts"] = Parts(image, guidance.scorer, *view)
    return found


def pixel_statistics(config: Config) -> PixelStatistics:
    return PixelStatistics(config.data.mean, config.data.std)


def model(
    config: Config, embedding_width: int | None, statistics: PixelStatistics | None = None
) -> MaskedVideoAutoencoder:
    """The autoencoder with fresh weights keyed by the run's seed, fp32, on the CPU. statistics: other than data's."""
    built = MaskedVideoAutoencoder(
        model_size(config),
        frames=config.data.frames,
        image_size=config.data.size,
        attention=config.model.attention,
        activation_checkpointing=config.model.activation_checkpointing,
        embedding_width=embedding_width,
        statistics=statistics or pixel_statistics(config),
        seed=config.run.seed,
    )
    if config.model.initialisation == "local":
        start_locally(built)
    return built


def facts(config: Config) -> dict[str, Any]:
    """What a reader of the checkpoint needs beside the tensors."""
    return {
        "model": dataclasses.asdict(model_size(config)) | {"name": config.model.size},
        "frames": config.data.frames,
        "image_size": config.data.size,
        "config": tree_without_secrets(config.model_dump(mode="json")),
    }


def corpus_facts(opened: list[Corpus]) -> list[dict[str, Any]]:
    """What RUN/data.json says of each corpus: what it is (name, samples, fingerprint, and `content` of a list's
    captions and labels), and what was left out."""
    found = []
    for corpus, inventory in zip(opened, inventories(opened, LEFT_OUT)):
        facts = {"name": corpus.name, "samples": len(corpus), "fingerprint": corpus.fingerprint}
        content = {"content": corpus.content} if corpus.content else {}
        left_out = {"left_out": inventory.left_out, "left_out_share": inventory.share, "first": inventory.first}
        found.append({**facts, **content, **(left_out if inventory.left_out else {})})
    return found


def macs_per_clip(config: Config, plan: Masker) -> float:
    """Multiply-accumulates of one clip's forward pass."""
    targets = plan.target_count if config.objective.reconstruction_weight else 0
    return count_macs(model_size(config), config.data.frames, config.data.size, plan.visible_count, targets)


def initialise(module: JointModule, config: Config, read_initial: ReadInitial) -> list[str]:
    """Set the weights that `train.init_from` gives; the rest stays fresh. Returns notes on what was left out.

    Raises ValueError where the origin's model is another one."""
    assert config.train.init_from is not None
    weights, notes, clip = read_initial(config.train.init_from, model_size(config))
    if clip != (config.data.frames, config.data.size):
        notes = [
            *notes,
            f"trained on clips of {clip[0]} frames of {clip[1]} pixels: positions go by a token's number, so those of "
            f"{config.data.frames} frames of {config.data.size} stand at others at first",
        ]
    weights = restated(weights, pixel_statistics(config))
    own = module.state_dict()
    usable = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    if not any(name.startswith("model.encoder.blocks") for name in usable):
        raise ValueError(f"train.init_from={config.train.init_from}: gives no block of this model's encoder")
    module.load_state_dict({**own, **usable})
    fresh = sorted(own.keys() - usable.keys())
    return [*notes, *([f"fresh weights: {', '.join(fresh)}"] if fresh else [])]


def restated(weights: dict[str, Tensor], statistics: PixelStatistics) -> dict[str, Tensor]:
    """Weights that were read, which are for ImageNet's statistics, for a run's own."""
    kernel, bias = (f"model.encoder.patch_embed.proj.{part}" for part in ("weight", "bias"))
    if statistics == IMAGENET or not {kernel, bias} <= weights.keys():
        return weights
    weight, added = statistics.restated(weights[kernel], weights[bias], IMAGENET)
    return {**weights, kernel: weight, bias: added}


def plan_facts(config: Config, plan: EnginePlan, masks: Masker, steps: int) -> dict[str, Any]:
    """What follows from the configuration on this number of processes."""
    return {
        "steps": steps,
        "world_size": plan.world_size,
        "accumulation": plan.accumulation,
        "micro_batch_size": plan.micro_batch_size,
        "precision": plan.precision,
        "stage": engine_config(plan)["zero_optimization"]["stage"],
        "visible_tokens": masks.visible_count,
        "target_tokens": masks.target_count,
        "peak_learning_rate": schedule(config, steps).peak,
    }
