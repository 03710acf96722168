"""The typed configuration of a run: strict YAML sections, dotted overrides, checks that need no GPU.

`load("configs/x.yaml", ["train.steps=100"])` returns a frozen `Config` or raises ValueError with every mistake in it:
the key, what was found, what was wanted, the nearest key that exists.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from tgm_scale.runtime.outside.yaml_text import yaml_of

# in a wheel beside this file, in a checkout beside the package
_IN_WHEEL = Path(__file__).parent / "configs"
CONFIGS = _IN_WHEEL if _IN_WHEEL.is_dir() else Path(__file__).parents[1] / "configs"


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Kind = TypeVar("Kind", bound=Section)  # of configuration: a pretraining run's, or another made of the same sections


class RunConfig(Section):
    dir: str = Field(description="folder of the run: configuration, metrics, checkpoints")
    seed: int = 0


class CorpusConfig(Section):
    path: str
    weight: float | None = Field(None, gt=0, description="share of the samples; default: by size")


class SyntheticConfig(Section):
    """A corpus that is made on first use in the folder `data.shards`."""

    clips: int = Field(256, ge=1)
    mode: Literal["named", "one_mover"] = "named"
    seed: int = 0


class CacheConfig(Section):
    """A folder on a node's own disk for what is read from remote shards."""

    dir: str
    gigabytes: float = Field(100, gt=0, description="the folder's bound: what was not used for the longest goes first")


