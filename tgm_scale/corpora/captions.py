"""Write captions for clips: from three of their frames with BLIP-2, or from the names of their classes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import torch

from tgm_scale.data.building import rewriting
from tgm_scale.data.building.annotations import captions_of, json_fault
from tgm_scale.data.lists.text import decoded, lines_in, shown
from tgm_scale.data.shards.index import Corpus, SampleRef
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import CLIPS_PER_SHARD, ShardWriter
from tgm_scale.data.video.decode import DecodeError, Video
from tgm_scale.runtime import seeding
from tgm_scale.runtime.compat import prepare_torchvision
from tgm_scale.runtime.outside.json_text import json_of

FRAMES = 3
TEMPLATES = (
    "a video of {}",
    "a person is doing {}",
    "the action of {}, seen from a few steps away",
)
PROMPT = "Describe in one sentence what one sees in a video of {}:"
_WORDS = 40  # tokens of a caption; CLIP reads 77

Describe = Callable[[SampleRef, dict[str, bytes]], list[str]]


class Pictures(Protocol):
    """Model that describes pictures, uint8 [H, W, 3] each."""

    def __call__(self, images: list[np.ndarray]) -> list[str]: ...


def caption(options: argparse.Namespace) -> int:
    """Caption all clips and return the exit code. Raises ValueError for a mistake in the options or their files."""
    rewriting.check_task(options)
    if options.classes is None and (options.language_model or options.templates):
        raise ValueError("--language-model and --templates describe classes: give --classes, too")
    corpus = open_corpus(options.shards)
    rewriting.report_input(options, corpus)
    of_files = corpus.counts.max() <= 1  # a list of files: 1,000 of them become a shard
    if of_files:
        _refuse_one_key(options, corpus)
    describe = _describer(options, options.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def copy(shard: int, row: int, writer: ShardWriter) -> str:
        place = (shard * CLIPS_PER_SHARD + row, 0) if of_files else (shard, row)
        return _copy(corpus.sample(*place), corpus, describe, writer)

    by = {name: rewriting.content_of(getattr(options, name)) for name in ("templates", "blip2", "language_model")}
    rewriting.record(options, corpus, classes=options.classes, beams=options.beams, **by)
    rewriting.rewrite(options, _files_in_shards(len(corpus.shards)) if of_files else corpus.counts.tolist(), copy)
    return 0


def _refuse_one_key(options: argparse.Namespace, corpus: Corpus) -> None:
    """Raise ValueError where two would become one sample: files that differ only in their extension, or shards of one
    clip each with the same key."""
    first: dict[str, SampleRef] = {}
    for number in range(len(corpus.shards)):
        ref = corpus.sample(number, 0)
        if (other := first.setdefault(_key(ref), ref)) is not ref:
            raise ValueError(
                f"--shards {options.shards}: {shown(other.name)} and {shown(ref.name)} would be one sample, "
                f"{_key(ref)}: rename one, or leave it out"
            )


def _files_in_shards(files: int) -> list[int]:
    return [min(CLIPS_PER_SHARD, files - at) for at in range(0, files, CLIPS_PER_SHARD)]


def _copy(ref: SampleRef, corpus: Corpus, describe: Describe, writer: ShardWriter) -> str:
    """Copy a sample with its captions. Return the outcome, a fixed phrase to count. Raises DamagedMember."""
    members: dict[str, Any] = corpus.read(ref, list(ref.members))
    content, outcome = _json(members), "captioned"
    if json_fault(members):
        outcome = "captioned, without their broken json"
    old = captions_of(members)
    try:
        captions = describe(ref, members)
    except DecodeError as error:
        captions, outcome = old, f"not decoded ({error.reason})"
    else:
        content |= {"old_captions": old} if old else {}
    for key in ("caption", "Caption"):
        content.pop(key, None)
    members["json"] = content | {"captions": captions}
    writer.write(_key(ref), members)
    return outcome


def _key(ref: SampleRef) -> str:
    """Return the sample's key; for a listed file its path without extension, escaped as a key."""
    ending = "." + ref.video
    stem = ref.key[: -len(ending)] if ref.key.lower().endswith(ending) else ref.key
    return quote(stem, safe="/ -_~").replace(".", "%2E").lstrip("/")


