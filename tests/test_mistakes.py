"""Mistakes of the command line in words that say what to type instead, and examples of `--help` that hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tgm_scale import cli, config
from tgm_scale.evaluation import settings

COMMANDS = ("pretrain", "finetune", "knn", "probe", "retrieve")
FILES = {
    "pretrain": "configs/debug.yaml",
    "finetune": "configs/finetune_k400.yaml",
    "knn, probe and retrieve": "configs/probe_k400.yaml",
}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that ends as a user's mistake does."""
    try:
        assert cli.main(arguments) == 2
    except SystemExit as left:  # argparse's way
        assert left.code == 2
    return capsys.readouterr().err


def loaded(command: str, path: str | None, overrides: list[str]) -> config.RunSettings:
    if command == "pretrain":
        return config.load(str(path), overrides)
    if command == "finetune":
        return settings.load_finetune(str(path), overrides)
    kind = settings.FrozenConfig if command == "retrieve" else settings.SupervisedConfig
    return settings.load_frozen(path, overrides, kind)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_help_gives_as_an_example_is_taken(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    [override] = re.findall(r"such as\s+(\S+)", text)
    examples = re.findall(rf"tgm[-_]scale {command} (?!\[)(.*)", text)
    assert len(examples) >= 2
    for words in map(str.split, examples):
        path = words.pop(words.index("--config") + 1) if "--config" in words else None
        loaded(command, path, [*(word for word in words if "=" in word), override])
    [packaged] = re.findall(r"`(\w+)` is", text)
    assert loaded(command, packaged, [override]).run.dir == override.partition("=")[2]


@pytest.mark.parametrize("made_for", FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_configuration_for_other_commands_is_told(
    command: str, made_for: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if command in made_for:
        assert loaded(command, FILES[made_for], ["data.train=x", "data.test=x"] if command != "pretrain" else [])
        return
    given = ["train.init_from=x"] if command in ("pretrain", "finetune") else ["encoder.checkpoint=runs/x"]
    text = said(capsys, command, "--config", FILES[made_for], *given)
    assert text.count("\n") == 1
    assert f"{FILES[made_for]}: a configuration for tgm-scale {made_for} (it has " in text
    wanted = re.findall(r"such as (\S+\.yaml)", text)
    assert loaded(command, wanted[0], []), "the remedy is right"


def test_a_file_without_a_section_of_its_own_goes_by_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("run: {dir: x}\ndata: {shards: y, sise: 3}\nobjektive: {}\ntrain: {steps: 1}\n")
    text = said(capsys, "finetune", "--config", str(file))
    assert "for tgm-scale pretrain (it has data.shards)" in text and "train.init_from=RUN" in text
    text = said(capsys, "pretrain", "--config", str(file))
    assert "data.sise: unknown key; did you mean data.size?" in text and "objektive: unknown key" in text
    file.write_text("run: {dir: x}\ndata: {train: y, test: z}\ntrain: {steps: 1}\n")
    assert "for tgm-scale finetune or knn, probe and retrieve (it has data.train" in said(
        capsys, "pretrain", "--config", str(file)
    )
    assert "encoder.checkpoint: missing" in said(capsys, "knn", "--config", str(file)), "it may be meant for it"


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["knn"], ["run.dir", "data.train", "data.test", "encoder.checkpoint"]),
        (["probe", "run.dir=x", "data.test=y"], ["data.train", "encoder.checkpoint"]),
        (["retrieve", "run.dir=x"], ["data.test", "encoder.checkpoint"]),
        (["finetune", "--config", "configs/finetune_k400.yaml", "data={}"], ["data.train", "data.test"]),
        (["pretrain", "--config", "configs/debug.yaml", "data={}", "run=null"], ["data.shards"]),
    ],
)
def test_missing_keys_are_named_with_what_they_are(
    arguments: list[str], keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, *arguments)
    for key in keys:
        assert re.search(rf"^  {key}: missing; give it in the file or as {key}=VALUE \([a-z]", text, re.M), text
    assert text.count("missing") == len(keys) and "run=VALUE" not in text


def test_all_that_is_given_beside_no_file_is_the_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "knn", "run.dir=x", "train.steps=100")
    assert (
        text.count("command line") == 1 and "train: a section of tgm-scale finetune and pretrain, and not of" in text
    )


