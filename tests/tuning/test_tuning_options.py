"""What `tgm-scale tune` tries where it is not told: as its help says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale import cli
from tgm_scale.commands import plan
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.planning.footprint import OFFLOADS
from tgm_scale.runtime import command
from tgm_scale.tuning.trials import Candidate


def test_the_offloads_that_the_help_shows_are_those_that_are_known() -> None:
    parser = command.parser("", "")
    plan.TUNE.add_arguments(parser)
    assert parser.get_default("offloads") == ",".join(OFFLOADS)


def test_each_offload_is_written_as_deepspeed_reads_it() -> None:
    mine = {
        "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "nvme", "ratio": 0.5}, "overlap_comm": True}
    }
    made = {name: Candidate(3, name, 2, False).deepspeed(mine)["zero_optimization"] for name in OFFLOADS}
    assert made["none"] == {"overlap_comm": True, "stage": 3}
    assert made["optimizer"]["offload_optimizer"] == {"pin_memory": True, "device": "cpu", "ratio": 0.5}
    assert "offload_param" not in made["optimizer"] and made["all"]["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("3", "0: found 3, "),
        ('{"name": "a"}', "0: unable to extract tag using discriminator 'outcome'"),
        ('{"name": "a", "outcome": "ran"}', "0.ran.clips_per_second: missing"),
        ('{"name": "a", "outcome": "hung", "why": 1}', "0.hung.why: found 1, input should be a valid string"),
    ],
)
def test_outcomes_of_another_form_are_refused_before_a_trial(
    tmp_path: Path, row: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "outcomes.jsonl"
    file.write_text(row)
    make_corpus(tmp_path / "shards", 4, SyntheticSpec())
    given = ["tune", "--config", "debug", "--dir", str(tmp_path), f"data.shards={tmp_path / 'shards'}"]
    assert cli.main(given) == 2
    assert f"{file}: damaged: {said}" in (error := capsys.readouterr().err) and "move" in error
    assert not list(tmp_path.glob("zero*")) and file.read_text() == row
