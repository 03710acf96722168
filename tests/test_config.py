"""The configuration: strict, helpful, frozen in its names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tgm_scale import config
from tgm_scale.config import mistakes
from tgm_scale.evaluation.settings import load_any
from tgm_scale.models.patches import IMAGENET_MEAN, IMAGENET_STD

ROOT = Path(__file__).parents[1]
OVERLAID = json.loads((ROOT / "tests/overlaid_configs.json").read_text())

MINIMAL = """
run: {dir: runs/x}
data: {shards: data/x}
objective: {contrastive_weight: 0}
optim: {base_lr: 1e-4}
train: {steps: 10}
"""

# scripts rely on these names: a change here is a change of interface
FROZEN_KEYS = """
run.dir run.seed
data.shards data.synthetic data.cache data.frames data.sampling data.time_jitter data.standardise data.stride data.size
data.workers data.decoder data.repeated_augmentation data.crop data.flip data.window_shards data.max_skipped_share
data.max_left_out_share data.patience data.root data.mean data.std data.group data.test_groups
guidance.towers guidance.scorer guidance.frames_per_tubelet guidance.resolution guidance.captions guidance.flow
guidance.cached guidance.compile guidance.own_stream
masking.recipe masking.mask_ratio masking.visible_ratio masking.options
model.size model.patch model.tubelet model.depth model.decoder_depth model.decoder_attention model.decode_ratio
model.attention model.activation_checkpointing model.compile model.initialisation
objective.reconstruction_weight objective.contrastive_weight objective.contrastive_batch
objective.normalise_by objective.terms objective.queue
optim.name optim.base_lr optim.min_lr optim.weight_decay optim.betas optim.warmup_share optim.clip_norm
train.steps train.epochs train.global_batch_size train.micro_batch_size train.precision train.init_from
train.max_minutes
deepspeed.config deepspeed.stage
checkpoint.every checkpoint.keep checkpoint.keep_every
faults.spike_factor faults.refused_before_rollback faults.rollbacks faults.hang_seconds faults.start_seconds
log.every log.tensorboard log.wandb log.pictures_every
profile.steps
knn.every knn.train knn.test knn.label knn.root knn.k
""".split()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_the_keys_are_frozen() -> None:
    assert sorted(config.all_keys()) == sorted(FROZEN_KEYS)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_loads_and_says_its_command(path: Path) -> None:
    assert load_any(str(path), []).run.dir.startswith("runs/")
    assert path.read_text().startswith("#"), "a configuration is a lab note: its header says command, hardware, time"
    assert "tgm-scale" in path.read_text() or "sbatch" in path.read_text()


def test_overrides_are_typed_and_dumps_load_back(file: Path) -> None:
    loaded = config.load(file, ["train.steps=5", "optim.base_lr=2e-3", "data.shards=[a, {path: b}]"])
    assert loaded.train.steps == 5
    assert loaded.optim.base_lr == 2e-3
    assert [corpus.weight for corpus in loaded.data.corpora()] == [None, None]
    file.write_text(config.dump(loaded))
    assert config.load(file) == loaded


def test_shards_of_ones_own_are_never_made(file: Path) -> None:
    file.write_text(file.read_text().replace("data: {", "data: {synthetic: {clips: 9}, ", 1))
    made = config.load(file).data.synthetic
    assert made is not None and made.clips == 9
    assert config.load(file, ["data.shards=x"]).data.synthetic is None
    assert config.load(file, ["data.shards=[a, b]"]).data.synthetic is None
    asked_for = config.load(file, ["data.shards=x", "data.synthetic.seed=3"]).data.synthetic
    assert asked_for is not None and (asked_for.clips, asked_for.seed) == (9, 3)
    with pytest.raises(ValueError, match="data"):
        config.load(file, ["data.shards=x", "data=3"])


def test_a_removed_value_is_read_as_the_one_in_its_place(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run folder of before has it in its config.yaml."""
    mistakes._notify.cache_clear()
    assert config.load(file, ["data.decoder=torchcodec"]).data.decoder == "pyav"
    assert capfd.readouterr().err == "notice: data.decoder=torchcodec is read as pyav\n"
    assert config.load(file, ["data.decoder=torchcodec"]) == config.load(file)
    named = config.load(file, ["masking.options={rule: share_per_part, whole_parts: 1}"]).masking.options
    assert named == {"rule": "stratified", "whole_parts": 1}


