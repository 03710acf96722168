"""Are the parts of part-based masking parts of the picture? Measured on synthetic clips, whose every pixel is known.

A token is an object's when at least half of its tubelet's pixels show it, else the background's. Each part is
credited with what most of its tokens are. purity: share of a clip's tokens that are what their part is credited with
(Manning et al. 2008, Introduction to Information Retrieval, 16.3), beside it that of the same parts with their tokens
shuffled. precision and recall: of the part that holds most of the named object, how much of it is the object, and how
much of the object it holds.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.contracts import Grid
from tgm_scale.data.video.decode import decode_clip
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import SyntheticSpec, render_clip
from tgm_scale.demo.corpus.truth import Truth, object_tokens
from tgm_scale.evaluation.intervals import paired_interval
from tgm_scale.guidance.image import SCORERS
from tgm_scale.guidance.maps import PARTS, Parts
from tgm_scale.guidance.towers import load_image_tower, tower_folder
from tgm_scale.runtime import command, seeding

EXAMPLES = """examples:
  OMP_NUM_THREADS=1 python tools/measure_parts.py     # 100 clips under each scorer, about a minute of a core"""
COLUMNS = ("purity", "shuffled", "precision", "recall")


def shown(truth: Truth, grid: Grid) -> Tensor:
    """Return the content of each token: int64 [N], 0 for the background, 1 for the named object, then the
    distractors."""
    label_N = torch.zeros(grid.tokens, dtype=torch.int64)
    for number, one in reversed(list(enumerate(truth.objects, start=1))):
        label_N[torch.from_numpy(object_tokens(one.visible, grid)).flatten()] = number
    return label_N


def purity(part_N: Tensor, shown_N: Tensor) -> float:
    """Return the share of tokens whose content is the commonest of their part."""
    kinds = int(shown_N.max()) + 1
    counts_PK = torch.bincount(part_N * kinds + shown_N, minlength=PARTS * kinds).view(PARTS, kinds)
    return float(counts_PK.amax(1).sum() / len(part_N))


def judged(part_N: Tensor, shown_N: Tensor, seed: int) -> tuple[float, ...]:
    """Return a number for each of COLUMNS."""
    order_N = seeding.bits(torch.tensor([seed]), len(part_N), "shuffled parts")[0].argsort()
    is_object_N = shown_N == 1
    held_P = torch.bincount(part_N[is_object_N], minlength=PARTS)
    most, size = held_P.argmax(), torch.bincount(part_N, minlength=PARTS)
    return (
        purity(part_N, shown_N),
        purity(part_N[order_N], shown_N),
        float(held_P[most] / size[most]),
        float(held_P[most] / is_object_N.sum()),
    )


def measure(options: argparse.Namespace) -> int:
    image, spec = load_image_tower(tower_folder(options.towers)), SyntheticSpec()
    grid = Grid.of(spec.frames, spec.size, tubelet=2, patch=8)
    rows = []
    for scorer in SCORERS:
        look, scores = Parts(image, scorer), []
        for index in range(options.clips):
            clip = render_clip(index, spec)
            video = decode_clip(encode_video(clip.frames, spec.fps), spec.frames, 1, 0.0).video
            part_N = look(torch.from_numpy(video).permute(3, 0, 1, 2)[None], grid).long().flatten()
            shown_N = shown(clip.truth, grid)
            if (shown_N == 1).any():
                scores.append(judged(part_N, shown_N, index))
        intervals = [paired_interval(column[None]) for column in torch.tensor(scores).T]
        rows.append((scorer, *(f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in intervals)))
    print(f"{headline()}; {options.clips} synthetic clips of {spec.size} pixels, {grid.tokens} tokens, 95 % intervals")
    print(table(("scorer", *COLUMNS), rows))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    parser.add_argument("--clips", type=int, default=100, metavar="N", help="how many (default: 100)")
    parser.add_argument("--towers", default="small", metavar="FOLDER", help="of a CLIP or SigLIP (default: small)")
    options = parser.parse_args(arguments)
    return command.exit_code("measure_parts", lambda: measure(options))


if __name__ == "__main__":
    raise SystemExit(main())