@pytest.mark.parametrize(
    ("words", "said_of"),
    [
        (
            "pretrain --config configs/debug.yaml data.share=0.5",
            "data.share: a key of tgm-scale finetune, knn, probe and retrieve, and not of tgm-scale pretrain: leave",
        ),
        (
            "plan --fit 1x24GB data.share=0.5",
            "data.share: a key of tgm-scale finetune, knn, probe and retrieve, and not of tgm-scale pretrain",
        ),
        (
            "knn run.dir=x data.shards=y masking.recipe=tube",
            "data.shards: a key of tgm-scale pretrain, and not of tgm-scale knn and probe",
        ),
        ("knn run.dir=x masking.recipe=tube", "masking: a section of tgm-scale pretrain, and not of"),
        (
            "retrieve run.dir=x finetune.mixup=0",
            "finetune: a section of tgm-scale finetune, and not of tgm-scale knn, probe and",
        ),
        ("finetune --config configs/finetune_k400.yaml data.patience=1", "data.patience: a key of tgm-scale pretrain"),
        (
            "study --config configs/study/terms.yaml study.set=[data.share=1]",
            "data.share: a key of tgm-scale finetune, knn",
        ),
        ("pretrain --config configs/debug.yaml data.shars=x", "data.shars: unknown key; did you mean data.shards?"),
        ("knn run.dir=x train=y", "train: unknown key; did you mean data.train?"),
    ],
)
def test_a_key_of_another_command_is_told_as_such(
    words: str, said_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said_of in said(capsys, *words.split())


@pytest.mark.parametrize("words", ["pretrain", "shards make", "benchmark growth", "convert a b", "tune", "preview"])
def test_a_missing_option_is_shown_in_an_example(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, *words.split())
    missing = re.findall(r"required: (.*); such as\n", text)[0].split(", ")
    example = text.splitlines()[-1]
    assert example.startswith(f"  tgm-scale {words.removesuffix(' a b')} ") and all(one in example for one in missing)


@pytest.mark.parametrize("below", ["", "deep/er"])
@pytest.mark.parametrize(
    "words", ["benchmark growth --output", "benchmark footprint --dir", "tune --config debug --dir"]
)
def test_a_file_in_place_of_a_folder_is_told(
    words: str, below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "there"
    place.write_text("mine")
    text = said(capsys, *words.split(), str(place / below))
    assert f"{place}: found a file where a folder is wanted: name another" in text and place.read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        "pretrain run.dir=x --config @",
        "pretrain --config debug run.dir=@",
        "study --config configs/study/paper.yaml run.dir=@",
        "preflight --config debug run.dir=@",
        "knn run.dir=TMP/k data.train=a.csv data.test=a.csv encoder.checkpoint=@",
        "convert @ TMP/out --to timm",
        "report @",
        "report TMP --output @",
        "preview --output @",
        "masks evaluate --videos @",
        "masks evaluate --videos TMP --output @",
        "benchmark growth --output @/below",
        "shards make --annotations TMP/a --videos TMP --output @",
        "status @",
        "check @",
    ],
)
def test_a_name_that_is_too_long_is_told_with_the_most(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.replace("@", f"TMP/{'a' * 300}").replace("TMP", str(tmp_path)).split()) == 2
    text = "".join(capsys.readouterr())
    assert "aaa...: a name of 300 bytes, wanted 255 at most: choose a shorter one\n" in text
    assert "metrics.jsonl" not in text


@pytest.mark.parametrize("value", [".nan", ".inf", "[0, .nan]", "{text: .inf}", "1" + "0" * 400, f"[{10**400}]"])
def test_numbers_that_are_none_are_refused_in_values_of_any_form(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "config", "--config", "debug", f"masking.options={{rate: {value}}}")
    assert "masking.options.rate: found " in text and text.endswith("; input should be a finite number\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["pretrain", "--config", "debug", "--data.shards=x"], ": data.shards=x\n"),
        (["knn", "--run.dir", "x", "--neighbours.k=3"], ": run.dir=VALUE neighbours.k=3\n"),
        (["config", "--config", "debug", "--train.max_minutes=3"], ": train.max_minutes=3\n"),
    ],
)
def test_a_key_with_dashes_is_understood_and_refused(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, *arguments).endswith(f"keys of the configuration have no dashes before them{hint}")
    text = said(capsys, "pretrain", "--config", "debug", "--steps=3")
    assert "dashes" not in text and text.endswith("given as section.key=value, such as train.steps=60\n")
    assert "given as" not in said(capsys, "convert", "a", "b", "--to", "timm", "--steps=3")


@pytest.mark.parametrize(
    ("option", "hint"),
    [("--gpus", "--gpus-per-node"), ("--gpu-per-node", "--gpus-per-node"), ("--conf", "--config"), ("--zzzz", None)],
)
def test_an_option_is_written_in_full(option: str, hint: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """`--gpus 128` was read as GPUs of one node, whose links are four times as fast as those between nodes."""
    text = said(capsys, "plan", "--config", "debug", option, "8")
    assert f"unrecognized arguments: {option}" in text
    assert f"; nearest: {hint};" in text if hint else "nearest" not in text