@pytest.mark.parametrize("name", OVERLAID)
def test_a_file_over_its_base_says_what_the_whole_one_said(name: str) -> None:
    """The values are those that the twelve files had when each held all of them."""
    path = f"configs/{name}.yaml"
    assert "base: base/" in (ROOT / path).read_text()
    assert config.read_tree(path) == OVERLAID[name]
    assert load_any(path, []).model_dump()["run"]["dir"] == f"runs/{name}"


def test_a_base_is_found_from_the_folder_of_its_file_and_has_none_itself(file: Path) -> None:
    (file.parent / "below.yaml").write_text(MINIMAL)
    file.write_text("base: below.yaml\ntrain: {micro_batch_size: 4}\noptim: {clip_norm: null}\ndata: {size: 32}")
    found = config.load(file, ["train.steps=5"])
    assert (found.train.steps, found.train.micro_batch_size, found.optim.base_lr) == (5, 4, 1e-4)
    assert found.optim.clip_norm is None and found.data.shards == "data/x"
    for name, said in (("run.yaml", "has a base of its own"), ("nowhere.yaml", "base=nowhere.yaml: no such file")):
        file.write_text(f"base: {name}\n")
        with pytest.raises(ValueError, match=said):
            config.load(file)
    mine = file.parent / "mine.yaml"  # a copy elsewhere
    mine.write_text((ROOT / "configs/finetune_k400.yaml").read_text())
    assert config.read_tree(mine) == OVERLAID["finetune_k400"]


def test_a_file_over_its_base_wins_as_an_override_does(file: Path) -> None:
    """The other way to say the length goes; no clips are made where the file's own are missing."""
    file.write_text("base: debug\ntrain: {epochs: 2}\ndata: {shards: my-clips}\n")
    found = config.load(file)
    assert (found.train.steps, found.train.epochs) == (None, 2) and found.data.synthetic is None
    file.write_text("base: debug\ndata: {shards: my-clips, synthetic: {clips: 8}}\n")
    assert config.load(file).data.synthetic is not None


@pytest.mark.parametrize("base", ["5", "[a, b]", "{a: 1}", "false", "''", "x" * 300, "x" * 5000])
def test_a_base_that_is_no_name_is_refused_with_the_wanted_form(file: Path, base: str) -> None:
    file.write_text(f"base: {base}\n")
    with pytest.raises(ValueError, match=r"base=.*(wanted the name of a YAML file|File name too long)"):
        config.load(file)


@pytest.mark.parametrize(
    "text",
    ["runs/a", "a #b", "a: b", "2024", "null", "[a", "'a", "1e3", "-", "a b ", 'a\\n"b', "é", "a\nb", "x=y"],
)
def test_a_path_is_read_back_as_it_was_whatever_yaml_makes_of_it(file: Path, text: str) -> None:
    given = config.override("run.dir", text)
    assert config.load(file, [given]).run.dir == text
    assert given == "run.dir=runs/a" or text != "runs/a"


