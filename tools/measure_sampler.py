"""Does a learned mask find the objects? Of each checkpoint of a run on a synthetic corpus, whose every pixel is known:
the area under the ROC curve of the learned logits for the tokens of any object, a mean over slots and then over clips
that the run has not seen. 0.5 is chance; above it, objects are seen (adamae) or hidden (automae) rather than
background. Beside automae's, the same of the frozen tower's attention, of which its logits are made.

A token is an object's when at least half of its tubelet's pixels show it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tgm_scale.assembly.learned_masks import LearnedMap, load_learned
from tgm_scale.assembly.towers import Map
from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.checkpoints.folders import folder_of, steps_in
from tgm_scale.contracts import Grid
from tgm_scale.conversion.read import read
from tgm_scale.data.video.decode import decode_clip
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import SyntheticSpec, render_clip
from tgm_scale.demo.corpus.truth import object_tokens
from tgm_scale.evaluation.intervals import paired_interval
from tgm_scale.evaluation.masks.relevance import slot_aucs
from tgm_scale.runtime import command, seeding

EXAMPLES = """examples:
  tgm-scale pretrain --config debug run.dir=runs/adamae masking.recipe=adamae masking.mask_ratio=0.9 \\
      guidance.towers=null objective.contrastive_weight=0 checkpoint.keep=100
  python tools/measure_sampler.py --run runs/adamae"""


def clip_of(index: int, spec: SyntheticSpec, frames: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return a clip's first frames, uint8 [1, 3, T, H, W], and the tokens of any object, bool [S, R, C]."""
    clip = render_clip(index, spec)
    video = decode_clip(encode_video(clip.frames, spec.fps), frames, 1, 0.0).video
    objects = [object_tokens(one.visible[:frames], grid) for one in clip.truth.objects]
    return torch.from_numpy(video).permute(3, 0, 1, 2)[None], torch.from_numpy(np.any(objects, axis=0))


def mean_attention(heads: Map, grid: Grid, video_BCTHW: Tensor) -> Tensor:
    """Return the attention from which an automae's logits are made, float32 [B, S, R, C]."""
    return heads(video_BCTHW, grid).mean(dim=1)


def auc(look: Callable[[Tensor], Tensor], clips: list[tuple[Tensor, Tensor]]) -> str:
    """Return the mean AUC over the clips, with its interval."""
    aucs = [slot_aucs(look(video)[0], truth_SRC) for video, truth_SRC in clips]
    found = paired_interval(torch.tensor([[float(np.mean(of_clip)) for of_clip in aucs if of_clip]]))
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def measure(options: argparse.Namespace) -> int:
    folder = options.run / "checkpoints"
    steps = steps_in(folder)
    if not steps:
        raise ValueError(f"--run {options.run}: has no checkpoint")
    weights = read(folder_of(folder, steps[-1]))
    grid = Grid.of(weights.frames, weights.image_size, weights.size.tubelet, weights.size.patch)
    spec = SyntheticSpec(size=weights.image_size, seed=seeding.key("clips for the sampler"))
    clips = [clip_of(index, spec, weights.frames, grid) for index in range(options.clips)]
    rows: list[tuple[str, str]] = []
    for step in steps:
        [look] = load_learned(folder_of(folder, step), "--run ").values()
        assert isinstance(look, LearnedMap)
        if look.heads is not None and not rows:
            rows.append(("attention", auc(partial(mean_attention, look.heads, grid), clips)))
        rows.append((str(step), auc(partial(look, grid=grid), clips)))
    print(f"{headline()}; {options.clips} clips that were not trained on, {grid.tokens} tokens, 95 % intervals")
    print(table(("step", "AUC"), rows))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="with its checkpoints")
    parser.add_argument("--clips", type=int, default=100, metavar="N", help="how many (default: 100)")
    options = parser.parse_args(arguments)
    return command.exit_code("measure_sampler", lambda: measure(options))


if __name__ == "__main__":
    raise SystemExit(main())
