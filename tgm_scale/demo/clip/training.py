"""Training of a small CLIP on images with labelled patches: a real `transformers.CLIPModel`, made in minutes.

A CLIP learns only from images and captions, hundreds of millions of pairs. A small one for demonstrations has minutes
on a CPU, so it also learns from a synthetic corpus's ground truth: the concept of each patch. A concept is a
combination of attributes (a colour and a shape); captions name concepts, or one attribute alone.

The objective is in demo/clip/objective.py.

Shapes: N images, P patches, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.demo.clip.objective import LabelledImages, Objective
from tgm_scale.demo.clip.tokenizer import write_tokenizer
from tgm_scale.runtime import seeding
from tgm_scale.runtime.compat import prepare_torchvision

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class Recipe:
    """Dimensions and training settings of the small CLIP."""

    image_size: int = 64
    patch: int = 8
    width: int = 128
    vision_layers: int = 4
    text_layers: int = 2
    heads: int = 4
    embedding: int = 128
    context: int = 32
    learning_rate: float = 1e-3  # of embeddings, norms and biases
    matrix_learning_rate: float = 3e-3  # of the blocks' matrices
    weight_decay: float = 0.05
    warmup_steps: int = 100
    half_match: float = -0.3
    naming_share: float = 0.2  # of the steps, over which the pattern term ramps up: names are learned first
    steps: int = 5000
    seed: int = 0


def build(recipe: Recipe, vocabulary: int) -> Any:
    """Return a CLIPModel of the recipe's size, initialised so that attention is not flat at the start: with
    transformers' own initialisation the loss stays on its plateau for thousands of steps
    (docs/lab-notes/small_clip.md)."""
    prepare_torchvision()
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_attention_heads": recipe.heads,
        "projection_dim": recipe.embedding,
    }
    end = vocabulary - 1
    tokens = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end, "vocab_size": vocabulary}
    text = {**tower, **tokens, "num_hidden_layers": recipe.text_layers, "max_position_embeddings": recipe.context}
    side = {"image_size": recipe.image_size, "patch_size": recipe.patch, "num_hidden_layers": recipe.vision_layers}
    config = CLIPConfig(text_config=text, vision_config={**tower, **side}, projection_dim=recipe.embedding)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.key(recipe.seed, "small clip"))
        model = CLIPModel(config)
        _initialise_vision(model.vision_model, recipe)
    model.logit_scale.data.fill_(math.log(10.0))
    return model


def _initialise_vision(tower: Any, recipe: Recipe) -> None:
    """Set Xavier weights, sine-cosine positions, and a large constant in every token. Without the constant the first
    norm scales each patch to unit variance, which amplifies a plain patch's faint content to the size of an object's
    edge. With it, differences of contrast are kept."""
    for name, parameter in tower.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            nn.init.xavier_uniform_(parameter)
    embeddings, values = tower.embeddings, 3 * recipe.patch**2
    nn.init.normal_(embeddings.patch_embedding.weight, std=values**-0.5)
    side, quarter = recipe.image_size // recipe.patch, recipe.width // 4
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequency = 10000.0 ** (-torch.arange(quarter) / (quarter - 1))
    waves = [wave(place.flatten()[:, None] * frequency) for place in (column, row) for wave in (torch.sin, torch.cos)]
    constant = 2 * torch.randn(recipe.width).sign()
    embeddings.position_embedding.weight.data[1:] = constant + 0.5 * torch.cat(waves, 1)
    embeddings.class_embedding.data += constant


def normalised(images: Tensor) -> Tensor:
    """Return uint8 [N, 3, H, W] as the tower's float32 input."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def embed_images(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit embeddings of images, [N, E], and of their patches, [N, P, E]."""
    tower = model.vision_model
    tokens = tower(pixel_values=normalised(images)).last_hidden_state
    embedded = F.normalize(model.visual_projection(tower.post_layernorm(tokens)).float(), dim=-1)
    return embedded[:, 0], embedded[:, 1:]


def embed_captions(model: Any, tokenizer: Any, captions: list[str], context: int) -> Tensor:
    """Return unit embeddings of captions, [X, E]."""
    tokens = tokenizer(captions, padding="longest", truncation=True, max_length=context, return_tensors="pt")
    output = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return F.normalize(model.text_projection(output.pooler_output).float(), dim=-1)


@dataclass(frozen=True)
class TrainingData:
    """Inputs of the small CLIP's training."""

    batches: Iterator[LabelledImages]  # one per step
    captions: Callable[[int], list[str]]  # for a step: one per concept, then one per value of each attribute
    vocabulary: list[str]  # texts for the tokenizer's vocabulary
    attributes: list[Tensor]  # argument of `Objective`


def train(recipe: Recipe, data: TrainingData, folder: Path, progress: Callable[[int, float], None]) -> None:
    """Train the model and write a folder that `guidance.towers` loads. progress is called with each step and its
    loss."""
    prepare_torchvision()
    from transformers import CLIPImageProcessor, CLIPTokenizer

    model = build(recipe, write_tokenizer(data.vocabulary, folder, recipe.context))
    model.set_attn_implementation("eager")  # on a CPU the backward pass of fused attention in bf16 takes twice as long
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    objective = Objective(data.attributes, recipe.half_match)
    optimisers = _optimisers(model, objective, recipe)
    parameters = [*model.parameters(), *objective.parameters()]
    for step in range(recipe.steps):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _schedule(recipe, step)
        batch = next(data.batches)
        with torch.autocast("cpu", torch.bfloat16):
            image_NE, patch_NPE = embed_images(model, batch.images)
            caption_XE = embed_captions(model, tokenizer, data.captions(step), recipe.context)
        pattern_weight = min(1.0, step / (recipe.naming_share * recipe.steps))
        loss = objective(image_NE, patch_NPE, caption_XE, model.logit_scale, batch, pattern_weight)
        objective.zero_grad()
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        progress(step + 1, loss.item())
    model.half().save_pretrained(folder)  # half the size; the towers compute in float32
    side = {"height": recipe.image_size, "width": recipe.image_size}
    CLIPImageProcessor(
        size={"shortest_edge": recipe.image_size}, crop_size=side, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)


def _optimisers(model: Any, objective: Objective, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, AdamW for the rest. AdamW alone needs two to three times as many
    images to recognise shapes (docs/lab-notes/small_clip.md)."""
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"training the small CLIP needs torch 2.9 or later, for its Muon; this is {torch.__version__}"
        )
    parameters = [*model.named_parameters(), *objective.named_parameters()]
    matrices = [p for name, p in parameters if p.ndim == 2 and "encoder.layers" in name]
    others = [p for name, p in parameters if p.ndim != 2 or "encoder.layers" not in name]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.matrix_learning_rate,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98)),
        muon,
    ]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return optimisers


def _schedule(recipe: Recipe, step: int) -> float:
    """Return the share of the peak learning rate: warm-up, constant for half of the steps, then a cosine to 0."""
    done = step / recipe.steps
    decay = 1.0 if done < 0.5 else 0.5 + 0.5 * math.cos(math.pi * (2 * done - 1))
    return min(1.0, (step + 1) / recipe.warmup_steps) * decay
