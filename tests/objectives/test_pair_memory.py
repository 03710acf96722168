"""What the plan of a run says that the coupled terms take for each pair of a clip and a caption, measured."""

from __future__ import annotations

import subprocess
import sys

import pytest
from launch import environment

from tgm_scale.assembly.objective import _PAIR_BYTES, pair_bytes
from tgm_scale.config.sections import ObjectiveConfig
from tgm_scale.objectives.sigmoid import Sigmoid
from tgm_scale.objectives.terms import TERMS

SOURCE = """
import sys
from pathlib import Path

import torch
from tgm_scale.models.vit import SIZES
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import EmbeddingPairs, TermSettings, gradients
from tgm_scale.objectives.terms import TERMS

torch.set_num_threads(1)
term = TERMS[sys.argv[1]](TermSettings(SIZES["tiny"], text=64))

def peak(clips):
    ids = torch.arange(clips)
    negatives = Negatives(torch.ones(clips), ids, ids, clips)
    pairs = EmbeddingPairs(torch.randn(clips, 64), torch.randn(clips, 64), negatives)
    gradients(term, pairs, term().detach() if term.initial_values else torch.zeros(0))
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024  # not ru_maxrss, which begins with the peak of the process that forked

before = peak(64)
print((peak(4000) - before) / 4000**2)
"""


def test_a_term_that_is_not_measured_is_planned_as_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "mine", type("Mine", (Sigmoid,), {}))
    assert pair_bytes(ObjectiveConfig(terms={"pixels": 1, "mine": 1})) == max(_PAIR_BYTES.values())


@pytest.mark.parametrize("term", _PAIR_BYTES)
def test_a_pair_takes_what_is_planned(term: str) -> None:
    done = subprocess.run([sys.executable, "-c", SOURCE, term], env=environment(), capture_output=True, check=True)
    assert float(done.stdout) == pytest.approx(_PAIR_BYTES[term], rel=0.2)
