"""What a configuration says of the terms: two ways to say it, what goes together, what follows for a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tgm_scale import config as configuration
from tgm_scale.assembly.checks import check_objective
from tgm_scale.assembly.run_plan import RunPlan, plan_pretraining
from tgm_scale.config import Config, digest_tree
from tgm_scale.models.vit import SIZES
from tgm_scale.objectives.nearest import Nearest
from tgm_scale.objectives.term import TermSettings
from tgm_scale.runs import run_folder
from tgm_scale.runtime.distributed import find_process


def debug(*overrides: str) -> Config:
    return configuration.load("configs/debug.yaml", overrides)


def plan(*overrides: str) -> RunPlan:
    return plan_pretraining(debug(*overrides), find_process())


def test_the_older_keys_and_the_terms_say_the_same() -> None:
    older, terms = debug("objective.contrastive_weight=0.5"), debug("objective.terms={contrast: 0.5, pixels: 1}")
    assert older.objective.weights() == terms.objective.weights() == {"pixels": 1.0, "contrast": 0.5}
    assert digest_tree(older) == digest_tree(terms), "a run folder resumes with either"
    assert terms.objective.contrastive_weight == 0.5 and terms.objective.reconstruction_weight == 1
    again = configuration.from_tree(yaml.safe_load(configuration.dump(terms)))
    assert again == terms, "what is written is read back"
    others = [debug(f"objective.terms={{pixels: 1, sigmoid: {weight}}}") for weight in (0.1, 0.2)]
    assert digest_tree(others[0]) != digest_tree(others[1])
    assert others[0].objective.contrastive_weight == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.terms={pixels: 1}", "objective.contrastive_weight=1"],
         r"objective\.contrastive_weight=1 and objective\.terms=\{pixels: 1\} are two weights of contrast"),
        (["objective.terms={contrast: 1}", "objective.reconstruction_weight=2.0"],
         r"objective\.reconstruction_weight=2.0 and objective\.terms=\{contrast: 1\} are two weights of pixels"),
        (["objective.terms={}"], r"objective\.terms=\{\}: nothing is learned"),
        (["objective.terms={pixels: 0, sigmoid: 0}"], r"\{pixels: 0, sigmoid: 0\}: nothing is learned"),
        (["objective.terms={pixels: -1}"], r"^command line:\n  objective\.terms\.pixels: found -1[^\n]*$"),
        (["objective.terms={pixels: .inf}"], r"^command line:\n  objective\.terms\.pixels: found inf[^\n]*$"),
        (["objective.terms=[pixels]"], r"objective\.terms: found \['pixels'\]"),
        (["objective.terms={pixls: 1}"], r"objective\.terms\.pixls: no such term; did you mean pixels"),
        (["objective.terms={align: 1}", "guidance.towers=null", "masking.recipe=tube"],
         r"objective\.terms\.align needs an image tower: set guidance\.towers .* 'objective\.terms=\{pixels: 1\}'"),
        (["objective.terms={predict: 1, sigmoid: 2}", "guidance.towers=null", "masking.recipe=tube"],
         r"objective\.terms\.predict needs an image tower"),
        (["objective.terms={pixels: 2, nearest: 1}", "guidance.towers=null", "masking.recipe=tube"],
         r"objective\.terms\.nearest needs a text tower: .* 'objective\.terms=\{pixels: 2\}'"),
        (["objective.terms={sigmoid: 1}", "train.global_batch_size=1", "train.micro_batch_size=1"],
         r"train\.global_batch_size=1 is one clip .* objective\.terms\.sigmoid needs other clips"),
        (["objective.terms={align: 1}", "log.pictures_every=1"], r"objective\.terms\.pixels=0 learns none"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_its_keys(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config = debug(*overrides)
        plan_pretraining(config, find_process())
        check_objective(config)


def test_a_folder_of_another_objective_is_refused_by_its_terms(tmp_path: Path) -> None:
    place = f"run.dir={tmp_path}"
    (tmp_path / "config.yaml").write_text(configuration.dump(debug(place, "objective.contrastive_weight=0.5")))
    run_folder.open_folder(debug(place, "objective.terms={contrast: 0.5, pixels: 1}"))
    said = r"\(objective: 1 pixels \+ 0.5 contrast there, 1 pixels \+ 0.1 sigmoid here\)"
    with pytest.raises(ValueError, match=said):
        run_folder.open_folder(debug(place, "objective.terms={pixels: 1, sigmoid: 0.1}"))


def test_a_run_computes_what_its_terms_need() -> None:
    tube = ["masking.recipe=tube"]
    assert not plan("objective.terms={align: 1}", *tube).targets
    assert plan("objective.terms={predict: 1}", *tube).targets == plan(*tube).targets > 0
    assert plan("objective.terms={predict: 1}", *tube).needs == {"features"} and not plan(*tube).needs
    read = {name: plan(f"objective.terms={{{name}: 1}}", *tube).captions for name in ("sigmoid", "nearest", "align")}
    assert read == {"sigmoid": True, "nearest": True, "align": False}
    without = plan("objective.terms={pixels: 0.5, sigmoid: 1}", *tube).without_captions
    assert without == ("'objective.terms={pixels: 0.5}'",)


def test_the_queue_has_the_newest_captions_of_unbroken_clips() -> None:
    term, width = Nearest(TermSettings(SIZES["tiny"], text=3, queue=4)), 3
    texts = torch.nn.functional.normalize(torch.randn(12, width, generator=torch.Generator().manual_seed(0)), dim=1)
    weight = torch.ones(6)
    weight[[1, 4]] = 0
    term.observe(texts[:6], weight, 4)
    assert torch.allclose(term.state()["queue"], texts[[0, 2, 3, 5]])
    term.observe(texts[6:8], torch.ones(2), 2)
    assert torch.allclose(term.state()["queue"], texts[[6, 7, 3, 5]])
    term.observe(texts[8:], torch.zeros(4), 0)
    other = Nearest(TermSettings(SIZES["tiny"], text=3, queue=4))
    other.restore(term.state())
    for one in (term, other):
        one.observe(texts[:6], torch.ones(6), 6)  # more than it holds
        assert torch.allclose(one.state()["queue"], texts[[2, 3, 4, 5]]) and one.state()["seen"] == 12
    with pytest.raises(ValueError, match=r"wanted a queue of \[8, 3\]"):
        Nearest(TermSettings(SIZES["tiny"], text=3, queue=8)).restore(term.state())
