"""What stands in every model card: the code that loads the model, and the line on its licence."""

LICENCE = (
    "None is stated here. Whoever publishes this model chooses one, and looks at the licences of the data, of the "
    "frozen models that guided it and of the first weights."
)

TORCHVISION = (
    "transformers imports torchvision where it is installed. Where the import of these classes fails over an operator "
    "`nms`, torchvision is of another build than torch: install both from one index."
)

_READ = """import numpy as np
import torch
from transformers import {kind}, VideoMAEImageProcessor

folder = "."
model = {kind}.from_pretrained(folder, local_files_only=True).eval()
processor = VideoMAEImageProcessor.from_pretrained(folder, local_files_only=True)

frames = list(np.zeros((FRAMES, SIDE, SIDE, 3), dtype=np.uint8))  # of a video, RGB
video = processor(frames, return_tensors="pt")["pixel_values"]
with torch.no_grad():
"""

ENCODE = (
    _READ.format(kind="VideoMAEForPreTraining")
    + """    tokens = model.videomae(video).last_hidden_state  # [1, tokens, width], after the encoder's norm
feature = tokens.mean(1)
"""
)
CLASSIFY = (
    _READ.format(kind="VideoMAEForVideoClassification")
    + """    scores = model(video).logits
label = model.config.id2label[scores.argmax(-1).item()]
"""
)
