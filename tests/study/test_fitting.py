"""An evaluation that cannot read what is pretrained is told before that is paid for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgm_scale import config as configuration
from tgm_scale.config import StudyConfig
from tgm_scale.study.arms import Unit, units

FINETUNE = "command: finetune, config: configs/finetune_few_clips.yaml"


def read(file: Path, *overrides: str) -> list[Unit]:
    tree = configuration.read_tree(file, overrides)
    return units(configuration.checked(tree, str(file), StudyConfig, overrides))


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (
            "command: probe, set: [probe.head=attentive, probe.heads=7]",
            "probe.heads=7 does not divide the .* width of",
        ),
        (
            "command: probe, set: [probe.pool=4x4, encoder.image_size=16]",
            "probe.pool=4x4: clips of 16 pixels have 2 x 2",
        ),
        ("command: knn, set: [encoder.image_size=33]", "encoder.image_size=33: wanted a multiple of 8"),
        ("command: retrieve, set: [encoder.frames=3]", "encoder.frames=3: wanted a multiple of 2"),
        (f"{FINETUNE}, set: [model.size=S]", "model: an encoder of another size .* 384 here.*; set model.size="),
        (f"{FINETUNE}, set: [model.patch=4]", "model: an encoder of another size .*patch 8 there, 4 here; set"),
        (f"{FINETUNE}, set: [train.micro_batch_size=5]", "micro_batch_size=5 does not divide"),
        (f"{FINETUNE}, set: [data.size=66]", "data.size=66 is not a multiple"),
    ],
)
def test_it_is_told_as_the_study_is_read(file: Path, evaluation: str, message: str) -> None:
    data = "data.train=x, data.test=x, "
    given = evaluation.replace("set: [", f"set: [{data}")
    with pytest.raises(ValueError, match=f"(?s)study.evaluations.own: .*{message}"):
        read(
            file,
            "study.objectives={pixels: ['objective.terms={pixels: 1, contrast: 1}']}",
            f"study.evaluations={{own: {{{given}}}}}",
        )


def test_a_study_may_set_nothing(file: Path) -> None:
    few = ["train.global_batch_size=4", "train.micro_batch_size=4"]
    given = [f"study.maskers={{tube: [{', '.join(few)}]}}", "study.set=[]", "study.objectives={pixels: []}"]
    assert len(read(file, *given)) == 2


def test_a_finetuning_from_scratch_starts_as_pretrainings_do(file: Path) -> None:
    pixels = "study.objectives={pixels: ['objective.terms={pixels: 1}']}"
    of = (
        "study.evaluations={{own: {{{}, set: [data.train=x, data.test=x, model.size=tiny, model.initialisation={}]}}}}"
    )
    read(file, pixels, "study.untrained=true", of.format(FINETUNE, "videomae"))
    with pytest.raises(ValueError, match=r"evaluations.own: model.initialisation=local .* from videomae: set"):
        read(file, pixels, "study.untrained=true", of.format(FINETUNE, "local"))
    read(file, pixels, of.format(FINETUNE, "local"))


def test_arms_may_set_a_size_that_a_finetuning_from_scratch_has_too(file: Path) -> None:
    """That one reads no pretraining, so study.set's size is none of its own."""
    terms = "'objective.terms={{pixels: 1{}}}', model.size=tiny"
    arms = f"study.objectives={{pixels: [{terms.format('')}], both: [{terms.format(', differences: 1')}]}}"
    start = "model.size=tiny, model.initialisation=videomae"
    own = f"study.evaluations={{own: {{{FINETUNE}, set: [data.train=x, data.test=x, {start}]}}}}"
    small = "study.set=[model.size=S, train.global_batch_size=4, train.micro_batch_size=4]"
    assert len(read(file, arms, own, small, "study.untrained=true")) == 6


def test_random_weights_are_no_start_of_pretrainings_that_go_on_from_others(file: Path, tmp_path: Path) -> None:
    """The difference from untrained would be the older pretraining's, too."""
    (tmp_path / "on.yaml").write_text("base: debug\ntrain: {init_from: runs/before}\n")
    start = f"{FINETUNE}, set: [data.train=x, data.test=x, model.size=tiny, model.initialisation=local]"
    given = [f"study.config={tmp_path}/on.yaml", "study.objectives={pixels: ['objective.terms={pixels: 1}']}"]
    given.append(f"study.evaluations={{own: {{{start}}}}}")
    read(file, *given, "study.untrained=false")
    with pytest.raises(ValueError, match=r"train.init_from=runs/before, and the weights .* are then not random"):
        read(file, *given, "study.untrained=true")


def test_an_evaluation_reads_clips_of_the_pretrainings_shape(file: Path) -> None:
    """By default, and not 16 frames of 224 pixels, which tubelets of 3 frames do not divide."""
    few = "train.global_batch_size=4, train.micro_batch_size=4"
    shape = f"study.set=[data.frames=6, model.tubelet=3, {few}]"
    knn = "study.evaluations={{knn: {{command: knn, set: [data.train=x, data.test=y, data.label=z{}]}}}}"
    read(file, shape, knn.format(""), "study.untrained=false")
    with pytest.raises(ValueError, match="frames=16: wanted a multiple of 3"):
        read(file, shape, knn.format(", encoder.frames=16"), "study.untrained=false")
