"""Training of a small CLIP on images whose patches are labelled: a real `transformers.CLIPModel`, made in minutes.

A CLIP learns from images and captions alone, on hundreds of millions of pairs. A small one for demonstrations has
minutes on a CPU, so it also learns from the truth that a synthetic corpus knows: which concept each patch shows. A
concept is a combination of attributes (a colour and a shape); captions name concepts, or one attribute alone.

Three terms, on cosines of patch and caption embeddings (last layer, final norm, projection):
- pattern: regression of a patch's cosines (times a learned scale) on 1 for its own concept, `half_match` for concepts
  that share one attribute with it, and 0 for the others; where a patch shows no concept, on a level kept such that a
  caption of what is not there ranks objects above the background as often as below. So a caption ranks its object
  above the background, look-alikes below it, and says nothing where it names what is absent;
- naming: cross entropy of concept, and of each attribute alone;
- image: the sigmoid loss (arXiv 2303.15343) of the pooled image embedding, as an ordinary CLIP's.

Shapes: N images, P patches, C concepts, A values of all attributes, E embedding.
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

from tgm_scale.guidance.tokenizer import write_tokenizer
from tgm_scale.runtime import seeding
from tgm_scale.runtime.compat import prepare_torchvision

NOTHING, MIXED = -1, -2  # labels of a patch that shows no concept, and of one at an edge, which is left out
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class LabelledImages:
    """A batch of images with what their patches show."""

    images: Tensor  # uint8 [N, 3, H, W] RGB
    label_NP: Tensor  # int64 [N, P]: the concept, NOTHING or MIXED
    present_NC: Tensor  # bool [N, C]: the concepts in the image


@dataclass(frozen=True)
class Recipe:
    """What the small CLIP is and how it is trained."""

    image_size: int = 64
    patch: int = 8
    width: int = 128
    vision_layers: int = 4
    text_layers: int = 2
    heads: int = 4
    embedding: int = 128
    context: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    half_match: float = -0.3
    steps: int = 12000
    seed: int = 0


def build(recipe: Recipe, vocabulary: int) -> Any:
    """A CLIPModel of the recipe's size. Initialised so that attention is not flat at the start: with transformers' own
    initialisation the loss stays on its plateau for thousands of steps (docs/LOG.md)."""
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
    for name, parameter in tower.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            nn.init.xavier_uniform_(parameter)
    values = 3 * recipe.patch**2
    nn.init.normal_(tower.embeddings.patch_embedding.weight, std=values**-0.5)
    side, quarter = recipe.image_size // recipe.patch, recipe.width // 4
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequency = 10000.0 ** (-torch.arange(quarter) / (quarter - 1))
    waves = [wave(place.flatten()[:, None] * frequency) for place in (column, row) for wave in (torch.sin, torch.cos)]
    tower.embeddings.position_embedding.weight.data[1:] = 2 * torch.cat(waves, 1)


def normalised(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] as the tower's float32 input."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def embed_images(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings of images, [N, E], and of their patches, [N, P, E]."""
    tower = model.vision_model
    tokens = tower(pixel_values=normalised(images)).last_hidden_state
    embedded = F.normalize(model.visual_projection(tower.post_layernorm(tokens)).float(), dim=-1)
    return embedded[:, 0], embedded[:, 1:]


def embed_captions(model: Any, tokenizer: Any, captions: list[str], context: int) -> Tensor:
    """Unit embeddings of captions."""
    tokens = tokenizer(captions, padding="longest", truncation=True, max_length=context, return_tensors="pt")
    output = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return F.normalize(model.text_projection(output.pooler_output).float(), dim=-1)


