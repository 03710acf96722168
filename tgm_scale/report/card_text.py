"""Fixed text of every model card: the code that loads the model, and the line on its licence."""

from __future__ import annotations

from tgm_scale.contracts import STANDARD_DEVIATION, STANDARD_MEAN
from tgm_scale.conversion.weights import Weights

LICENCE = (
    "None is stated here. Whoever publishes this model chooses one, and looks at the licences of the data, of the "
    "frozen models that guided it and of the first weights."
)

TORCHVISION = (
    "transformers imports torchvision where it is installed. Where the import of these classes fails, and an operator "
    "`nms` stands further up in the error, torchvision is of another build than torch: install both from one index, "
    "or, where tgm_scale is installed, begin with `from tgm_scale.runtime.compat import prepare_torchvision` and "
    "`prepare_torchvision()`."
)

_READ = """import numpy as np
import torch
from transformers import {kind}, VideoMAEImageProcessor

folder = "."
model = {kind}.from_pretrained(folder, local_files_only=True).eval()
processor = VideoMAEImageProcessor.from_pretrained(folder, local_files_only=True)

frames = list(np.zeros((FRAMES, SIDE, SIDE, 3), dtype=np.uint8))  # of a video, RGB
STANDARDISED
video = processor(frames, return_tensors="pt")["pixel_values"]
with torch.no_grad():
"""

_ENCODE = (
    _READ.format(kind="VideoMAEForPreTraining")
    + """    tokens = model.videomae(video).last_hidden_state  # [1, tokens, width], after the encoder's norm
feature = tokens.mean(1)
"""
)
_CLASSIFY = (
    _READ.format(kind="VideoMAEForVideoClassification")
    + """    scores = model(video).logits
label = model.config.id2label[scores.argmax(-1).item()]
"""
)

_STANDARDISED = f"""levels = np.float32(frames)  # as in training: one brightness and contrast
levels = (levels - levels.mean()) / max(levels.std(), 2) * {STANDARD_DEVIATION} + {STANDARD_MEAN}
frames = list(levels.round().clip(0, 255).astype(np.uint8))
"""


def loading(weights: Weights) -> str:
    """Return how to load a transformers folder of these weights and feed it a clip as in training."""
    code = _CLASSIFY if weights.kind == "classifier" else _ENCODE
    filled = code.replace("FRAMES", str(weights.frames)).replace("SIDE", str(weights.image_size))
    filled = filled.replace("STANDARDISED\n", _STANDARDISED if weights.standardised else "")
    clips = f"The model was {weights.of_clips}.\n\n" if weights.of_clips else ""
    return (
        f"## How to load it\n\nIn this folder, without a network:\n\n```python\n{filled}```\n\n{clips}{TORCHVISION}\n"
    )
