"""Configuration sections on data: corpora, and the sampling of clips from them."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tgm_scale.contracts import MAX_FRAMES, MAX_SIDE, MAX_STRIDE, WEEK


def _finite(value: Any) -> Any:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if any(isinstance(one, int | float) and not abs(one) <= sys.float_info.max for one in inner):  # huge ones too
        raise PydanticCustomError("finite_number", "Input should be a finite number")
    return value


FrameSampling = Literal["dense", "segments"]
Finite = Annotated[Any, AfterValidator(_finite)]  # any YAML value without numbers that JSON lacks


class Section(BaseModel):
    """A part of the configuration: unknown keys, wrong types and empty texts are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse an empty text, which as a path would be the current folder, and integers beyond the 64 bits of
        tensors and counters. Raises an error to which pydantic adds the key."""
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise PydanticCustomError("out_of_reach", "wanted a whole number of at most 64 bits")
        if value == "" or (isinstance(value, list) and "" in value):
            raise PydanticCustomError("empty", "wanted a text that is not empty")
        assert info.field_name is not None
        either = get_args(cls.model_fields[info.field_name].annotation)  # matches `str | list[str]`, not `list[str]`
        if value == [] and str in either and len(either) > 1:
            raise PydanticCustomError("none_given", "wanted a text, or a list with one at least")
        return value


class CorpusConfig(Section):
    path: str = Field(description="folder or pattern of shards, or a list of videos")
    weight: float | None = Field(None, gt=0, description="share of the samples; default: by size")


class SyntheticConfig(Section):
    """A synthetic corpus, generated on first use in the folder `data.shards`."""

    clips: int = Field(256, ge=1, description="clips of the corpus")
    mode: Literal["named", "one_mover"] = Field(
        "named", description="several objects of which the caption names one, or one object that moves"
    )
    seed: int = Field(0, description="seed of the clips' contents")


class CacheConfig(Section):
    """Folder on a node's own disk that caches data of remote shards."""

    dir: str = Field(description="the folder, on each node's own disk")
    gigabytes: float = Field(100, gt=0, description="the folder's bound: what was not used for the longest goes first")


class ClipsConfig(Section):
    """Sampling of training clips from videos."""

    frames: int = Field(16, ge=1, le=MAX_FRAMES, description="frames of a clip")
    sampling: FrameSampling = Field("dense", description="a window of frames, or one of each of equal segments (TSN)")
    stride: int = Field(
        4, ge=1, le=MAX_STRIDE, description="of dense windows: source frames from one sampled frame to the next"
    )
    time_jitter: float = Field(
        0.0, ge=0, lt=1, description="of segments: each draw moves and stretches them by up to this share of the video"
    )
    standardise: bool = Field(
        False, description="bring each clip to one brightness and contrast, for videos of unlike lighting"
    )
    size: int = Field(224, ge=8, le=MAX_SIDE, description="side of the square clip, pixels")
    workers: int = Field(8, ge=0, description="decoding processes of each rank; 0 decodes in the training process")
    repeated_augmentation: int = Field(1, ge=1, description="clips drawn from each decoded sample")
    crop: Literal["multi_scale", "random_resized", "center"] = Field(
        "multi_scale", description="how the square is cut from the frame; the same for all frames of a clip"
    )
    flip: bool = Field(False, description="mirror half of the clips, left to right")
    window_shards: int = Field(16, ge=1, description="samples are shuffled within this many shards")
    max_skipped_share: float = Field(0.1, ge=0, le=1, description="the run stops above this share of broken samples")

    @model_validator(mode="after")
    def _jitters_segments(self) -> ClipsConfig:
        if self.time_jitter and self.sampling == "dense":
            raise ValueError(
                f"data.time_jitter={self.time_jitter}: it is of frames of whole clips; set data.sampling=segments, or "
                "data.time_jitter=0: dense windows lie at random as they are"
            )
        return self


class GroupsConfig(Section):
    """Groups of clips, such as a subject, a speaker or a scene: no two parts of the data share one."""

    group: str = Field("group", description="column of a list, or of a folder's labels.csv, that has a clip's group")
    test_groups: float | tuple[str, ...] | None = Field(
        None,
        description="the groups of the test, or their share of all, where a list has no column 'split': [2, 4] or 0.2",
    )

    @field_validator("test_groups", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(str, value))
        return (str(value),) if isinstance(value, int | str) else value

    @field_validator("test_groups")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value == () or (isinstance(value, float) and not 0 < value < 1):
            raise ValueError(
                f"data.test_groups={list(value) if value == () else value}: wanted a share above 0 and below 1, or a "
                "list of groups, such as [2, 4]"
            )
        return value


class DataConfig(ClipsConfig, GroupsConfig):
    shards: str | list[str | CorpusConfig] = Field(description="folder or pattern of shards, or a list of them")
    synthetic: SyntheticConfig | None = Field(
        None, description="make a synthetic corpus where there is no data.shards"
    )
    cache: CacheConfig | None = Field(None, description="keep what was read from remote shards on the node's disk")
    decoder: Literal["pyav"] = Field("pyav", description="what decodes videos")
    max_left_out_share: float = Field(
        0.3, ge=0, le=1, description="no start above this share of samples that are not there"
    )
    patience: float = Field(300, ge=0, le=WEEK, description="seconds of waiting for a storage that does not answer")
    root: str | None = Field(None, description="folder of the videos that a list names; default: the list's own")
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406),
        description="means of red, green, blue in 0..1, by which pixels are normalised; ImageNet's",
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
