"""Reading of any supported checkpoint into our names, for conversion, for a run's start and for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tgm_scale.conversion.formats import detect
from tgm_scale.conversion.key_maps import EXTRAS, ModelMetadata
from tgm_scale.conversion.readers import open_weights
from tgm_scale.conversion.weights import Weights
from tgm_scale.models.vit import SIZES, ModelSize

_ENCODER_FIELDS = ("width", "depth", "heads", "mlp", "patch", "tubelet")
_DECODER_FIELDS = ("decoder_width", "decoder_depth", "decoder_heads", "decoder_mlp", "decoder_attention")


def read(
    path: str | Path, stated: ModelMetadata | None = None, lossy: bool = False, tubelet: int = 2, raw: bool = False
) -> Weights:
    """Read the weights at `path`, in any supported format, checked name by name and shape by shape.

    stated: metadata given by the user; takes precedence over the file's. lossy: convert even if tensors (a class
    token, learned positions) must be dropped. tubelet: frames to inflate an image ViT over. raw: take the weights as
    trained if averaged ones (EMA), which the run's test used, exist, too.
    Raises ValueError that names the path, what was found and what was wanted."""
    opened = open_weights(path, raw)
    try:
        found = detect(opened.tensors)
        kind, state, notes = found.translate(opened.tensors, lossy, tubelet)
        agreed, differing = (stated or ModelMetadata()).over(opened.metadata)
        if ((agreed.config or {}).get("objective") or {}).get("normalise_by") == "clip":
            notes = [*notes, "trained on targets normalised by the clip: others' code computes its loss on other ones"]
        return Weights.of(kind, state, agreed, [*opened.notes, f"format: {found.name}", *notes, *differing])
    except ValueError as mistake:
        raise ValueError(f"{path}: {mistake}") from None


class TrainedOn(NamedTuple):
    """Sampling of a training's clips.

    whole_clips: frames of whole clips (data.sampling=segments); otherwise they are `stride` apart (None: unknown).
    standardised: whether clips were standardised."""

    whole_clips: bool
    stride: int | None
    standardised: bool

    @classmethod
    def of(cls, sampling: str | None, stride: int | None, standardise: bool) -> TrainedOn:
        whole_clips = sampling == "segments"
        return cls(whole_clips, None if whole_clips else stride, standardise)

    def unlike(self, sampling: str, stride: int, standardise: bool) -> list[str]:
        """Return warnings about clips that a run with these keys of `data` samples differently."""
        notes = []
        if sampling == "dense" and self.whole_clips:
            notes.append(
                f"warning: trained before on frames of whole clips, and here they are {stride} apart: "
                "data.sampling=segments takes them as there"
            )
        elif sampling == "dense" and self.stride not in (None, stride):
            notes.append(
                f"warning: trained before on frames {self.stride} apart, and here on data.stride={stride}; "
                f"data.stride={self.stride} is as before"
            )
        if self.standardised != standardise:
            before, now = str(self.standardised).lower(), str(standardise).lower()
            notes.append(
                f"warning: trained before with data.standardise={before}, and here with {now}; "
                f"data.standardise={before} is as before"
            )
        return notes


class Initial(NamedTuple):
    """Weights to start a run from, under the names of its checkpoints.

    report: notes from reading them; clip: frames and side of the clips that positions stem from; clips: how these
    clips were sampled; initialisation: of their training."""

    weights: dict[str, Tensor]
    report: list[str]
    clip: tuple[int, int]
    clips: TrainedOn
    initialisation: str | None  # None: not known

    def begun_otherwise(self, initialisation: str) -> list[str]:
        """Return a warning if the run's `model.initialisation` differs: it does not affect these weights."""
        if self.initialisation in (None, initialisation):
            return []
        return [
            f"warning: trained before from model.initialisation={self.initialisation}, and these weights keep that: "
            f"this run's {initialisation} is for training from scratch"
        ]


def read_initial(origin: str, size: ModelSize) -> Initial:
    """Read the weights of `train.init_from` for a run of this size, from any path that `read` takes.

    A foreign encoder without a decoder, or with one of another shape, gives the encoder alone; the run initialises
    what `weights` lacks. Raises ValueError if the encoder has another size, heads included."""
    try:
        found = read(origin, lossy=True, tubelet=size.tubelet)
    except ValueError as mistake:
        raise ValueError(f"train.init_from={mistake}") from None
    if differing := encoder_differences(found.size, size):
        raise ValueError(
            f"train.init_from={origin}: an encoder of another size than the run's: {', '.join(differing)}"
            f"{size_in_keys(found.size)}"
        )
    report, state = list(found.notes), found.state
    if found.kind == "classifier":
        state = {
            f"encoder.{name}": value for name, value in state.items() if name.startswith(("patch_embed", "blocks"))
        }
        report.append("a classifier: its fc_norm and head are left out")
    elif found.kind == "pretraining" and (differing := _differences(found.size, size, _DECODER_FIELDS)):
        state = {name: value for name, value in state.items() if name.startswith("encoder.") or name in EXTRAS}
        report.append(f"the decoder is another than the run's and is left out: {', '.join(differing)}")
    weights = {name if name == "log_scale" else f"model.{name}": value for name, value in state.items()}
    if not found.clip_known:
        report.append(
            f"it does not say its clips: taken for {found.frames} frames of {found.image_size} pixels, as published "
            "(`tgm-scale convert` can be told others)"
        )
    data, model, train = ((found.config or {}).get(section) or {} for section in ("data", "model", "train"))
    clips = TrainedOn.of(data.get("sampling"), data.get("stride"), found.standardised)
    clip = found.positions or (found.frames, found.image_size)
    return Initial(weights, report, clip, clips, None if train.get("init_from") else model.get("initialisation"))


def size_in_keys(found: ModelSize) -> str:
    """Return the keys that give a run this encoder's size; "" if no packaged size matches."""
    fields = [field for field in _ENCODER_FIELDS if field not in ("patch", "tubelet")]
    for name, size in SIZES.items():
        if not _differences(found, size, tuple(fields)):
            own = [f"model.{field}={getattr(found, field)}" for field in _differing_tokens(found, size)]
            return f"; set {' '.join([f'model.size={name}', *own])}"
    return ""


def _differing_tokens(found: ModelSize, size: ModelSize) -> list[str]:
    return [field for field in ("patch", "tubelet") if getattr(found, field) != getattr(size, field)]


def encoder_differences(found: ModelSize, wanted: ModelSize) -> list[str]:
    """Return the encoder fields that differ, with both values."""
    return _differences(found, wanted, _ENCODER_FIELDS)


def _differences(found: ModelSize, wanted: ModelSize, names: tuple[str, ...]) -> list[str]:
    return [
        f"{name} {getattr(found, name)} there, {getattr(wanted, name)} here"
        for name in names
        if getattr(found, name) != getattr(wanted, name)
    ]
