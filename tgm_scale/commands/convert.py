"""`tgm-scale convert`: checkpoints from and to the formats of the field, each conversion checked by its outputs."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tgm_scale.commands.command import Command, positive
from tgm_scale.contracts import MAX_FRAMES, MAX_SIDE

FORMATS = ("videomae", "videomae-finetune", "huggingface", "timm", "safetensors")

_DESCRIPTION = """Convert a checkpoint. What the input is, is told by what is in it:

  a run folder (its newest checkpoint) or checkpoint folder of this project, of any ZeRO stage
  VideoMAE, VideoMAE V2 and MGMAE: pretraining and finetuned files, DeepSpeed folders
  transformers folders of VideoMAE, of version 4 and 5
  mae_st files, its own and PySlowFast's; image ViTs of timm and MAE: their encoders, with --lossy
  what this tool has written
Of weights that lie there both as trained and averaged (finetune.ema, state_dict_ema) the averaged ones are taken: they
are what was tested. VideoMAE's finetuning tests `model`, which is taken before its `model_ema`.
"""
_EPILOG = """formats:
  videomae           a torch file that VideoMAE's pretraining and finetuning scripts load
  videomae-finetune  a torch file of its finetuned form: patch_embed, blocks, fc_norm, head
  huggingface        a folder for from_pretrained of VideoMAEForPreTraining or VideoMAEForVideoClassification
  timm               the transformer blocks under timm's names, one safetensors file; no timm model loads it as it is
  safetensors        everything this project has, with the model's dimensions and the run's configuration

examples:
  tgm-scale convert runs/vitb exports/vitb --to huggingface
  tgm-scale convert runs/vitb exports/vitb-k400 --to huggingface --classes 400
  tgm-scale convert runs/vitb/checkpoints/step-00080000 vitb.pth --to videomae
  tgm-scale convert VideoMAE_ViT-B.pth vitb.safetensors --to safetensors
  tgm-scale convert mae_pretrain_vit_base.pth image.safetensors --to safetensors --lossy

The output is loaded back and run on a fixed clip; nothing is kept where it does not give the input's outputs.
Exit code: 0 it was written, 1 the disk failed or the outputs differ, 2 a mistake in the arguments or the input.
"""


_frames, _side = partial(positive, most=MAX_FRAMES), partial(positive, most=MAX_SIDE)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", help="a folder or file")
    parser.add_argument("output", metavar="OUTPUT", help="a path that does not exist yet")
    parser.add_argument("--to", required=True, choices=FORMATS, metavar="FORMAT", help="what to write: see below")
    parser.add_argument("--classes", type=positive, metavar="N", help="put a fresh head of N classes on the encoder")
    parser.add_argument("--lossy", action="store_true", help="convert though a class token or positions are lost")
    parser.add_argument("--raw", action="store_true", help="the weights as trained, where averaged ones (EMA) lie by")
    parser.add_argument("--heads", type=positive, metavar="N", help="attention heads, where the input does not say")
    parser.add_argument("--decoder-heads", type=positive, metavar="N", help="those of the decoder")
    parser.add_argument("--frames", type=_frames, metavar="N", help="frames of a clip (default: the input's, or 16)")
    parser.add_argument("--size", type=_side, metavar="N", help="side of a clip (default: the input's, or 224)")
    parser.add_argument(
        "--tubelet", type=_frames, default=2, metavar="N", help="frames to inflate an image model over (default: 2)"
    )
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="RUN",
        help="an evaluation of the input, whose figures the model card has; of huggingface, may be repeated",
    )


def _run(options: argparse.Namespace) -> int:
    from tgm_scale.conversion.convert import ConversionFailed

    try:
        _convert(options)
    except RuntimeError as failure:  # torch's own, where the weights read do not match one another
        raise ConversionFailed(str(failure)) from failure
    return 0


def _convert(options: argparse.Namespace) -> None:
    from tgm_scale.config.sections import Config
    from tgm_scale.conversion.convert import convert
    from tgm_scale.conversion.key_maps import ModelMetadata
    from tgm_scale.conversion.read import read
    from tgm_scale.data.access.storage import write_atomically
    from tgm_scale.evaluation.settings import FinetuneConfig
    from tgm_scale.report.model_card import Export, card, evaluations_of
    from tgm_scale.runtime.compat import torchvision_is_foreign

    metadata = ModelMetadata(options.heads, options.decoder_heads, options.frames, options.size)
    source = read(options.input, metadata, options.lossy, options.tubelet, options.raw)
    for note in source.notes:
        print(f"read     {note}")
    if source.of_clips and options.to != "safetensors":
        print(f"note     {source.of_clips}: the format has no place for it; whoever reads videos for it must do so")
    size = source.size
    decoder = f", decoder {size.decoder_width} wide, {size.decoder_depth} deep, {size.decoder_heads} heads"
    decoder += ", cross-attention" if size.decoder_attention == "cross" else ""
    print(
        f"model    {source.kind}, {size.width} wide, {size.depth} deep, {size.heads} heads, "
        f"tubelets of {size.tubelet}x{size.patch}x{size.patch}{decoder if size.decoder_depth else ''}"
    )
    carded = options.to == "huggingface"
    if options.evaluation and not carded:
        raise ValueError(f"--evaluation: for the model card of --to huggingface, not of --to {options.to}")
    if carded:  # before the work: --evaluation may be wrong
        kind = FinetuneConfig if "finetune" in (source.config or {}) else Config
        name = Path(options.output).resolve().name
        export = Export(name, options.input, options.raw, options.classes or 0, kind)
        evaluations_of(export, options.evaluation, source.config)
    done = convert(source, options.output, options.to, options.classes)
    if carded:
        text = card(export, done.written, options.evaluation)
        write_atomically(Path(options.output) / "README.md", text.encode())
    if done.left_out:
        print(f"left out {_grouped(done.left_out)}")
    print(f"wrote    {options.output} ({options.to}, {done.written.kind})")
    print(
        f"checked  loaded back, outputs on a fixed clip differ by {done.difference:.3g} (largest {done.largest:.3g})"
    )
    if options.to == "huggingface" and torchvision_is_foreign():
        print(
            "note     the torchvision installed here was built for another torch: where the model card's code fails "
            "over an operator nms, put `from tgm_scale.runtime.compat import prepare_torchvision; "
            "prepare_torchvision()` before it, or install torchvision from the index of this torch"
        )
    if options.to == "timm":
        held = "blocks, fc_norm and head" if done.written.kind == "classifier" else "blocks and norm"
        print(
            f"note     {options.output} holds {held} only, for timm's VisionTransformer: no patch embedding and no "
            "positions; this project does not read it back"
        )


def _grouped(names: list[str]) -> str:
    """Return names as text, with each stack of blocks reduced to its number of tensors."""
    plain = [name for name in names if ".blocks." not in name]
    stacks = {name.split(".blocks.")[0] for name in names if ".blocks." in name}
    counted = [f"{stack}.blocks ({sum(x.startswith(f'{stack}.blocks.') for x in names)} tensors)" for stack in stacks]
    return ", ".join([*plain, *sorted(counted)])


COMMAND = Command(
    "convert",
    "convert a checkpoint from and to the field's formats, checked by its outputs",
    _add_arguments,
    _run,
    _EPILOG,
    _DESCRIPTION,
    former="convert_checkpoint",
)