class Objective(nn.Module):
    """The three terms, with their learned scales.

    attributes: one int64 [C] for each attribute, the value that each concept has of it."""

    def __init__(self, attributes: list[Tensor], half_match: float):
        super().__init__()
        self.attributes = attributes
        shared_CC = torch.stack([a[:, None] == a[None] for a in attributes]).sum(0)
        count = len(attributes)
        self.pattern_CC = torch.where(shared_CC == count, 1.0, torch.where(shared_CC > 0, half_match, 0.0))
        self.naming_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.pattern_scale = nn.Parameter(torch.tensor(math.log(2.0)))
        self.bias = nn.Parameter(torch.tensor(-4.0))
        self.level = torch.tensor(-0.03)  # of patches that show nothing

    def forward(
        self, image_NE: Tensor, patch_NPE: Tensor, caption_XE: Tensor, logit_scale: Tensor, batch: LabelledImages
    ) -> Tensor:
        """caption_XE: captions of the C concepts, then of each attribute's values."""
        concepts = len(self.pattern_CC)
        cosine_NPX = patch_NPE @ caption_XE.T
        shown_NP = batch.label_NP >= 0
        label = batch.label_NP[shown_NP]
        naming = self._naming(cosine_NPX[shown_NP] * self.naming_scale.exp().clamp(max=60), label)
        predicted_NPC = cosine_NPX[..., :concepts] * self.pattern_scale.exp()
        self.level = self.level + 0.004 * (self._absent_above(predicted_NPC.detach(), batch) - 0.5)
        pattern = self._pattern(predicted_NPC, batch)
        logits_NC = image_NE @ caption_XE[:concepts].T * logit_scale.exp().clamp(max=100) + self.bias
        each = F.binary_cross_entropy_with_logits(logits_NC, batch.present_NC.float(), reduction="none")
        image = 0.5 * (each[batch.present_NC].mean() + each[~batch.present_NC].mean())
        return 0.3 * naming + 20 * pattern + 0.2 * image

    def _absent_above(self, predicted_NPC: Tensor, batch: LabelledImages) -> Tensor:
        """How often, for concepts none of whose attributes is in the image, a patch of an object scores above one that
        shows none."""
        absent_NC = self._absent(batch)
        above_NPPC = predicted_NPC[:, :, None] > predicted_NPC[:, None]
        pairs_NPP = (batch.label_NP >= 0)[:, :, None] & (batch.label_NP < 0)[:, None]
        counted_NPPC = pairs_NPP[..., None] & absent_NC[:, None, None]
        return (above_NPPC & counted_NPPC).sum() / counted_NPPC.sum().clamp(min=1)

    def _absent(self, batch: LabelledImages) -> Tensor:
        """Concepts none of whose attributes is in the image: bool [N, C]."""
        return ~(batch.present_NC.float() @ (self.pattern_CC != 0).float()).bool()

    def _naming(self, logits: Tensor, label: Tensor) -> Tensor:
        start = len(self.pattern_CC)
        loss = F.cross_entropy(logits[:, :start], label)
        for attribute in self.attributes:
            end = start + int(attribute.max()) + 1
            loss = loss + 0.4 * F.cross_entropy(logits[:, start:end], attribute[label])
            start = end
        return loss

    def _pattern(self, predicted_NPC: Tensor, batch: LabelledImages) -> Tensor:
        shown_NP1, mixed_NP1 = ((batch.label_NP >= 0)[..., None], (batch.label_NP == MIXED)[..., None])
        wanted_NPC = self.pattern_CC[batch.label_NP.clamp(min=0)]
        target_NPC = torch.where(shown_NP1, wanted_NPC, self.level)
        # a mixed patch is told of absent concepts only: what it shows of the present ones is not clear
        absent_N1C = 2.0 * self._absent(batch)[:, None].float()
        weight_NPC = torch.where(mixed_NP1, absent_N1C, torch.where(shown_NP1, 3.0, 1.0))
        error = (predicted_NPC - target_NPC).square() * torch.where(target_NPC == 1, 8.0, 1.0)
        return (error * weight_NPC).sum() / weight_NPC.sum()


def train(
    recipe: Recipe,
    batches: Iterator[LabelledImages],
    captions: Callable[[int], list[str]],
    vocabulary: list[str],
    attributes: list[Tensor],
    folder: Path,
    progress: Callable[[int, float], None],
) -> None:
    """Train and write a folder that `guidance.towers` loads.

    captions(step): a caption of each concept, then of each value of each attribute, worded anew. vocabulary: texts
    that the tokenizer learns its words from. progress is called with the step and its loss."""
    prepare_torchvision()
    from transformers import CLIPImageProcessor, CLIPTokenizer

    model = build(recipe, write_tokenizer(vocabulary, folder, recipe.context))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    objective = Objective(attributes, recipe.half_match)
    parameters = [*model.parameters(), *objective.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    for step in range(recipe.steps):
        for group in adam.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            image_NE, patch_NPE = embed_images(model, batch.images)
            caption_XE = embed_captions(model, tokenizer, captions(step), recipe.context)
        loss = objective(image_NE, patch_NPE, caption_XE, model.logit_scale, batch)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        progress(step + 1, loss.item())
    model.half().save_pretrained(folder)  # half the size; the towers compute in float32
    side = {"height": recipe.image_size, "width": recipe.image_size}
    CLIPImageProcessor(
        size={"shortest_edge": recipe.image_size}, crop_size=side, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)


def _learning_rate(recipe: Recipe, step: int) -> float:
    """Warm-up, constant for half of the steps, then a cosine to 0."""
    done = step / recipe.steps
    decay = 1.0 if done < 0.5 else 0.5 + 0.5 * math.cos(math.pi * (2 * done - 1))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps) * decay
