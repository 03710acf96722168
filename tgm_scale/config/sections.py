"""Sections of a configuration: their keys, types and defaults, and constraints between them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tgm_scale.config.data_sections import ClipsConfig, DataConfig, Finite, Section
from tgm_scale.config.objective_section import ObjectiveConfig
from tgm_scale.contracts import MAX_FRAMES, MAX_SIDE, WEEK


class RunConfig(Section):
    dir: str = Field(description="folder of the run: configuration, metrics, checkpoints")
    seed: int = Field(0, description="seed of all that is random: weights, order, crops, captions, masks")


class GuidanceConfig(Section):
    towers: str | None = Field(
        None,
        description="folder of a CLIP or SigLIP model, or 'small' for the packaged one; for terms that read captions "
        "and no masks, of a text encoder too",
    )
    scorer: Literal["raw", "value", "vv"] = Field(
        "value", description="patch features that relevance is computed from: last layer, MaskCLIP's or CLIP Surgery's"
    )
    frames_per_tubelet: Literal["all", "one"] = Field(
        "all", description="frames of a tubelet that the image tower scores; 'one': the middle one"
    )
    resolution: int | None = Field(None, ge=16, le=MAX_SIDE, description="side the image tower sees; default: its own")
    captions: Literal["drawn", "mean"] = Field(
        "drawn", description="of several: relevance to the drawn one, or the mean over all"
    )
    flow: str = Field("dis", description="optical flow: 'dis' (OpenCV) or a file of torchvision RAFT weights")
    cached: bool = Field(False, description="read relevance from the shards (`tgm-scale shards cache` puts it there)")
    compile: bool = Field(False, description="torch.compile for the image tower")
    own_stream: bool = Field(False, description="on a GPU: look at the next step's clips while this step runs")


class MaskingConfig(Section):
    recipe: str = Field("tube", description="which tokens are hidden: a row of the table in docs/RECIPES.md")
    mask_ratio: float = Field(0.9, gt=0, lt=1, description="share of the tokens that is hidden; rounded down")
    visible_ratio: float | None = Field(
        None, gt=0, lt=1, description="share the encoder sees; default: all not hidden"
    )
    options: dict[str, Finite] = Field(
        default_factory=dict, description="changes to the recipe, such as temperature: docs/RECIPES.md"
    )


class ModelConfig(Section):
    size: Literal["tiny", "S", "B", "L", "H", "g"] = Field("B", description="dimensions: a line of models/vit.py")
    patch: int | None = Field(None, ge=1, le=MAX_SIDE, description="patch side, pixels; default: that of the size")
    tubelet: int | None = Field(None, ge=1, le=MAX_FRAMES, description="frames of a token; default: that of the size")
    depth: int | None = Field(None, ge=1, le=1024, description="blocks of the encoder; default: the size's")
    decoder_depth: int | None = Field(None, ge=1, le=1024, description="blocks of the decoder; default: the size's")
    decoder_attention: Literal["self", "cross"] = Field(
        "self",
        description="'cross': a token to reconstruct attends to the visible ones alone (CrossMAE), not to others",
    )
    decode_ratio: float = Field(1.0, gt=0, le=1, description="share of the hidden tokens that is reconstructed")
    attention: Literal["auto", "sdpa", "flash"] = Field(
        "auto", description="torch's fused attention or flash-attn's kernel; 'auto' takes the latter where it can"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute each block in the backward pass: less memory, a third more arithmetic"
    )
    compile: bool = Field(False, description="torch.compile for each block; not with ZeRO stage 3")
    initialisation: Literal["videomae", "local"] = Field(
        "videomae", description="'local': attention starts on neighbouring tokens, for runs of minutes"
    )


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    name: Literal["adamw", "lion"] = Field("adamw", description="the optimizer: AdamW or Lion, which keeps one moment")
    base_lr: float = Field(1.5e-4, gt=0, description="learning rate at a batch of 256; scaled with the global batch")
    min_lr: float = Field(0.0, ge=0, description="where the cosine schedule ends, in the units of base_lr")
    weight_decay: float = Field(0.05, ge=0, description="weight decay, decoupled; of matrices alone")
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.95),
        strict=False,
        description="decay rates: AdamW's two moments'; Lion's direction's and moment's (its paper: 0.9, 0.99)",
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps with rising learning rate")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient; null: not clipped")

    @model_validator(mode="after")
    def _falls(self) -> OptimConfig:
        if self.min_lr > self.base_lr:
            raise ValueError(
                f"optim.min_lr={self.min_lr:g} is above optim.base_lr={self.base_lr:g}: the rate would rise to "
                "the end; give one that is not above"
            )
        return self


class TrainConfig(Section):
    steps: int | None = Field(None, ge=1, description="updates of the run; or give epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the data, in place of steps")
    global_batch_size: int = Field(256, ge=1, description="clips of one update, over all ranks and micro steps")
    micro_batch_size: int = Field(
        8, ge=1, description="clips of one forward pass on one rank, at most: many ranks leave each fewer"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="'auto': bf16 on a GPU, else fp32")
    init_from: str | None = Field(
        None, description="first weights: run folder, checkpoint, any file that conversion reads"
    )
    max_minutes: float | None = Field(None, gt=0, description="checkpoint and leave for requeueing after this time")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value == "fp16":
            raise ValueError(
                "train.precision=fp16 is not supported, since no checkpoint has its loss scale: use bf16, which needs "
                "none, or fp32"
            )
        return value

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
    stage: Literal[0, 1, 2, 3] | None = Field(
        None, description="stage of ZeRO; default: that of the JSON, else 1 in bf16 and 0 otherwise"
    )


class CheckpointConfig(Section):
    every: int = Field(500, ge=1, description="steps from one checkpoint to the next")
    keep: int = Field(3, ge=1, description="newest checkpoints that stay")
    keep_every: int | None = Field(None, ge=1, description="checkpoints of these multiples of steps stay, too")


class FaultsConfig(Section):
    spike_factor: float | None = Field(None, gt=1, description="refuse a loss above this times the recent median")
    refused_before_rollback: int = Field(3, ge=1, description="refused updates in a row that cause a rollback")
    rollbacks: int = Field(3, ge=0, description="rollbacks after which the run stops")
    hang_seconds: float = Field(
        50, gt=0, le=WEEK, description="how long a rank waits for another before it stops; 10 usual steps at least"
    )
    start_seconds: float = Field(600, gt=0, le=WEEK, description="how long the processes of a start wait for another")


class WandbConfig(Section):
    """Weights & Biases board: the same rows as in TensorBoard, where the package wandb is installed."""

    project: str = Field(description="the project's name there")
    mode: Literal["online", "offline"] | None = Field(
        None, description="'offline' writes to RUN/wandb, for `wandb sync`; default: WANDB_MODE, else online"
    )

    @field_validator("project")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if not 0 < len(value.strip()) <= len(value) <= 128 or set(value) & set("/\\#?%:"):
            raise ValueError(f"log.wandb.project={value}: wanted a name of 1 to 128 letters, none of / \\ # ? % :")
        return value


class LogConfig(Section):
    every: int = Field(20, ge=1, description="steps from one printed line to the next")
    tensorboard: bool = Field(True, description="write TensorBoard files next to metrics.jsonl")
    wandb: WandbConfig | None = Field(None, description="show the rows in Weights & Biases, too; default: not")


class PretrainingLogConfig(LogConfig):
    pictures_every: int | None = Field(
        None,
        ge=1,
        description="steps from one picture of masks and reconstructions of a fixed few clips (of knn.test, else of "
        "the data) to the next, in RUN/pictures and TensorBoard; default: never",
    )


class ProfileConfig(Section):
    """Trace of a few steps, in RUN/profile/."""

    steps: str | int | None = Field(
        None,
        description="steps of rank 0 to trace: 100, or 100-102; on a GPU with its memory; default: none",
    )

    @field_validator("steps")
    @classmethod
    def _of_steps(cls, value: str | int | None) -> str | int | None:
        first, dash, last = str(value).partition("-")
        ends = [first, last] if dash else [first]
        if value is not None and (not all(end.isascii() and end.isdigit() for end in ends) or not _rises(ends)):
            raise ValueError(
                f"profile.steps={value}: wanted the number of a step, or first-last such as 100-102; the first is 1"
            )
        return value

    def range(self) -> range:
        """Return the steps to trace, counted from 1."""
        if self.steps is None:
            return range(0)
        first, _, last = str(self.steps).partition("-")
        return range(int(first), int(last or first) + 1)


def _rises(ends: list[str]) -> bool:
    return 1 <= int(ends[0]) <= int(ends[-1])


class KnnConfig(Section):
    """Nearest neighbours on a small labelled set during training; its metrics go to metrics.jsonl."""

    every: int | None = Field(None, ge=1, description="steps from one look to the next; default: never")
    train: str | list[str] | None = Field(None, description="labelled shards, or a list file")
    test: str | list[str] | None = Field(None, description="labelled shards, or a list file")
    label: str = Field("label", description="where a sample's json has its label, such as truth.objects.0.motion")
    root: str | None = Field(None, description="folder of the videos that list files name")
    k: int = Field(20, ge=1, description="neighbours that vote")


class RunSettings(Section):
    """Base of all kinds of configuration: each names the folder of its run."""

    commands: ClassVar[tuple[str, ...]] = ()  # commands of tgm-scale that take this kind
    run: RunConfig


class TrainingConfig(RunSettings):
    """Settings shared by pretraining and finetuning."""

    data: ClipsConfig
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    log: LogConfig = LogConfig()
    profile: ProfileConfig = ProfileConfig()


class Config(TrainingConfig):
    commands = ("pretrain",)
    data: DataConfig
    guidance: GuidanceConfig = GuidanceConfig()
    masking: MaskingConfig = MaskingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    log: PretrainingLogConfig = PretrainingLogConfig()
    knn: KnnConfig = KnnConfig()

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        train, objective, data = self.train, self.objective, self.data
        contrast, without_contrast = objective.key("contrast"), " ".join(objective.without({"contrast"}))
        if not objective.weights():
            raise ValueError(
                "objective.reconstruction_weight and objective.contrastive_weight are both 0: nothing is learned; "
                "set one of them above 0"
                if objective.terms is None
                else f"objective.terms={objective.in_yaml()}: nothing is learned; give a term a weight above 0, "
                "such as 'objective.terms={pixels: 1}'"
            )
        if objective.contrastive_weight > 0 and self.guidance.towers is None:
            raise ValueError(
                f"{contrast} > 0 needs a text tower: set guidance.towers to the folder of a CLIP or SigLIP model (or "
                f"to 'small'), or set {without_contrast}"
            )
        negatives = objective.contrastive_batch
        if negatives is not None and train.global_batch_size % negatives:
            raise ValueError(
                f"objective.contrastive_batch={negatives} does not divide train.global_batch_size="
                f"{train.global_batch_size}: choose a divisor, or leave it out for the whole global batch"
            )
        if objective.contrastive_weight > 0 and (negatives or train.global_batch_size) <= data.repeated_augmentation:
            name = "train.global_batch_size" if negatives is None else "objective.contrastive_batch"
            raise ValueError(
                f"{name}={negatives or train.global_batch_size} is one clip (data.repeated_augmentation="
                f"{data.repeated_augmentation} times), and the contrast needs other clips: make it larger, or set "
                f"{without_contrast}"
            )
        if train.micro_batch_size % data.repeated_augmentation:
            raise ValueError(
                f"data.repeated_augmentation={data.repeated_augmentation} does not divide train.micro_batch_size="
                f"{train.micro_batch_size}: repeats of a sample share a micro batch, so choose a divisor"
            )
        given = [corpus.weight is not None for corpus in data.corpora()]
        if any(given) and not all(given):
            raise ValueError("data.shards: give every corpus a weight, or none (their shares then go by size)")
        if self.log.pictures_every is not None and objective.reconstruction_weight == 0:
            raise ValueError(
                f"log.pictures_every={self.log.pictures_every} draws reconstructions, and "
                f"{objective.key('pixels')}=0 learns none: leave it out, or set a weight above 0"
            )
        if self.knn.every is not None and not (self.knn.train and self.knn.test):
            raise ValueError("knn.every needs a labelled set: give knn.train and knn.test")
        if data.synthetic is not None and not isinstance(data.shards, str):
            raise ValueError("data.synthetic makes one corpus in one folder: data.shards must be that folder's name")
        return self