def test_an_override_of_epochs_replaces_steps(file: Path) -> None:
    assert config.load(file, ["train.epochs=2"]).train.steps is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.betas=[0.9, 1.5]", ["optim.betas.1: found 1.5", "less than 1"]),
        ("optim.betas=[.nan, 0.9]", ["optim.betas.0: found nan", "finite"]),
        ("optim.weight_decay=.inf", ["optim.weight_decay: found inf", "finite"]),
        ("train.step=5", ["train.step: unknown key", "did you mean train.steps?"]),
        ("guidance.mask_ratio=0.5", ["did you mean masking.mask_ratio?"]),
        ("data.nonsense=1", ["known: ", "shards"]),
        ("trian.steps=5", ["did you mean train?"]),
        ("model.size=XL", ["model.size", "'XL'", "'tiny'"]),
        ("train.steps=abc", ["train.steps", "'abc'", "integer"]),
        ("data.decoder=nvdec", ["data.decoder=nvdec was removed", "data.decoder=pyav"]),
        ("data.flip=yes please", ["data.flip", "boolean"]),
        ("masking.mask_ratio=1.5", ["masking.mask_ratio", "less than 1"]),
        ("train.micro_batch_size=7", ["does not divide", "train.global_batch_size=256"]),
        ("objective.contrastive_batch=48", ["objective.contrastive_batch=48", "divisor"]),
        ("objective.contrastive_weight=1", ["guidance.towers", "objective.contrastive_weight=0"]),
        ("objective.reconstruction_weight=0", ["nothing is learned"]),
        ("data.repeated_augmentation=3", ["data.repeated_augmentation=3", "divisor"]),
        ("data.shards=[a, {path: b, weight: 0.5}]", ["data.shards", "every corpus a weight"]),
        ("train.steps", ["section.key=value"]),
        ("train.steps=[", ["not valid YAML"]),
        ("run.dir.x=1", ["dir is a value"]),
        ("objective.terms={pixels: 1, nearest:0.1}", ["key 'nearest:0.1' without a value: write 'nearest: 0.1'"]),
        ("masking.options={sources: {text:0.1}}", ["key 'text:0.1' without a value: write 'text: 0.1'"]),
        ("data.shards=[{path: b, wait: 1}]", ["data.shards.0.wait: unknown key; did you mean data.shards.0.weight?"]),
        ("data.shards=[a, {weight: 1}]", ["data.shards.1.path: missing; give it there (folder or pattern"]),
        ("data.shards=[]", ["data.shards: found []; wanted a text, or a list with one at least"]),
        ("knn.test=[]", ["knn.test: found []; wanted a text, or a list with one at least"]),
        ("optim.betas=[1, 2, 3]", ["optim.betas: found [1, 2, 3]; list should have at most 2 items"]),
        ("data.shards=3", ["data.shards: found 3; input should be a valid string or a valid list"]),
        ("run.dir=''", ["run.dir: found ''; wanted a text that is not empty"]),
        ("guidance.towers=''", ["guidance.towers: found ''; wanted a text that is not empty"]),
        ("data.shards=[a, '']", ["data.shards: found ['a', '']; wanted a text that is not empty"]),
        ("data.shards=[{path: ''}]", ["data.shards.0.path: found ''; wanted a text that is not empty"]),
        ("data.shards=[3]", ["data.shards.0: found 3; input should be a valid string or a mapping"]),
        ("data.frames=4097", ["data.frames: found 4097; input should be less than or equal to 4096"]),
        ("data.stride=1000001", ["data.stride: found 1000001; input should be less than or equal to 1000000"]),
        (f"run.seed={10**30}", ["run.seed: found 1", "; wanted a whole number of at most 64 bits"]),
        ("data.test_groups={a: 1}", ["data.test_groups: found {'a': 1}; input should be a valid number or a list"]),
    ],
)
def test_a_mistake_names_the_key_and_the_remedy(file: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        config.load(file, [override])
    for word in words:
        assert word in str(caught.value)
    assert "CorpusConfig" not in str(caught.value) and "validation" not in str(caught.value), (
        "keys are the user's, not the code's"
    )


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    with pytest.raises(ValueError) as caught:
        config.load(file, ["train.step=5", "model.size=XL"])
    assert "train.step" in str(caught.value) and "model.size" in str(caught.value)


def test_a_key_given_twice_and_a_missing_file_are_mistakes(file: Path) -> None:
    file.write_text(MINIMAL + "run: {dir: y}\n")
    with pytest.raises(ValueError, match="twice"):
        config.load(file)
    with pytest.raises(ValueError, match="no such file"):
        config.load(file.with_name("absent.yaml"))
    with pytest.raises(ValueError, match="a folder"):
        config.load(file.parent)
    file.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="not a text file"):
        config.load(file)