class DataConfig(Section):
    shards: str | list[str | CorpusConfig] = Field(description="folder or pattern of shards, or a list of them")
    synthetic: SyntheticConfig | None = None
    cache: CacheConfig | None = None
    frames: int = Field(16, ge=1)
    stride: int = Field(4, ge=1, description="source frames from one sampled frame to the next")
    size: int = Field(224, ge=8, description="side of the square clip, pixels")
    workers: int = Field(8, ge=0, description="decoding processes of each rank; 0 decodes in the training process")
    decoder: Literal["pyav", "torchcodec"] = Field("pyav", description="motion-guided recipes need 'pyav'")
    repeated_augmentation: int = Field(1, ge=1, description="clips drawn from each decoded sample")
    crop: Literal["multi_scale", "random_resized", "center"] = "multi_scale"
    flip: bool = False
    window_shards: int = Field(16, ge=1, description="samples are shuffled within this many shards")
    max_skipped_share: float = Field(0.1, ge=0, le=1, description="the run stops above this share of broken samples")
    max_left_out_share: float = Field(
        0.3, ge=0, le=1, description="no start above this share of samples that are not there"
    )
    patience: float = Field(300, ge=0, description="seconds of waiting for a storage or server that does not answer")
    root: str | None = Field(None, description="folder of the videos that a list names; default: the list's own")
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406), description="of red, green, blue in 0..1, by which pixels are normalised; ImageNet's"
    )
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), description="their standard deviations")

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _three(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            return (value,) * 3
        return tuple(value) if isinstance(value, list) else value

    @field_validator("mean", "std")
    @classmethod
    def _in_range(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        least = 0 if info.field_name == "mean" else 1e-3
        if len(value) not in (1, 3) or not all(least <= number <= 1 for number in value):
            raise ValueError(
                f"data.{info.field_name}={list(value)}: wanted one or three numbers from {least} to 1 (255 is 1)"
            )
        return value * 3 if len(value) == 1 else value

    @field_validator("decoder", mode="before")
    @classmethod
    def _removed(cls, value: Any) -> Any:
        if value == "nvdec":
            raise ValueError(
                "data.decoder=nvdec was removed: it brought every frame from the GPU back to the host, and never ran. "
                "Set data.decoder=pyav"
            )
        return value

    def corpora(self) -> list[CorpusConfig]:
        entries = [self.shards] if isinstance(self.shards, str) else self.shards
        return [CorpusConfig(path=entry) if isinstance(entry, str) else entry for entry in entries]


class GuidanceConfig(Section):
    towers: str | None = Field(None, description="folder of a CLIP or SigLIP model, or 'small' for the packaged one")
    scorer: Literal["raw", "value", "vv"] = "value"
    frames_per_tubelet: Literal["all", "one"] = "all"
    resolution: int | None = Field(None, ge=16, description="side the image tower sees; default: its own")
    captions: Literal["drawn", "mean"] = Field("drawn", description="relevance to the drawn caption, or mean over all")
    flow: str = Field("dis", description="optical flow: 'dis' (OpenCV) or a file of torchvision RAFT weights")
    cached: bool = Field(False, description="read relevance from the shards (tools/cache_relevance.py puts it there)")
    compile: bool = Field(False, description="torch.compile for the image tower")
    own_stream: bool = Field(False, description="on a GPU: look at the next step's clips while this step runs")


class MaskingConfig(Section):
    recipe: str = "tube"
    mask_ratio: float = Field(0.9, gt=0, lt=1)
    visible_ratio: float | None = Field(
        None, gt=0, lt=1, description="share the encoder sees; default: all not hidden"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="recipe options, such as temperature")


class ModelConfig(Section):
    size: Literal["tiny", "S", "B", "L", "H", "g"] = "B"
    patch: int | None = Field(None, ge=1, description="patch side, pixels; default: that of the size")
    tubelet: int | None = Field(None, ge=1, description="frames of a token; default: that of the size")
    depth: int | None = Field(None, ge=1, description="blocks of the encoder; default: those of the size")
    decoder_depth: int | None = Field(None, ge=1)
    decode_ratio: float = Field(1.0, gt=0, le=1, description="share of the hidden tokens that is reconstructed")
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    initialisation: Literal["videomae", "local"] = Field(
        "videomae", description="'local': attention starts on neighbouring tokens, for runs of minutes"
    )


class ObjectiveConfig(Section):
    reconstruction_weight: float = Field(1.0, ge=0)
    contrastive_weight: float = Field(1.0, ge=0)
    contrastive_batch: int | None = Field(None, ge=2, description="clips that are each other's negatives")
    normalise_by: Literal["patch", "clip"] = Field(
        "patch",
        description="pixels to reconstruct, by the mean and deviation of their patch (VideoMAE) or of the clip",
    )


class OptimConfig(Section):
    base_lr: float = Field(1.5e-4, gt=0, description="learning rate at a batch of 256; scaled with the global batch")
    min_lr: float = Field(0.0, ge=0, description="where the cosine ends, in the units of base_lr")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps with rising learning rate")
    clip_norm: float | None = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _falls(self) -> OptimConfig:
        if self.min_lr > self.base_lr:
            raise ValueError(
                f"optim.min_lr={self.min_lr:g} is above optim.base_lr={self.base_lr:g}: the rate would rise to "
                "the end; give one that is not above"
            )
        return self


class TrainConfig(Section):
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    global_batch_size: int = Field(256, ge=1)
    micro_batch_size: int = Field(
        8, ge=1, description="clips of one forward pass on one rank, at most: many ranks leave each fewer"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    init_from: str | None = None
    max_minutes: float | None = Field(None, gt=0, description="checkpoint and leave for requeueing after this time")

    @model_validator(mode="after")
    def _combinations(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            given = f"found steps={self.steps} and epochs={self.epochs}"
            raise ValueError(f"train.steps or train.epochs: give one of the two, and not both; {given}")
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"train.micro_batch_size={self.micro_batch_size} does not divide train.global_batch_size="
                f"{self.global_batch_size}: choose a divisor"
            )
        return self


class DeepSpeedConfig(Section):
    config: str | None = Field(None, description="a DeepSpeed JSON file; what the run derives is filled in")
    stage: Literal[0, 1, 2, 3] | None = None


class CheckpointConfig(Section):
    every: int = Field(500, ge=1, description="steps")
    keep: int = Field(3, ge=1, description="newest checkpoints that stay")
    keep_every: int | None = Field(None, ge=1, description="checkpoints of these multiples of steps stay, too")


class FaultsConfig(Section):
    spike_factor: float | None = Field(None, gt=1, description="refuse a loss above this times the recent median")
    refused_before_rollback: int = Field(3, ge=1, description="refused updates in a row that cause a rollback")
    rollbacks: int = Field(3, ge=0, description="rollbacks after which the run stops")
    hang_seconds: float = Field(
        50, gt=0, description="how long a rank waits for another before it stops; at least 10 times a usual step"
    )
    start_seconds: float = Field(600, gt=0, description="how long the processes of a start wait for one another")


class LogConfig(Section):
    every: int = Field(20, ge=1, description="steps from one printed line to the next")
    tensorboard: bool = True


class KnnConfig(Section):
    """Nearest neighbours on a small labelled set while a run goes on; its figures go to metrics.jsonl."""

    every: int | None = Field(None, ge=1, description="steps; default: never")
    train: str | list[str] | None = Field(None, description="labelled shards, or a list file")
    test: str | list[str] | None = Field(None, description="labelled shards, or a list file")
    label: str = Field("label", description="where a sample's json has its label, such as truth.objects.0.motion")
    root: str | None = Field(None, description="folder of the videos that list files name")
    k: int = Field(20, ge=1, description="neighbours")


class RunSettings(Section):
    """Any kind of configuration: each says in which folder its run is."""

    run: RunConfig


class Config(RunSettings):
    data: DataConfig
    guidance: GuidanceConfig = GuidanceConfig()
    masking: MaskingConfig = MaskingConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    log: LogConfig = LogConfig()
    knn: KnnConfig = KnnConfig()

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        train, objective, data = self.train, self.objective, self.data
        if objective.reconstruction_weight == 0 and objective.contrastive_weight == 0:
            raise ValueError(
                "objective.reconstruction_weight and objective.contrastive_weight are both 0: nothing is learned; "
                "set one of them above 0"
            )
        if objective.contrastive_weight > 0 and self.guidance.towers is None:
            raise ValueError(
                "objective.contrastive_weight > 0 needs a text tower: set guidance.towers to the folder of a CLIP or "
                "SigLIP model (or to 'small'), or set objective.contrastive_weight=0"
            )
        negatives = objective.contrastive_batch
        if negatives is not None and train.global_batch_size % negatives:
            raise ValueError(
                f"objective.contrastive_batch={negatives} does not divide train.global_batch_size="
                f"{train.global_batch_size}: choose a divisor, or leave it out for the whole global batch"
            )
        if train.micro_batch_size % data.repeated_augmentation:
            raise ValueError(
                f"data.repeated_augmentation={data.repeated_augmentation} does not divide train.micro_batch_size="
                f"{train.micro_batch_size}: repeats of a sample share a micro batch, so choose a divisor"
            )
        given = [corpus.weight is not None for corpus in data.corpora()]
        if any(given) and not all(given):
            raise ValueError("data.shards: give every corpus a weight, or none (their shares then go by size)")
        if self.knn.every is not None and not (self.knn.train and self.knn.test):
            raise ValueError("knn.every needs a labelled set: give knn.train and knn.test")
        if data.synthetic is not None and not isinstance(data.shards, str):
            raise ValueError("data.synthetic makes one corpus in one folder: data.shards must be that folder's name")
        return self


def _read_yaml(text: str, origin: str) -> Any:
    try:
        return yaml_of(text)
    except ValueError as error:
        raise ValueError(f"{origin}: not valid YAML: {error}") from None


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The configuration of a pretraining run in a YAML file, with `section.key=value` overrides laid over it.

    Raises ValueError that lists every mistake."""
    return checked(read_for_a_start(path, overrides), str(path), Config, overrides)


def packaged(path: str | Path, ending: str) -> Path:
    """The file at a path, else the one that comes with the project under this name: `configs/debug.yaml` and `debug`
    are found from any folder. The path itself where there is neither."""
    given = Path(path)
    if given.is_file() or given.is_absolute():
        return given
    inner = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    for name in (inner, inner.with_name(inner.name + ending)) if inner.name and ".." not in inner.parts else ():
        if (CONFIGS / name).is_file():
            return CONFIGS / name
    return given


def _packaged_names() -> str:
    return ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))


def read_tree(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict:
    """Nested dictionaries from a YAML file with overrides laid over it, not checked yet. Raises ValueError."""
    file = packaged(path, ".yaml")
    if not file.is_file():
        what = "a folder: name a YAML file in it" if file.is_dir() else f"no such file; packaged: {_packaged_names()}"
        raise ValueError(f"--config {path}: {what}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"--config {path}: not a text file; wanted YAML, such as configs/debug.yaml") from None
    tree = _read_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: wanted sections such as 'data:' and 'train:', found {type(tree).__name__}")
    return lay_over(tree, overrides)


def read_for_a_start(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict:
    """`read_tree`, and the DeepSpeed JSON that it names is found: in the working folder, in that of the configuration
    or the one above, or among those that come with the project. Raises ValueError where it is nowhere."""
    tree, file = read_tree(path, overrides), packaged(path, ".yaml")
    section: Any = tree.get("deepspeed")
    name = section.get("config") if isinstance(section, dict) else None
    if not isinstance(name, str) or Path(name).is_file():
        return tree
    folders = file.resolve().parents[:2]
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None and packaged(name, ".json").is_file():
        return tree
    if found is None:
        looked = ", ".join(dict.fromkeys(str(folder / name) for folder in (Path.cwd(), *folders)))
        raise ValueError(f"{file}: deepspeed.config={name}: no such file (looked for {looked})")
    section["config"] = str(found)
    return tree


def lay_over(tree: dict, overrides: list[str] | tuple[str, ...]) -> dict:
    """Set each `section.key=value` in nested dictionaries. Raises ValueError for what is no such thing."""
    for override in overrides:
        _override(tree, override)
    return tree


def _override(tree: dict, override: str) -> None:
    name, equals, value = override.partition("=")
    parts = name.split(".")
    if not equals or not all(parts):
        raise ValueError(f"'{override}': wanted section.key=value, such as train.steps=100")
    node = tree
    for part in parts[:-1]:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise ValueError(f"'{override}': {part} is a value, not a section")
    node[parts[-1]] = _read_yaml(value, f"'{override}'")
    steps_or_epochs = {"train.steps": "epochs", "train.epochs": "steps"}
    if name in steps_or_epochs and node[parts[-1]] is not None:
        node[steps_or_epochs[name]] = None  # the override wins over the other way to say the length


def from_tree(tree: dict, origin: str = "configuration") -> Config:
    """A checked configuration from nested dictionaries. Raises ValueError that lists every mistake."""
    return checked(tree, origin, Config)


def checked(tree: dict, origin: str, kind: type[Kind], overrides: list[str] | tuple[str, ...] = ()) -> Kind:
    """`from_tree` for any kind of configuration; mistakes in the overrides are told as the command line's, and those
    that several keys make together as of both, where an override may be one of them."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        given = [override.partition("=")[0] for override in overrides]
        of: dict[str, list[str]] = {}
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            of.setdefault(_whose(name, given, origin), []).append(_explain(item, kind))
        raise ValueError("\n".join(f"{where}:\n  " + "\n  ".join(lines) for where, lines in of.items())) from None


def _whose(name: str, given: list[str], origin: str) -> str:
    """Where the value of a key was given, or the values of a section (of all: '') that do not go together."""
    if any(f"{name}.".startswith(f"{one}.") for one in given):
        return "command line"
    together = any(not name or one.startswith(f"{name}.") for one in given)
    return f"{origin} and the command line" if together else origin


def _explain(item: Any, kind: type[Section]) -> str:
    location = [str(part) for part in item["loc"]]
    name = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _keys_beside(location, kind)
        close = difflib.get_close_matches(location[-1], known, n=1)
        elsewhere = [key for key in all_keys(kind) if key.rsplit(".", 1)[-1] == location[-1]]
        if close:
            hint = f"did you mean {'.'.join([*location[:-1], close[0]])}?"
        elif elsewhere:
            hint = f"did you mean {elsewhere[0]}?"
        else:
            hint = f"known here: {', '.join(known)}"
        return f"{name}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{name}: missing; give it in the file or as {name}=VALUE"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    return f"{name}: found {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}"


def _keys_beside(location: list[str], kind: type[Section]) -> list[str]:
    model: Any = kind
    for part in location[:-1]:
        field = model.model_fields.get(part)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)


def all_keys(kind: type[Section] = Config) -> list[str]:
    """Every `section.key` of a kind of configuration, in order."""
    sections: dict[str, Any] = {name: field.annotation for name, field in kind.model_fields.items()}
    return [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields]


def dump(config: Section) -> str:
    """The configuration as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def digest_tree(config: Section) -> dict[str, Any]:
    """The keys that decide the numbers of a run; a run folder goes on only where these are equal.

    What is left out changes speed, place or output alone: workers, micro batch, engine settings, logs."""
    tree = config.model_dump(mode="json")
    for section, names in {
        "run": ["dir"],
        "data": [
            "workers",
            "decoder",
            "max_skipped_share",
            "max_left_out_share",
            "shards",
            "cache",
            "root",
            "patience",
        ],
        "guidance": ["compile", "own_stream"],
        "model": ["attention", "activation_checkpointing", "compile"],
        "train": ["micro_batch_size", "max_minutes"],
        "faults": ["rollbacks", "hang_seconds", "start_seconds"],
    }.items():
        for name in names:
            tree.get(section, {}).pop(name, None)
    for section in ("deepspeed", "checkpoint", "log", "knn"):
        tree.pop(section, None)
    return tree
