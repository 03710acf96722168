"""Draw one synthetic clip's mask over time under every recipe: masks.png (film strip) and masks.gif."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tgm_scale.demo.gallery import gallery
from tgm_scale.runtime import command
from tgm_scale.runtime.terminal import escaped

EXAMPLES = """examples:
  python tools/draw_masks.py --output docs
  python tools/draw_masks.py --output runs/pictures --clip 3 --mask-ratio 0.6

Exit code: 0 done, 2 a mistake in the command."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing")
    add("--clip", type=int, default=0, metavar="N", help="number of the synthetic clip (default 0)")
    add("--mask-ratio", type=float, default=0.75, metavar="R", help="share hidden, the same for all (default 0.75)")
    add("--towers", default="small", metavar="DIR", help="CLIP or SigLIP folder (default: the packaged small CLIP)")
    add("--scorer", default="raw", metavar="NAME", help="raw (default, the small CLIP's own), value or vv")
    of_run = "a run on clips of 16 frames of 112 pixels, for a learned recipe (adamae, automae); may be given for each"
    add("--checkpoint", action="append", default=[], metavar="RUN", help=of_run)
    options = parser.parse_args(arguments)
    return command.exit_code("draw_masks", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with command.reported_as("guidance.", "--"):
        drawn = gallery(options.clip, options.mask_ratio, options.towers, options.scorer, options.checkpoint)
    for line in drawn.left_out:
        print(escaped(f"left out: {line}"), file=sys.stderr)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "masks.png").write_bytes(drawn.strip)
    (options.output / "masks.gif").write_bytes(drawn.animation)
    print(f"{options.output}/masks.png, {options.output}/masks.gif: {escaped(drawn.caption)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