def _json(members: dict[str, bytes]) -> dict[str, Any]:
    return {} if json_fault(members) else json_of(members.get("json", b"{}"))


def _describer(options: argparse.Namespace, device: str) -> Describe:
    if options.blip2 is not None:
        pictures = load_blip2(options.blip2, device, options.beams)
        return lambda ref, members: pictures(three_frames(members[ref.video]))
    if options.language_model is not None:
        write = load_writer(options.language_model, device)
    else:
        write = _from_templates(options.templates)
    known: dict[str, list[str]] = {}

    def describe(ref: SampleRef, members: dict[str, bytes]) -> list[str]:
        name = _class_name(_json(members), options.classes, ref)
        if name not in known:
            known[name] = write(name)
        return known[name]

    return describe


def three_frames(data: bytes) -> list[np.ndarray]:
    """Return the frames in the middle of each third, uint8 [H, W, 3]. Raises DecodeError."""
    with Video(data) as video:
        indices = [int((k + 0.5) * video.count / FRAMES) for k in range(FRAMES)]
        images = {index: np.ascontiguousarray(image) for index, image in video.frames(np.unique(indices))}
    return [images[index] for index in indices]


def load_blip2(folder: Path, device: str, beams: int) -> Pictures:
    """Return BLIP-2 (Li et al. 2023) from a local folder. Raises ValueError if the folder has something else."""
    prepare_torchvision()
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    processor, model = _loaded(
        f"--blip2 {folder}", folder, "a BLIP-2 model", (Blip2Processor, Blip2ForConditionalGeneration), device
    )

    @torch.inference_mode()
    def describe(images: list[np.ndarray]) -> list[str]:
        inputs = processor(images=images, return_tensors="pt").to(device, model.dtype)
        tokens = model.generate(**inputs, max_new_tokens=_WORDS, num_beams=beams, do_sample=False)
        return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]

    return describe


def load_writer(folder: Path, device: str) -> Callable[[str], list[str]]:
    """Return a language model that describes a class FRAMES times, with draws keyed by the class name."""
    prepare_torchvision()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = _loaded(
        f"--language-model {folder}", folder, "a causal language model", (AutoTokenizer, AutoModelForCausalLM), device
    )

    @torch.inference_mode()
    def write(name: str) -> list[str]:
        inputs = tokenizer(PROMPT.format(name), return_tensors="pt", return_token_type_ids=False).to(device)
        captions = []
        for number in range(FRAMES):
            torch.manual_seed(seeding.key("describe", name, number))
            tokens = model.generate(
                **inputs, max_new_tokens=_WORDS, do_sample=True, top_p=0.9, pad_token_id=tokenizer.eos_token_id
            )
            text = str(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
            captions.append((text.strip().splitlines() or [""])[0].strip() or TEMPLATES[number].format(name))
        return captions

    return write


def _loaded(option: str, folder: Path, wanted: str, kinds: tuple[Any, Any], device: str) -> tuple[Any, Any]:
    """Return reader and model of a local folder. Raises ValueError that names the option."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{option}: no config.json: wanted the local folder of {wanted}")
    reader, model = kinds
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        return (
            reader.from_pretrained(folder, local_files_only=True),
            model.from_pretrained(folder, local_files_only=True, dtype=dtype).eval().to(device),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{option}: cannot be read as {wanted}: {error}") from error


def _from_templates(file: Path | None) -> Callable[[str], list[str]]:
    templates = list(TEMPLATES)
    if file is not None:
        if not file.is_file():
            raise ValueError(f"--templates {file}: no such file")
        text = decoded(file.read_bytes(), f"--templates {file}")
        templates = [line.strip() for line in lines_in(text) if line.strip()]
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(
            f"--templates {file}: {(wrong or ['nothing'])[0]!r}: wanted lines with one {{}} for the class"
        )
    return lambda name: [template.replace("{}", name) for template in templates]


def _class_name(content: dict[str, Any], key: str, ref: SampleRef) -> str:
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, str) or not value.strip():
        found = ", ".join(sorted(content)) or "nothing"
        raise ValueError(
            f"--classes {key}: sample {ref.name} has no name there (found {value!r}; its json has {found})"
        )
    return value.replace("_", " ").strip()