def test_both_lengths_are_a_contradiction(file: Path) -> None:
    file.write_text(MINIMAL.replace("steps: 10", "steps: 10, epochs: 2"))
    with pytest.raises(ValueError, match="one of the two"):
        config.load(file)


def test_a_mistake_of_an_override_is_the_command_lines(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "run: {dir: x}\ndata: {shards: y, typo: 1}\nobjective: {contrastive_weight: 0}\ntrain: {steps: 1}\n"
    )
    with pytest.raises(ValueError) as caught:
        config.load(file, ["train.stesp=3"])
    assert str(caught.value).startswith(f"{file}:\n  data.typo: unknown key")
    assert "\ncommand line:\n  train.stesp: unknown key; did you mean train.steps?" in str(caught.value)


def test_a_deepspeed_file_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs/deepspeed").mkdir(parents=True)
    (tmp_path / "configs/deepspeed/zero1.json").write_text("{}")
    file = tmp_path / "configs/c.yaml"
    text = "run: {dir: x}\ndata: {shards: y}\nobjective: {contrastive_weight: 0}\ntrain: {steps: 1}\n"
    monkeypatch.chdir("/")
    for name in ("configs/deepspeed/zero1.json", "deepspeed/zero1.json"):
        file.write_text(text + f"deepspeed: {{config: {name}}}\n")
        assert config.load(file).deepspeed.config == str(tmp_path / "configs/deepspeed/zero1.json")
    file.write_text(text + "deepspeed: {config: absent.json}\n")
    with pytest.raises(ValueError, match=r"deepspeed.config=absent.json: no such file \(looked for /absent.json, "):
        config.load(file)


@pytest.mark.parametrize(
    ("given", "found"),
    [("0.5", (0.5, 0.5, 0.5)), ("[0.1]", (0.1, 0.1, 0.1)), ("[0.1,0.2,0.3]", (0.1, 0.2, 0.3))],
)
def test_means_are_one_number_or_three(tmp_path: Path, given: str, found: tuple[float, ...]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL)
    assert config.load(file, [f"data.mean={given}"]).data.mean == found
    assert (config.load(file).data.mean, config.load(file).data.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("given", ["mean=[0.1,0.2]", "mean=124", "std=0", "std=[0.2,0.2,-0.1]", "std=[58,57,57]"])
def test_means_in_other_units_are_refused(tmp_path: Path, given: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL)
    with pytest.raises(
        ValueError, match=r"command line:\n  data\.(mean|std)=.*: wanted one or three numbers from .* to 1"
    ):
        config.load(file, [f"data.{given}"])


def test_a_run_folder_is_read_where_its_deepspeed_file_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration may name one by a path that held where the run began, or one that comes with the project."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.yaml"
    text = "run: {dir: x}\ndata: {shards: y}\nobjective: {contrastive_weight: 0}\ntrain: {steps: 1}\n"
    file.write_text(text + "deepspeed: {config: gone/zero1.json}\n")
    assert config.read_tree(file)["deepspeed"] == {"config": "gone/zero1.json"}
    for name in ("configs/deepspeed/zero1.json", "deepspeed/zero1"):
        file.write_text(text + f"deepspeed: {{config: {name}}}\n")
        assert config.load(file).deepspeed.config == name, "engine_plan finds it in the same way"
    assert config.load(file, ["deepspeed.config=null"]).deepspeed.config is None


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("optim.weight_decay=-1", "command line:"),
        ("optim.weight_decay=0", "c.yaml and the command line:\n  optim.min_lr=2"),
        ("train.steps=2", "c.yaml:\n  optim.min_lr=2"),
    ],
)
def test_a_mistake_is_put_down_to_where_it_was_made(tmp_path: Path, override: str, where: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL.replace("{base_lr: 1e-4}", "{base_lr: 1.0, min_lr: 2.0}"))
    with pytest.raises(ValueError) as caught:
        config.load(file, [override])
    assert where in str(caught.value)
