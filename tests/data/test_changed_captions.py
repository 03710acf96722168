"""What a run was started on: captions of a list that are others at the next start are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale.assembly.corpora import corpus_metadata, open_corpora
from tgm_scale.config import from_tree
from tgm_scale.runs import run_folder

LINES = ["a.mp4 a man walks", "b.mp4 a dog runs", "c.mp4 a ball rolls"]


@pytest.mark.parametrize(
    "changed",
    [
        ["a.mp4 a man walks", "b.mp4 a cat runs", "c.mp4 a ball rolls"],
        ["a.mp4 a dog runs", "b.mp4 a man walks", "c.mp4 a ball rolls"],
        [*LINES, "b.mp4 a dog runs fast"],
        [LINES[0], "b.mp4", LINES[2]],
    ],
)
def test_captions_of_a_list_are_part_of_what_a_run_was_started_on(tmp_path: Path, changed: list[str]) -> None:
    """Another caption of one file, two that were exchanged, one more, one less."""
    for name in "abc":
        (tmp_path / f"{name}.mp4").touch()
    settings = from_tree(
        {
            "run": {"dir": "-"},
            "data": {"shards": str(tmp_path / "list.txt")},
            "objective": {"contrastive_weight": 0.0},
            "train": {"steps": 1},
        }
    )

    def start(lines: list[str]) -> None:
        (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in lines))
        run_folder.write_start(
            tmp_path / "run", settings, corpus_metadata(open_corpora(settings.data, captions=False)), {}, 0
        )

    (tmp_path / "run").mkdir()
    start(LINES)
    start([*LINES[:2], "", LINES[2], LINES[0]])  # says the same
    with pytest.raises(ValueError, match="the run was started on other data"):
        start(changed)
