"""What `tgm-scale tune` tries where it is not told: as its help says."""

from __future__ import annotations

from tgm_scale.commands import plan
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
