"""Reading and checks of a transformers folder's config.json.

Of VideoMAEConfig, the heads, the clips and the classes' names are read; `hidden_act`, `num_channels`, `qv_bias` and
the norms' eps are refused if they differ from ours, and `num_hidden_layers` and `use_mean_pooling` if the tensors
contradict them, as transformers then leaves tensors out. Other fields change nothing here: widths, patch and tubelet
follow from the tensors (transformers loads no others), dropout and `initializer_range` concern training,
`norm_pix_loss` the loss.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tgm_scale.conversion.key_maps import Count, Frames, ModelMetadata, RunConfig, Side
from tgm_scale.conversion.weights import OWN_ENTRY
from tgm_scale.runtime.mistakes import first_error

# 1e-12 (transformers' default), 1e-6 (ours) and 1e-5 (torch's) give outputs 1e-5 apart; 0.1 shifts them by 0.2
_Eps = Annotated[float, Field(ge=0, le=1e-5, allow_inf_nan=False, strict=True)]


class _Own(BaseModel):
    config: RunConfig | None = None


class _VideoMAE(BaseModel):
    num_attention_heads: Count
    decoder_num_attention_heads: Count
    num_frames: Frames
    image_size: Side  # a pair would mean clips that are not square
    id2label: dict[str, str | int | float] | None
    num_hidden_layers: Count
    decoder_num_hidden_layers: Count
    use_mean_pooling: bool = Field(strict=True)
    hidden_act: Literal["gelu"]
    num_channels: Literal[3]
    layer_norm_eps: _Eps
    qv_bias: Literal[True]
    qkv_bias: Literal[True] = True  # an earlier name of qv_bias, which takes precedence
    tgm_scale: _Own | None = None


class _Settings(BaseModel):
    num_heads: Count | None = None
    all_frames: Frames | None = None
    num_frames: Frames | None = None
    img_size: Side | None = None
    depth: Count | None = None
    in_chans: Literal[3] = 3
    qk_scale: None = None
    layer_norm_eps: _Eps = 1e-6
    cos_attn: Any = False


class _VideoMAE2(BaseModel):
    settings: _Settings | None = Field(None, alias="model_config")


_Kind = TypeVar("_Kind", bound=BaseModel)


def metadata_of_videomae(settings: Mapping[str, Any], names: Collection[str]) -> ModelMetadata:
    """Return the metadata of a VideoMAE configuration.

    settings: completed by transformers' defaults; names: of the folder's tensors. Raises ValueError that names the
    field."""
    found = _checked(_VideoMAE, settings)
    _check_depth("num_hidden_layers", found.num_hidden_layers, r"encoder\.layer", names)
    _check_depth("decoder_num_hidden_layers", found.decoder_num_hidden_layers, "decoder_layers", names)
    with_norm = any(re.search(r"(?<!\w)layernorm\.weight$", name) for name in names)
    if with_norm == found.use_mean_pooling:
        raise ValueError(
            f"use_mean_pooling: found {str(found.use_mean_pooling).lower()}, and weights "
            f"{'with' if with_norm else 'without'} a norm after their blocks (layernorm), which is there where the "
            "mean is not taken"
        )
    labels = found.id2label or {}
    if sorted(labels) != sorted(map(str, range(len(labels)))):
        raise ValueError(f"id2label: wanted the numbers from 0, found {', '.join(labels)[:80]}")
    named = any(label != f"LABEL_{number}" for number, label in labels.items())
    return ModelMetadata(
        found.num_attention_heads,
        found.decoder_num_attention_heads,
        found.num_frames,
        found.image_size,
        tuple(str(labels[str(number)]) for number in range(len(labels))) if named else None,
        (settings.get(OWN_ENTRY) or {}).get("config"),
    )


def metadata_of_videomae_2(settings: Mapping[str, Any], names: Collection[str]) -> ModelMetadata:
    """Return the metadata of a folder of VideoMAE V2's own code; as `metadata_of_videomae`."""
    found = _checked(_VideoMAE2, settings).settings or _Settings()
    if found.depth is not None:
        _check_depth("depth", found.depth, "blocks", names)
    if found.cos_attn:
        raise ValueError("cos_attn: attention here is the plain one, nothing exact comes of it")
    return ModelMetadata(found.num_heads, None, found.all_frames or found.num_frames, found.img_size)


def _check_depth(field: str, stated: int, stack: str, names: Collection[str]) -> None:
    there = [int(number[1]) for name in names if (number := re.search(rf"(?<!\w){stack}\.(\d+)\.", name))]
    if there and stated != 1 + max(there):
        raise ValueError(f"{field}: found {stated}, and weights of {1 + max(there)} blocks")


def _checked(kind: type[_Kind], settings: Mapping[str, Any]) -> _Kind:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
