"""VideoMAE's files, V1 and V2, hence MGMAE's: our names are theirs, so there is no key map.

Pretraining files hold `encoder.*`, `decoder.*`, `encoder_to_decoder.weight` and `mask_token`; finetuned ones
`patch_embed.*`, `blocks.*`, `fc_norm.*` and `head.*`. V2's decoder is 512 wide for H; both are read from the shapes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tgm_scale.conversion.weights import OWN_ENTRY, Weights


def write(weights: Weights, file: Path) -> None:
    """A torch file with the state dict under `model`, as VideoMAE's scripts expect it, and our metadata next to it."""
    with file.open("wb") as stream:  # given a stream, torch writes the same bytes whatever the file's name
        torch.save({"model": weights.state, OWN_ENTRY: weights.metadata()}, stream)
