"""What a path holds: containers, prefixes, what is refused."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
import torch
from foreign_checkpoints import videomae_finetuned, videomae_pretraining
from made_weights import FRAMES, SIDE, SMALL, autoencoder, equal, facts
from safetensors.torch import save_file

from tgm_scale.assembly.parts import restated
from tgm_scale.checkpoints.checkpoint import digest
from tgm_scale.conversion.key_maps import ModelMetadata
from tgm_scale.conversion.read import read, read_initial
from tgm_scale.conversion.readers import open_weights, strip_prefixes
from tgm_scale.models.patches import IMAGENET, PixelStatistics
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import ModelOptions

HEADS = ModelMetadata(heads=4, decoder_heads=2)
RUN_ARGUMENTS = argparse.Namespace(model="pretrain_videomae_base_patch16_224", num_frames=8, input_size=32, lr=1e-3)


def small_file(**beside: object) -> tuple[dict, dict]:
    """A VideoMAE pretraining state dict and the dictionary that its file holds."""
    state = videomae_pretraining(32, 2, 16, 1)
    return state, {"model": state, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 799, **beside}


@pytest.mark.parametrize("key", ["model", "module", "model_state", "state_dict", None])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_state_dict_under_any_known_key(key: str | None, new_format: bool, tmp_path: Path) -> None:
    state, _ = small_file()
    torch.save(
        {key: state, "epoch": 3} if key else state, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format
    )
    weights = read(tmp_path / "a.pth", HEADS)
    assert equal(weights.state, state)
    assert (weights.frames, weights.image_size) == (16, 224)


def test_videomaes_arguments_say_what_the_clip_is(tmp_path: Path) -> None:
    _, contents = small_file(args=RUN_ARGUMENTS)
    torch.save(contents, tmp_path / "a.pth")
    weights = read(tmp_path / "a.pth", HEADS)
    assert (weights.frames, weights.image_size) == (8, 32)
    assert "state dict under 'model'" in weights.notes[0]


def test_a_deepspeed_folder(tmp_path: Path) -> None:
    state, _ = small_file()
    half = {f"module.{name}": value.half() for name, value in state.items()}
    torch.save({"module": half, "dp_world_size": 8}, tmp_path / "mp_rank_00_model_states.pt")
    weights = read(tmp_path, HEADS)
    assert equal(weights.state, {name: value.half().float() for name, value in state.items()})
    assert any("stripped 'module.' from" in note for note in weights.notes)
    torch.save({"module": half}, tmp_path / "mp_rank_01_model_states.pt")
    with pytest.raises(ValueError, match=r"one mp_rank_.*, 2 found"):
        read(tmp_path, HEADS)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "backbone.",
        "model.",
        "net.",
        "encoder.",
        "net.encoder.",
        "module._orig_mod.",
        "_orig_mod.module.",
    ],
)
def test_prefixes_of_wrappers_come_off_and_are_reported(prefix: str, tmp_path: Path) -> None:
    state = videomae_finetuned(32, 2, 5)
    save_file({prefix + name: value for name, value in state.items()}, tmp_path / "file")
    weights = read(tmp_path / "file", HEADS)
    assert equal(weights.state, state)
    notes = [note for note in weights.notes if note.startswith("stripped")]
    assert len(notes) == prefix.count(".") and all(f"from {len(state)} names" in note for note in notes)


def test_of_videomaes_finetuning_the_weights_are_taken_that_it_tests(tmp_path: Path) -> None:
    """run_class_finetuning.py validates and tests `model`, and only saves `model_ema`."""
    state = videomae_finetuned(32, 2, 5)
    torch.save({"model": state, "model_ema": {name: value + 1 for name, value in state.items()}}, tmp_path / "a.pth")
    weights = read(tmp_path / "a.pth", HEADS)
    assert equal(weights.state, state)
    assert any("took 'model' and not 'model_ema'" in note and "tests it" in note for note in weights.notes)
    torch.save({"model_ema": state}, tmp_path / "alone.pth")
    for raw in (False, True):
        alone = read(tmp_path / "alone.pth", HEADS, raw=raw)
        assert equal(alone.state, state) and any("--raw: no weights as trained" in note for note in alone.notes) is raw


@pytest.mark.parametrize("key", ["ema", "state_dict_ema"])
def test_averaged_weights_are_taken_before_those_beside_them_and_that_is_said(key: str, tmp_path: Path) -> None:
    state = videomae_finetuned(32, 2, 5)
    average = {name: value + 1 for name, value in state.items()}
    torch.save({"model": state, key: average, "optimizer": {}}, tmp_path / "a.pth")
    weights, raw = read(tmp_path / "a.pth", HEADS), read(tmp_path / "a.pth", HEADS, raw=True)
    assert equal(weights.state, average) and equal(raw.state, state)
    assert any(f"took '{key}' and not 'model'" in note for note in weights.notes)
    assert any(f"took 'model' and not '{key}'" in note for note in raw.notes)
    torch.save({"model": state, key: None}, tmp_path / "none.pth")
    assert equal(read(tmp_path / "none.pth", HEADS).state, state)


@pytest.mark.parametrize("settings", [{"decay": 0.999, "updates": 3}, {"decay": torch.tensor(0.9), "on": True}, {}])
@pytest.mark.parametrize("key", ["ema", "model_ema", "model"])
def test_a_mapping_of_settings_is_no_state_dict(key: str, settings: dict, tmp_path: Path) -> None:
    state, _ = small_file()
    torch.save({"state_dict": state, key: settings}, tmp_path / "a.pth")
    weights = read(tmp_path / "a.pth", HEADS)
    assert equal(weights.state, state)
    assert any(f"'{key}' holds other" in note for note in weights.notes) == (key != "model" and bool(settings))


def test_a_folder_of_a_run_without_weights_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match="not a folder that can be read"):
        read(tmp_path)
    (tmp_path / "owner").mkdir()
    with pytest.raises(ValueError, match="a run without a checkpoint: it ended before its first one"):
        read(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="an evaluation, which has no weights: give the checkpoint that it is of"):
        read(tmp_path)


def test_a_prefix_comes_off_once_and_names_stay_apart() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    stripped, _ = strip_prefixes({"module.module.x": one, "backbone.y": two, "head.model.z": one})
    assert list(stripped) == ["module.x", "y", "head.model.z"]
    with pytest.raises(ValueError, match="x is there twice"):
        strip_prefixes({"x": one, "module.x": two})


def write_checkpoint(folder: Path, step: int, data: dict | None = None) -> dict:
    """A checkpoint of a run, as training writes it: weights and moments in two files; returns the weights.

    data: that section of its configuration."""
    weights = {f"model.{name}": value for name, value in autoencoder(embedding_width=8).state_dict().items()}
    weights["log_scale"] = torch.tensor([2.5])
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    files = []
    for rank, names in enumerate((list(weights)[::2], list(weights)[1::2])):
        share = {f"{name}.{part}": weights[name] for name in names for part in ("weight", "exp_avg")}
        share = {name: value.clone() for name, value in share.items()}
        file = place / f"state-{rank:05d}-of-00002.safetensors"
        save_file(share, file)
        files.append({"name": file.name, "bytes": file.stat().st_size, "blake2b": digest(file)})
    manifest = {"format": 1, "progress": {"step": step, "skipped": {}}, "files": files, **facts()}
    manifest["config"] |= {"data": data} if data else {}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return weights


def test_a_flipped_bit_of_a_checkpoint_is_not_converted(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 100)
    file = next(tmp_path.glob("checkpoints/step-*/state-00001-*"))
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"state-00001-of-00002\.safetensors: contents differ"):
        open_weights(tmp_path)


def test_a_run_folder_is_its_newest_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 20)
    own = write_checkpoint(tmp_path, 100)
    weights = read(tmp_path)
    assert equal(weights.state, {name.removeprefix("model."): value for name, value in own.items()})
    assert (weights.size, weights.frames, weights.image_size) == (SMALL, FRAMES, SIDE)
    assert "step-00000100, step 100" in weights.notes[0] and weights.config == {"run": {}}
    assert "step 20" in read(tmp_path / "checkpoints" / "step-00000020").notes[0]


def test_a_run_of_other_means_gives_its_own_outputs_and_starts_another(tmp_path: Path) -> None:
    """All that is read is for ImageNet's statistics; a run of others that starts from it has its own again."""
    statistics = PixelStatistics((0.3, 0.4, 0.5), (0.2, 0.25, 0.1))
    own = write_checkpoint(tmp_path, 20, statistics._asdict())
    weights = read(tmp_path)
    assert any("mean [0.3, 0.4, 0.5]" in note and "taken into the patch embedding" in note for note in weights.notes)
    models = [
        MaskedVideoAutoencoder(SMALL, FRAMES, SIDE, embedding_width=8, options=ModelOptions(statistics=s))
        for s in (statistics, IMAGENET)
    ]
    models[0].load_state_dict({name.removeprefix("model."): value for name, value in own.items() if "." in name})
    models[1].load_state_dict({name: value for name, value in weights.state.items() if name != "log_scale"})
    clip = torch.randint(
        256, (2, 3, FRAMES, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    torch.testing.assert_close(models[1].encode(clip), models[0].encode(clip), rtol=1e-3, atol=1e-4)
    names = [f"model.encoder.patch_embed.proj.{part}" for part in ("weight", "bias")]
    back = restated(read_initial(str(tmp_path), SMALL).weights, statistics)
    for name in names:
        torch.testing.assert_close(back[name], own[name], rtol=1e-4, atol=1e-5)


class Planted:
    """A pickle of it makes a file when it is loaded by a careless reader."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (self.mark, "w")


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_but_tensors_is_unpickled(new_format: bool, tmp_path: Path) -> None:
    _, contents = small_file(args=Planted(str(tmp_path / "mark")))
    torch.save(contents, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"nothing else is unpickled .*open"):
        read(tmp_path / "a.pth", HEADS)
    assert not (tmp_path / "mark").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_refused_in_words(tmp_path: Path) -> None:
    state = {"a": torch.zeros(30)}
    file, whole = tmp_path / "file", []
    for new_format in (True, False):
        stream = io.BytesIO()
        torch.save({"model": state}, stream, _use_new_zipfile_serialization=new_format)
        whole.append(stream.getvalue())
    save_file(state, file)
    whole.append(file.read_bytes())
    generator = torch.Generator().manual_seed(0)
    for i in range(150):
        damaged = bytearray(whole[i % 3])
        for place in torch.randint(len(damaged), (3,), generator=generator).tolist():
            damaged[place] ^= 0x5A
        file.write_bytes(damaged[: len(damaged) - (i % 5) * 20])
        try:
            assert open_weights(file).tensors  # bytes of a value, or of padding, may be any
        except ValueError as refused:
            assert str(file) in str(refused)


def test_other_things_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent: cannot be read"):
        read(tmp_path / "absent")
    with pytest.raises(ValueError, match="Wanted a run folder or checkpoint of this project"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a config.json without weights"):
        read(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="wanted a dictionary of tensors, found list"):
        read(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"no state dict under model.*keys: \['epoch'\]"):
        read(tmp_path / "other.pt")
