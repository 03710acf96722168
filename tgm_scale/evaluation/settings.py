"""Typed configurations of evaluation: frozen features (knn, probe, retrieve) and finetuning."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tgm_scale import config as configuration
from tgm_scale.config.data_sections import ClipsConfig, FrameSampling, GroupsConfig, Section
from tgm_scale.config.sections import Config, RunSettings, TrainingConfig
from tgm_scale.config.study_section import StudyConfig
from tgm_scale.contracts import MAX_FRAMES, MAX_SIDE, MAX_STRIDE, MAX_VIEWS
from tgm_scale.data.defaults import MAX_LEFT_OUT_SHARE
from tgm_scale.data.lists.selection import Role, Selection

_PART = "labelled videos (a folder of them, also with labels.csv, shards, or a list)"


class LabelledConfig(GroupsConfig):
    """Labelled videos: shards (folder, pattern, list of them) or a list file in a published format (data/lists)."""

    train: str | list[str] | None = Field(None, description=f"{_PART} to fit on; not needed for retrieval")
    test: str | list[str] = Field(description=f"{_PART} to be tested on")
    root: str | None = Field(None, description="folder of the videos that list files name; default: the list's own")
    label: str = Field("label", description="where a sample's json has it; of EPIC-Kitchens: verb, noun, action")
    split: int = Field(1, ge=1, le=3, description="which split of HMDB51's folder")
    share: float = Field(
        1.0, gt=0, le=1, description="share of the training labels of each class that is used, drawn by run.seed"
    )
    classes: str | None = Field(None, description="classes in order: names, one a line, or JSON (see classes.py)")
    max_left_out_share: float = Field(
        MAX_LEFT_OUT_SHARE, ge=0, le=1, description="no start above this share of samples that are not there"
    )
    workers: int = Field(8, ge=0, description="decoding processes of each rank; 0 decodes in the evaluating process")
    sampling: FrameSampling = Field("dense", description="a window of frames, or one of each of equal segments (TSN)")
    stride: int | None = Field(
        None, ge=1, le=MAX_STRIDE, description="of dense windows; default: that of the pretraining"
    )
    standardise: bool | None = Field(
        None, description="bring each clip to one brightness and contrast; default: as in the pretraining"
    )

    def selection(self, role: Role) -> Selection:
        """Return which rows and columns of a list make up the part `role`."""
        return Selection(role, "label", self.label, self.group, self.split, self.test_groups)

    @model_validator(mode="after")
    def _one_list(self) -> LabelledConfig:
        if self.test_groups is not None and self.train not in (None, self.test):
            raise ValueError(
                f"data.test_groups divides one list, and data.train={self.train} is not data.test={self.test}: give"
                " the same twice, or leave data.test_groups out"
            )
        return self


class EncoderConfig(Section):
    checkpoint: str = Field(
        description="run folder, checkpoint, any file that conversion reads; 'random': random weights"
    )
    size: Literal["tiny", "S", "B", "L", "H", "g"] | None = Field(
        None, description="size of the model of random weights; default: B"
    )
    initialisation: Literal["videomae", "local"] | None = Field(
        None, description="start of random weights, as model.initialisation of a run; default: videomae"
    )
    frames: int | None = Field(
        None, ge=1, le=MAX_FRAMES, description="frames of a clip; default: the checkpoint's, 16 of random weights"
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=MAX_SIDE,
        description="side of the clip, pixels; default: the checkpoint's, 224 of random weights",
    )
    temporal_views: int = Field(1, ge=1, le=MAX_VIEWS, description="features are the mean over the views of a video")
    spatial_views: Literal[1, 3] = Field(1, description="the centre square, or three squares along the long side")


class NeighboursConfig(Section):
    k: int = Field(20, ge=1, description="neighbours that vote")
    temperature: float = Field(0.07, gt=0, description="a vote counts exp(cosine / temperature)")


class ProbeConfig(Section):
    head: Literal["linear", "attentive"] = Field(
        "linear", description="logistic regression on the mean token, or attention with one learned query"
    )
    pool: Literal["mean", "2x2", "4x4"] = Field(
        "mean",
        description="what the linear head reads: the mean of all tokens, or those of 2x2 or 4x4 places in each slot "
        "of time",
    )
    epochs: int = Field(20, ge=1, description="passes over the training clips, of the attentive head")
    steps: int = Field(
        200, ge=1, description="updates of the attentive head, at least: few clips get more passes than epochs"
    )
    batch_size: int = Field(256, ge=2, description="clips of an update of the attentive head")
    learning_rates: tuple[float, ...] = Field(
        (1e-4, 3e-4, 1e-3, 3e-3),
        strict=False,
        min_length=1,
        description="tried for the attentive head; the best stays",
    )
    weight_decay: float = Field(0.01, ge=0, le=10, description="weight decay of the attentive head")
    heads: int = Field(8, ge=1, description="attention heads of the attentive head")
    baselines: bool = Field(
        False, description="compare with raw pixels, random weights and a small CNN, on up to 5,000 training clips"
    )

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < rate <= 10 for rate in value):
            raise PydanticCustomError("rates", "wanted rates above 0, of at most 10")
        return value

    @model_validator(mode="after")
    def _of_one_head(self) -> ProbeConfig:
        if self.head == "attentive" and self.pool != "mean":
            raise ValueError(
                f"probe.pool={self.pool} is of the linear head, and the attentive one reads all tokens: leave it out, "
                "or set probe.head=linear"
            )
        return self


class RetrieveConfig(Section):
    towers: str | None = Field(None, description="folder of the text tower; default: that of the pretraining")
    templates: tuple[str, ...] = Field(
        ("{}", "a video of {}", "a person {}"),
        strict=False,
        min_length=1,
        description="sentences that a class name is put into for zero-shot classes; their embeddings are averaged",
    )
    zero_shot: bool = Field(False, description="classify by the nearest class text, instead of retrieval by captions")


class FrozenConfig(RunSettings):
    """Configuration of `tgm-scale knn`, `probe` and `retrieve`."""

    commands: ClassVar[tuple[str, ...]] = ("knn", "probe", "retrieve")
    data: LabelledConfig
    encoder: EncoderConfig
    neighbours: NeighboursConfig = NeighboursConfig()
    probe: ProbeConfig = ProbeConfig()
    retrieve: RetrieveConfig = RetrieveConfig()


class TrainTestConfig(LabelledConfig):
    train: str | list[str] = Field(description=f"{_PART} to train on")


class SupervisedConfig(FrozenConfig):
    """Configuration of `tgm-scale knn` and `probe`, which learn from labels."""

    commands: ClassVar[tuple[str, ...]] = ("knn", "probe")
    data: TrainTestConfig


class FinetuneDataConfig(TrainTestConfig, ClipsConfig):
    frames: int = Field(16, ge=1, le=MAX_FRAMES, description="frames of a clip; positions are interpolated to it")
    size: int = Field(
        224, ge=8, le=MAX_SIDE, description="side of the square clip, pixels; positions are interpolated to it"
    )
    stride: int = Field(
        4, ge=1, le=MAX_STRIDE, description="of dense windows: source frames from one sampled frame to the next"
    )
    repeated_augmentation: int = Field(2, ge=1, description="clips drawn from each decoded video")
    crop: Literal["multi_scale", "random_resized", "center"] = Field(
        "random_resized", description="how the square is cut from the frame in training"
    )
    flip: bool = Field(True, description="false where classes tell left from right (SSv2)")
    standardise: bool = Field(
        False, description="bring each clip to one brightness and contrast, in training and test"
    )


class FinetuneSection(Section):
    layer_decay: float = Field(
        0.75, gt=0, le=1, description="factor of the learning rate from each block to the one below"
    )
    drop_path: float = Field(0.1, ge=0, lt=1, description="drop path of the last block; grows linearly from 0")
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="share of the target that is spread evenly over all classes"
    )
    mixup: float = Field(0.8, ge=0, le=1000, description="alpha of mixup; 0: none")
    cutmix: float = Field(1.0, ge=0, le=1000, description="alpha of cutmix; 0: none")
    rand_augment: str | None = Field("rand-m7-n4-mstd0.5-inc1", description="RandAugment, in timm's words; null: none")
    random_erasing: float = Field(0.25, ge=0, le=1, description="probability of erasing a random box")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of averaged weights (bias-corrected), which are then tested"
    )
    shift: float = Field(
        0.0, ge=0, lt=1, description="training clips are moved by up to this share of their side; black comes in"
    )
    token_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a clip's tokens that is read, in training and test: those whose pixels vary most; for "
        "clips that are mostly empty",
    )
    head_norm: Literal["none", "batch"] = Field(
        "none",
        description="'batch': BatchNorm without weights before the head, over the global batch: for small models and "
        "few clips; a third more arithmetic",
    )
    baselines: bool = Field(
        False, description="compare with raw pixels, random weights and a small CNN, on up to 5,000 training clips"
    )
    test_temporal_views: int = Field(
        5, ge=1, le=MAX_VIEWS, description="windows of a test video whose scores are averaged"
    )
    test_spatial_views: Literal[1, 3] = Field(3, description="squares of each window whose scores are averaged")


class FinetuneConfig(TrainingConfig):
    """Configuration of `tgm-scale finetune`. Sections shared with a pretraining run have the same meaning there."""

    commands = ("finetune",)
    data: FinetuneDataConfig
    finetune: FinetuneSection = FinetuneSection()

    @model_validator(mode="after")
    def _combinations(self) -> FinetuneConfig:
        train, repeats = self.train, self.data.repeated_augmentation
        if train.micro_batch_size % self.clips_together:
            raise ValueError(
                f"train.micro_batch_size={train.micro_batch_size} is not a multiple of {self.clips_together}: "
                f"data.repeated_augmentation={repeats} clips of a video share a micro batch, and mixup pairs videos"
            )
        if self.finetune.head_norm == "batch" and train.global_batch_size <= repeats:
            raise ValueError(
                f"train.global_batch_size={train.global_batch_size} is one video (data.repeated_augmentation="
                f"{repeats} times), and finetune.head_norm=batch normalises by the differences of videos: make it "
                "larger, or set finetune.head_norm=none"
            )
        if self.finetune.token_share < 1 and self.finetune.random_erasing:
            raise ValueError(
                f"finetune.token_share={self.finetune.token_share:g} reads the tokens whose pixels vary most, and "
                f"finetune.random_erasing={self.finetune.random_erasing:g} fills a box with noise, which varies more "
                "than any video: set finetune.random_erasing=0"
            )
        return self

    @property
    def clips_together(self) -> int:
        """Number of clips that must share a micro batch."""
        return self.data.repeated_augmentation * (2 if self.finetune.mixup or self.finetune.cutmix else 1)


def load_frozen(path: str | None, overrides: list[str], kind: type[FrozenConfig] = FrozenConfig) -> FrozenConfig:
    """Load a configuration from a YAML file, or from the overrides alone if `path` is None.

    Raises ValueError that lists every mistake."""
    return configuration.checked(_tree(path, overrides), path or configuration.COMMAND_LINE, kind, overrides)


def load_finetune(path: str, overrides: list[str]) -> FinetuneConfig:
    return configuration.checked(_tree(path, overrides), path, FinetuneConfig, overrides)


def load_pretraining(path: str, overrides: list[str]) -> Config:
    """Load a pretraining configuration by `config.load`; keys of the configurations above are recognised as theirs."""
    return configuration.load(path, overrides)


def load_any(path: str, overrides: list[str]) -> RunSettings:
    """Load a configuration whose type follows from its keys: study, frozen features, finetuning or pretraining."""
    tree = _tree(path, overrides)
    data = tree.get("data")
    kind: type[RunSettings] = Config
    if "study" in tree:
        kind = StudyConfig
    elif "encoder" in tree:
        kind = FrozenConfig
    elif "finetune" in tree or (isinstance(data, dict) and {"train", "test"} & data.keys()):
        kind = FinetuneConfig
    return configuration.checked(tree, path, kind, overrides)


def load_training(path: str, overrides: list[str]) -> Config | FinetuneConfig:
    """Load a configuration of pretraining or finetuning. Raises ValueError for mistakes, or if it trains nothing."""
    found = load_any(path, overrides)
    if not isinstance(found, (Config, FinetuneConfig)):
        raise ValueError(f"{path}: of frozen features (it has encoder.checkpoint): wanted one of a training run")
    return found


def _tree(path: str | None, overrides: list[str]) -> dict[str, Any]:
    if path is None:
        return configuration.apply_overrides({}, overrides)
    return configuration.read_for_run(path, overrides)
