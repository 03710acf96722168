"""The README.md of an export: figures of the run's files alone, and code that loads the folder as it stands there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch import run
from made_weights import made

from tgm_scale import cli
from tgm_scale.config import Config
from tgm_scale.conversion.convert import convert
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.report.model_card import _recipe
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.compat import prepare_torchvision

ROOT = Path(__file__).parents[2]


def tgm_scale(*arguments: str) -> None:
    run(1, ["-m", "tgm_scale", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run of two steps, `run`, and an evaluation of it, `knn`."""
    path = tmp_path_factory.mktemp("card")
    make_corpus(path / "clips | one", 8, SyntheticSpec(size=32, frames=8, mode="one_mover"))
    tgm_scale(
        "pretrain", "--config", "debug", f"run.dir={path}/run", f"data.shards={path}/clips | one", "train.steps=2",
        "train.global_batch_size=4", "train.micro_batch_size=4", "log.tensorboard=false",
    )  # fmt: skip
    tgm_scale(
        "knn", f"run.dir={path}/knn", f"encoder.checkpoint={path}/run", f"data.train={path}/clips | one",
        f"data.test={path}/clips | one", "data.label=truth.objects.0.motion", "data.workers=0",
    )  # fmt: skip
    return path


def card(source: Path, output: Path, *options: str) -> str:
    assert cli.main(["convert", str(source), str(output), "--to", "huggingface", *options]) == 0
    return (output / "README.md").read_text()


def test_the_card_has_the_figures_of_the_run_and_their_files(folder: Path, tmp_path: Path) -> None:
    text = card(folder / "run", tmp_path / "model", "--evaluation", str(folder / "knn"))
    row = read_metrics(folder / "run")[-1]
    judged = json.loads((folder / "knn/results.json").read_text())
    method, figures = judged["method"], judged["figures"]
    for line in (
        "# model",
        "| clips \\| one | 8 |",
        f"| loss | {row['loss']:.4f} | metrics.jsonl, step 2 |",
        f"| loss_contrastive | {row['loss_contrastive']:.4f} | metrics.jsonl, step 2 |",
        "| steps made | 2 |",
        "| samples seen | 8 |",
        "| epochs | 1.00 |",
        "| masking.recipe | text_guided |",
        "| masking.mask_ratio | 0.6 |",
        "| objective | 1 pixels + 1 contrast |",
        "| guidance.towers | small |",
        "| guidance.scorer | raw |",
        *(
            f"| {method} | {name} | {value['value']:.4f} | {value['low']:.4f} to {value['high']:.4f}, over "
            f"{value['clips']} clips | knn/results.json |"
            for name, value in figures.items()
        ),
    ):
        assert line in text.splitlines(), line
    assert judged["views"] == "1 windows x 1 squares, each 8 frames of 64 pixels, 1 apart"
    beside = next(line for line in text.splitlines() if line.startswith("- knn/results.json: "))
    assert "train clips | one, 8 clips; test clips | one, 8 clips; classes: " in beside
    assert "in both parts: 8 of 8 test clips are training clips, too" in beside
    assert "majority class: top1 of always answering '" in beside and "few test clips: 8, fewer than 30" in beside
    assert "## Licence\n\nNone is stated here." in text and "\nlicense:" not in text
    assert str(folder) not in text and "knn_accuracy" not in text and "data.shards" not in text


@pytest.mark.parametrize(
    ("given", "said", "unsaid"),
    [
        (
            {"objective": {"terms": {"pixels": 1, "differences": 0.5}}},
            ["masking.recipe | tube", "masking.mask_ratio | 0.9", "objective | 1 pixels + 0.5 differences"],
            ["guidance.", "objective."],
        ),
        (
            {"objective": {"contrastive_weight": 0}, "masking": {"recipe": "adamae"}},
            ["masking.recipe | adamae", "objective | 1 pixels + 0.0001 policy"],
            ["guidance.", "objective."],
        ),
        (
            {"objective": {"contrastive_weight": 0}, "masking": {"recipe": "flow_guided", "mask_ratio": 0.6}},
            ["masking.mask_ratio | 0.6", "objective | 1 pixels", "guidance.flow | raft.pth"],
            ["guidance.towers", "guidance.scorer"],
        ),
        (
            {"objective": {"terms": {"pixels": 1, "predict": 1}}},
            ["guidance.towers | small", "guidance.scorer | raw"],
            ["guidance.flow"],
        ),
        (
            {"masking": {"recipe": "no such"}, "objective": {"contrastive_weight": 0}},
            ["masking.recipe | no such", "objective.contrastive_weight | 0", "guidance.towers | small"],
            ["objective |"],
        ),
    ],
)
def test_the_recipe_says_mask_and_objective_and_no_frozen_model_that_nothing_read(
    given: dict[str, Any], said: list[str], unsaid: list[str]
) -> None:
    guidance = {"towers": "small", "scorer": "raw", "flow": "weights/raft.pth"}
    tree = {"run": {"dir": "x"}, "data": {"shards": "y"}, "train": {"steps": 1}, "guidance": guidance, **given}
    text = "\n".join(_recipe(tree, Config))
    for row in said:
        assert f"| {row} |" in text
    for key in unsaid:
        assert f"| {key}" not in text


