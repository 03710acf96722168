"""What a run will use, tried by one process before the run: a clip, its caption, its mask, the model.

The first clips of the run's own order are read as the loader reads them; the frozen towers and the masker get them as
in training; one forward and backward pass is made where it is quick or there is a GPU. Nothing is kept.

Shapes: B clips, E width of the embedding.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tgm_scale.config import Config
from tgm_scale.contracts import Batch
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.demo.corpus.make import make_corpus
from tgm_scale.engine import extensions
from tgm_scale.engine.plan import not_used
from tgm_scale.planning.corpora import open_corpora
from tgm_scale.planning.footprint import footprint
from tgm_scale.planning.module import JointModule
from tgm_scale.planning.parts import clip_loader, joint_module
from tgm_scale.planning.run_plan import RunPlan, plan_pretraining
from tgm_scale.planning.towers import load_towers
from tgm_scale.runtime.distributed import Place
from tgm_scale.training.guide import Guide
from tgm_scale.training.step import Prepared

_CLIPS = 8  # that are tried until one can be used: broken ones are left out in training, too
_QUICK_FLOP = 1e11  # of a step on a CPU: some seconds
_SPARE = 0.9  # of a GPU's free memory that a step may be expected to take
_VERBS = "libibverbs.so.1"


def try_run(config: Config, place: Place) -> list[str]:
    """Try all of it. Returns what was tried and what was left out, a line each; raises RuntimeError, ValueError or
    OSError for what a run would meet."""
    try:
        with _few_clips(config, place) as few:
            return _try(few, config, place)
    except (ValueError, OSError, RuntimeError):
        raise
    except Exception as error:  # of another package, whose versions differ
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def try_extensions(config: Config, place: Place, clear: bool) -> list[str]:
    """Load DeepSpeed's Adam for CPUs where the configuration offloads, building it where it is missing.

    clear: remove the lock of a build that was killed."""
    said = []
    if clear:
        folder = extensions.build_folder(extensions.CPU_ADAM)
        left = extensions.left_lock(folder)
        if left is not None:
            extensions.clear_lock(left)
            said.append(f"{left}: removed")
    if offloads(config, place):
        extensions.prepare_deepspeed(place.device)
        seconds = extensions.load_cpu_adam(say=place.is_main)
        said.append(f"DeepSpeed's Adam for CPUs, ready in {seconds:.0f} s")
    return said


def offloads(config: Config, place: Place) -> bool:
    return "offload_optimizer" in plan_pretraining(config, place).engine.zero


def check_infiniband(cards: Path = Path("/sys/class/infiniband"), library: str = _VERBS) -> None:
    """Raises ValueError where the machine has InfiniBand cards that NCCL will not be able to use."""
    found = sorted(card.name for card in cards.iterdir()) if cards.is_dir() else []
    if not found:
        return
    try:
        ctypes.CDLL(library)
    except OSError:
        raise ValueError(
            f"InfiniBand cards {', '.join(found)}, but {library} cannot be loaded: NCCL would fall back to sockets; "
            "install libibverbs1, ibverbs-providers and librdmacm1 (in a container, in its image)"
        ) from None


@contextmanager
def _few_clips(config: Config, place: Place) -> Iterator[Config]:
    """The configuration with the smallest batch, decoded here; a corpus that is made at the start has two clips."""
    repeats = config.data.repeated_augmentation
    train = {"micro_batch_size": repeats, "global_batch_size": repeats * place.world_size}
    data: dict[str, object] = {"workers": 0}
    with tempfile.TemporaryDirectory() as folder:
        synthetic = config.data.synthetic
        if synthetic is not None and not Path(config.data.corpora()[0].path).exists():
            make_corpus(Path(folder) / "corpus", clips=2, seed=synthetic.seed, mode=synthetic.mode)
            data |= {"shards": str(Path(folder) / "corpus"), "synthetic": None}
        yield config.model_copy(
            update={"data": config.data.model_copy(update=data), "train": config.train.model_copy(update=train)}
        )


def _try(few: Config, config: Config, place: Place) -> list[str]:
    plan = plan_pretraining(few, place)
    assert plan.masker is not None
    batch = _first_usable(few, plan)
    contrastive = config.objective.contrastive_weight > 0
    towers = load_towers(few.guidance, plan.masker.needs, contrastive, place.device)
    with torch.no_grad():
        prepared = Guide(plan.masker, towers, ToDevice(place.device))(batch)
    said = [f"a clip, {batch.keys[0]}: {'x'.join(map(str, batch.video.shape[2:]))} pixels"]
    if prepared.text_BE is not None:
        said.append(f"its caption {batch.captions[0]!r:.60}: an embedding of {prepared.text_BE.shape[-1]}")
    said.append(f"its mask: {prepared.mask.visible.shape[1]} tokens seen, {prepared.mask.target.shape[1]} painted")
    module = joint_module(config, plan.shape, towers)
    tried = _try_step(config, plan_pretraining(config, place), module, prepared)
    return [*said, tried, *not_used(config.deepspeed.config)]


def _first_usable(few: Config, plan: RunPlan) -> Batch:
    problems, opened = [], open_corpora(few.data, plan.captions, plan.without_captions)
    for _, [batch] in clip_loader(plan, few.data, few.guidance, few.run.seed, opened, range(_CLIPS)):
        if bool((batch.weight > 0).any()):
            return batch
        problems += batch.problems
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(p.reason for p in problems).items())
    raise ValueError(
        f"data.shards: none of the first {_CLIPS} clips of rank {plan.layout.rank} can be used ({counts}); the last "
        f"is {problems[-1].key}: {problems[-1].detail}"
    )


def _try_step(config: Config, plan: RunPlan, module: JointModule, prepared: Prepared) -> str:
    """A forward and a backward pass in the run's precision: on a GPU of a whole micro batch, on a CPU of one clip."""
    device, precision = plan.device, plan.engine.precision
    on_gpu = device.type == "cuda"
    clips = plan.layout.micro_batch if on_gpu else len(prepared.batch)
    needed = footprint(plan, config.model.activation_checkpointing)
    if on_gpu:
        free, _ = torch.cuda.mem_get_info(device)
        if needed.device > _SPARE * free:
            return f"no step of the model: {needed.device / 1e9:.0f} GB expected, {free / 1e9:.0f} GB free"
    elif 6 * plan.macs_per_clip * clips > _QUICK_FLOP:
        return "no step of the model: it would take long on a CPU"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    began = time.perf_counter()
    module.to(device, dtype)
    index_B = torch.arange(clips, device=device) % len(prepared.batch)
    video, mask = prepared.batch.video[index_B], prepared.mask
    target = mask.target[index_B] if config.objective.reconstruction_weight else None
    try:
        error_B, embedding_BE, _ = module(video, mask.visible[index_B], target)
        loss = sum(part.float().mean() for part in (error_B, embedding_BE) if part is not None)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        finite = bool(torch.isfinite(loss))
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"a step of {clips} clips does not fit the GPU's memory: lower train.micro_batch_size, or set "
            f"model.activation_checkpointing=true ({str(error).splitlines()[0]})"
        ) from None
    if not finite:
        raise ValueError(f"a step of the model gave a loss of {loss.item()}")
    return f"a step of the model, {clips} clips in {precision}: {time.perf_counter() - began:.1f} s"
