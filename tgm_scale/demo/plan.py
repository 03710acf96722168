"""How large the demo is, where it is written, and its variants of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.config import Config

Figures = dict[str, Any]


VARIANTS = {  # overrides of the configuration
    "joint": [],
    "mae": ["objective.contrastive_weight=0"],
}


@dataclass(frozen=True)
class Plan:
    """How large the demo is and where it is written."""

    folder: Path
    config: str
    clips: int = 1000
    test_clips: int = 400
    seeds: int = 3
    steps: int | None = None

    def corpus(self, name: str) -> Path:
        return self.folder / "data" / name

    def run(self, variant: str, seed: int) -> Path:
        return self.folder / f"{variant}-{seed}"

    def overrides(self, variant: str, seed: int) -> list[str]:
        """What a run changes in the configuration file."""
        shards = json.dumps([str(self.corpus(name)) for name in ("named", "mover")])
        own = [f"run.dir={self.run(variant, seed)}", f"run.seed={seed}", f"data.shards={shards}"]
        return own + ([f"train.steps={self.steps}"] if self.steps else []) + VARIANTS[variant]

    def run_config(self, variant: str = "joint", seed: int = 0) -> Config:
        return configuration.load(self.config, self.overrides(variant, seed))