@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_the_code_on_the_card_loads_the_folder_without_a_network(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--classes", "3"] if kind == "classifier" else []
    text = card(folder / "run", tmp_path / "model", *options)
    code = "from transformers import VideoMAEForPreTraining"
    loads = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    told = "the torchvision installed here was built for another torch" in capsys.readouterr().out
    assert loads is not told
    assert ("The head of 3 classes has not been trained." in text) is bool(options)
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path / "model")
    monkeypatch.setattr("socket.socket.connect", None)  # no network
    prepare_torchvision()
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["label"] in ("LABEL_0", "LABEL_1", "LABEL_2") if options else found["feature"].shape == (1, 128)


def test_what_is_not_known_is_left_out(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    for name in ("metrics.jsonl", "data.json", "plan.json", "environment.jsonl", "results.json"):
        (run / name).write_text("{")
    text = card(run, tmp_path / "damaged")
    assert "| steps made | 2 |" in text and "Versions of the conversion" in text
    assert "metrics.jsonl" not in text and "## Data" not in text and "epochs" not in text
    convert(made("pretraining"), tmp_path / "others.pth", "videomae")
    sides = ("--frames", "8", "--size", "32", "--heads", "3", "--decoder-heads", "2")
    text = card(tmp_path / "others.pth", tmp_path / "foreign", *sides)
    assert "Converted by tgm_scale from `others.pth`." in text
    assert not re.search("## (Data|Recipe|Training|Evaluation)", text)


@pytest.mark.parametrize("case", ["empty", "other", "format"])
def test_an_evaluation_that_is_none_of_it_is_refused_before_the_work(
    case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = tmp_path / "knn"
    judged.mkdir()
    if case == "other":
        (judged / "results.json").write_text('{"method": "kNN", "checkpoint": "runs/another", "figures": {}}')
    said = {"empty": "no results.json in it", "other": "judges runs/another", "format": "not of --to safetensors"}[
        case
    ]
    target = "safetensors" if case == "format" else "huggingface"
    given = ["convert", str(folder / "run"), str(tmp_path / "out"), "--to", target, "--evaluation", str(judged)]
    assert cli.main(given) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_figures_of_other_weights_are_not_on_the_card(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another step, or of averaged weights where those as trained are exported; a folder elsewhere is the same."""
    results = json.loads((folder / "knn/results.json").read_text())
    judged = tmp_path / "knn"
    judged.mkdir()
    for checkpoint, said in (
        (str(folder / "run/checkpoints/step-00000001"), "step-00000001, not what is converted (step 2)"),
        ("elsewhere/run/checkpoints/step-00000002", "not what is converted"),
        ("run/checkpoints/step-00000002", None),  # of an evaluation that was started in the folder above
    ):
        (judged / "results.json").write_text(json.dumps(results | {"checkpoint": checkpoint}))
        given = ["convert", str(folder / "run"), str(tmp_path / "out"), "--to", "huggingface"]
        code = cli.main([*given, "--evaluation", str(judged)])
        assert code == (2 if said else 0) and (said or "") in capsys.readouterr().err
    text = (tmp_path / "out/README.md").read_text()
    assert "of the encoder alone; their heads are not in this folder" in text


def test_the_card_of_a_finetuned_model_is_of_its_recipe_and_its_weights(folder: Path, tmp_path: Path) -> None:
    run, clips = tmp_path / "tuned", folder / "clips | one"
    tgm_scale(
        "finetune", "--config", "study_weizmann_finetune", f"run.dir={run}", f"train.init_from={folder}/run",
        f"data.train={clips}", f"data.test={clips}", "data.label=truth.objects.0.motion", "data.stride=1",
        "train.steps=2", "checkpoint.every=2", "finetune.ema=0.5", "train.micro_batch_size=4",
        "train.global_batch_size=4", "log.tensorboard=false",
    )  # fmt: skip
    text = card(run, tmp_path / "averaged")
    rows = text.splitlines()
    assert "| data.flip | False |" in rows and "| finetune.rand_augment | None |" in rows
    assert not any(row.startswith(("| data.repeated_augmentation |", "| finetune.drop_path |")) for row in rows)
    assert "| clips \\| one (train) | 8 |" in rows and "| clips \\| one (test) | 8 |" in rows
    assert "| finetuning | top1 |" in text and "of the encoder alone" not in text
    raw = card(run, tmp_path / "<b>raw", "--raw")
    assert "(weights as trained, not averaged)" in raw and "| finetuning |" not in raw and "# \\<b\\>raw" in raw
