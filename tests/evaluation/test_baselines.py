"""What methods are compared with, and shares of the labels: by cases whose answer is known, and by the commands."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import made_finetune
import numpy as np
import pytest
import torch
from torch import Tensor

from tgm_scale import cli
from tgm_scale.contracts import Problem
from tgm_scale.data.video.encode import encode_video
from tgm_scale.evaluation import results, ridge, small_cnn
from tgm_scale.evaluation.baselines import refuse
from tgm_scale.evaluation.cache import Clips
from tgm_scale.evaluation.labelled import labelled_inventory
from tgm_scale.evaluation.probe import Validation
from tgm_scale.evaluation.session import open_split
from tgm_scale.evaluation.settings import LabelledConfig, load_finetune
from tgm_scale.finetuning import setup
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo

LEFT, RIGHT = 0, 1
ALONE = ProcessInfo(0, 1, 0, torch.device("cpu"))


def moving(count: int, seed: int, side: int = 16, frames: int = 4) -> tuple[Tensor, Tensor]:
    """Clips of a bright square that moves to the left or to the right: any frame alone says nothing."""
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 40, (count, 3, frames, side, side)).astype(np.uint8)
    labels = rng.integers(0, 2, count)
    for clip, label in zip(video, labels):
        row, middle = rng.integers(0, side - 4), rng.integers(4, side - 8)
        for frame in range(frames):
            column = middle + (2 * frame - frames + 1) * (1 if label == RIGHT else -1)
            clip[:, frame, row : row + 4, column : column + 4] = 230
    return torch.from_numpy(video), torch.from_numpy(labels)


def test_the_cnn_learns_what_only_the_order_of_frames_says() -> None:
    train, labels_N = moving(64, seed=0)
    test, truth_M = moving(32, seed=1)
    epochs: list[int] = []
    scores_MC = small_cnn.scores(train, labels_N, test, seed=3, progress=epochs.append)
    assert (scores_MC.argmax(1) == truth_M).double().mean() > 0.9 and len(epochs) == small_cnn.EPOCHS
    few = (train[:16], labels_N[:16], test[:4])
    again = small_cnn.scores(*few, seed=3)
    assert torch.equal(again, small_cnn.scores(*few, seed=3))
    assert not torch.equal(again, small_cnn.scores(*few, seed=4))


def test_a_shift_moves_the_picture_and_brings_black() -> None:
    video = torch.randint(1, 256, (3, 2, 8, 8), dtype=torch.uint8)
    for down, right in ((0, 0), (2, 0), (0, -3), (-1, 2)):
        moved = small_cnn.shifted(video, down, right)
        wanted = torch.zeros_like(video)
        for row in range(8):
            for column in range(8):
                if 0 <= row - down < 8 and 0 <= column - right < 8:
                    wanted[..., row, column] = video[..., row - down, column - right]
        assert torch.equal(moved, wanted), (down, right)


def test_the_ridge_is_the_minimum_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND, y_MD = (torch.randn(count, 30, generator=generator) for count in (40, 9))
    labels_N = torch.arange(40) % 3
    x_ND[labels_N == 1, :3] += 2
    found_MC, penalty = ridge.scores(x_ND, labels_N, y_MD, Validation(0))
    x, y = x_ND.double(), y_MD.double()
    x, y = (x - x.mean(0)) / x_ND.double().std(), (y - x.mean(0)) / x_ND.double().std()
    targets_NC = torch.nn.functional.one_hot(labels_N).double()
    gram_DD = x.T @ x / 40 + penalty * 30 * torch.eye(30, dtype=torch.float64)
    wanted_MC = y @ torch.linalg.solve(gram_DD, x.T @ (targets_NC - targets_NC.mean(0)) / 40) + targets_NC.mean(0)
    assert penalty in ridge.PENALTIES and torch.allclose(found_MC, wanted_MC, atol=1e-9)


def test_a_gain_is_paired_by_clip_and_has_its_interval_over_groups() -> None:
    keys, groups = [f"{n}" for n in range(40)], [f"g{n % 4}" for n in range(40)]
    clips = Clips([torch.zeros(40, 1)], ["x"] * 40, keys, list[Problem](), groups)
    right_M = torch.tensor([n % 2 == 0 for n in range(40)])
    method = {key: n % 2 == 0 or n % 4 == 1 for n, key in enumerate(keys)}  # better on the group g1 alone
    found = results.compared(right_M, clips, method)
    assert found["top1"]["value"] == 0.5 and found["gain"]["value"] == 0.25 and found["gain"]["groups"] == 4
    assert found["gain"]["low"] == 0.0 and found["gain"]["high"] == 0.75, "one group of four has all of it"
    over_clips = results.compared(right_M, clips._replace(groups=None), method)["gain"]
    assert 0.1 < over_clips["low"] < 0.25 < over_clips["high"] < 0.4 and "groups" not in over_clips


def folder(root: Path, rows: list[str]) -> str:
    for number in range(24):
        video, _ = moving(1, seed=number, side=32, frames=6)
        (root / f"{number}.mp4").write_bytes(encode_video(video[0].permute(1, 2, 3, 0).numpy(), fps=25))
    (root / "labels.csv").write_text("\n".join(["file,label,group", *rows]) + "\n")
    return str(root)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    labels = [int(moving(1, seed=number, side=32, frames=6)[1]) for number in range(24)]
    return folder(tmp_path_factory.mktemp("moving"), [f"{n}.mp4,{labels[n]},{n % 6}" for n in range(24)])


def test_a_probe_stands_beside_its_baselines(
    place: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_cnn, "EPOCHS", 2)
    command = ["probe", f"run.dir={tmp_path}/run", f"encoder.checkpoint={checkpoint}", f"data.train={place}",
               f"data.test={place}", "data.test_groups=[1, 4]", "data.workers=0", "probe.baselines=true"]  # fmt: skip
    assert cli.main(command) == 0
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert list(found["baselines"]) == ["raw pixels", "small CNN", "random weights"]
    own = found["figures"]["top1"]["value"]
    for name, row in found["baselines"].items():
        assert row["top1"]["clips"] == 8 and row["top1"]["groups"] == 2 and row["what"], name
        assert row["top1"]["low"] <= row["top1"]["value"] <= row["top1"]["high"]
        assert row["gain"]["value"] == pytest.approx(own - row["top1"]["value"])
    assert found["baselines"]["random weights"]["what"].startswith("linear probe of the encoder's first values")
    # the encoder of the checkpoint is that of a run of seed 7, so with this seed the baseline is the probe itself
    assert cli.main([*command, f"run.dir={tmp_path}/same", "run.seed=7"]) == 0
    same = json.loads((tmp_path / "same/results.json").read_text())["baselines"]["random weights"]
    assert (same["gain"]["value"], same["gain"]["low"], same["gain"]["high"]) == (0.0, 0.0, 0.0)
    random = [*command[:2], "encoder.checkpoint=random", "encoder.size=tiny", "encoder.frames=4",
              "encoder.image_size=32", *command[3:], f"run.dir={tmp_path}/random"]  # fmt: skip
    assert cli.main(random) == 0
    without = json.loads((tmp_path / "random/results.json").read_text())["baselines"]
    assert list(without) == ["raw pixels", "small CNN"], "the probe is that of random weights"


def test_a_finetuning_stands_beside_its_baselines(
    place: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_cnn, "EPOCHS", 2)
    config = made_finetune.configuration(tmp_path, place, checkpoint)
    command = ["finetune", "--config", str(config), "data.label=label", "data.test_groups=[1, 4]", "train.steps=2",
               "finetune.baselines=true", "data.share=0.75"]  # fmt: skip
    few = load_finetune(str(config), [*command[3:], "data.share=0.4"])
    said = (
        r"finetune.baselines=true: a probe needs 2 classes and 10 training clips: found \d and \d, by data.share=0.4: "
        "raise data.share, or leave it out$"
    )
    with pytest.raises(ValueError, match=said):
        setup.open_data(few, setup.plan_finetuning(few, ALONE), HostCollectives(ALONE))
    assert cli.main(command) == 0
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert list(found["baselines"]) == ["raw pixels", "small CNN", "random weights"]
    assert found["facts"]["training videos"] == 12 and found["baselines"]["small CNN"]["gain"]["groups"] == 2


def test_a_share_of_the_labels_is_of_each_class_and_nested(place: str) -> None:
    labelled: dict[float, dict[str, str]] = {}
    for share in (0.01, 0.3, 0.6, 1.0):
        data = LabelledConfig(train=place, test=place, test_groups=("1",), share=share)
        train = open_split(data, "train", seed=5)
        labelled[share] = train.labels
        assert sorted(ref.name for ref in train.corpus.refs) == sorted(train.labels), "the corpus has no others"
        assert len(open_split(data, "test", seed=5).refs) == 4, "the test stays whole"
    whole = Counter(labelled[1.0].values())
    assert set(labelled[0.01]) < set(labelled[0.3]) < set(labelled[0.6]) < set(labelled[1.0])
    assert Counter(labelled[0.01].values()) == dict.fromkeys(whole, 1)
    assert Counter(labelled[0.6].values()) == {label: round(0.6 * count) for label, count in whole.items()}
    other = open_split(LabelledConfig(train=place, test=place, test_groups=("1",), share=0.6), "train", seed=6)
    assert other.labels != labelled[0.6] and other.corpus.fingerprint != open_split(data, "train").corpus.fingerprint


def test_a_share_of_the_labels_leaves_out_no_larger_share_of_the_data(place: str, tmp_path: Path) -> None:
    """Missing files are counted beside all rows of the list: labels that were not drawn are no damage."""
    some = Path(shutil.copytree(place, tmp_path / "some"))
    for number in (2, 4, 7):  # the last is of the test
        (some / f"{number}.mp4").unlink()
    found = {}
    for share in (0.1, 1.0):
        data = LabelledConfig(train=str(some), test=str(some), test_groups=("1",), share=share)
        found[share] = labelled_inventory("train", open_split(data, "train", seed=5))
    assert found[0.1].usable < found[1.0].usable == 18 and sum(found[0.1].left_out.values()) == 2
    assert found[0.1].share == found[1.0].share == pytest.approx(2 / 20)


def test_what_has_no_baselines_or_shares_is_refused(
    shards: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"probe.baselines=true: baselines are for up to 5,000 training clips"):
        refuse("probe.baselines", ["a", "b", "c"] * 1667)
    refuse("probe.baselines", ["a", "b"] * 2500)
    config = made_finetune.configuration(tmp_path, shards, checkpoint)
    assert cli.main(["finetune", "--config", str(config), "data.share=0.5"]) == 2
    assert "data.share=0.5: a finetuning takes a share of a list" in capsys.readouterr().err
    data = LabelledConfig(train=shards, test=shards, label="truth.objects.0.shape", share=0.5)
    assert 15 <= len(open_split(data, "train").refs) <= 22, "a probe of shards takes a share of 37 clips"
