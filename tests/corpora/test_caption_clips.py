"""`tgm-scale shards caption` with real, tiny models of random weights in the Hugging Face layout."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tgm_scale import cli
from tgm_scale.corpora import captions
from tgm_scale.data.access import storage
from tgm_scale.data.building import rewriting
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video


def main(arguments: Sequence[str]) -> int:
    return cli.main(["shards", "caption", *arguments])


def video(number: int, frames: int = 9) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (frames, 4, 4, 3)).astype(np.uint8)
    return encode_video(noise.repeat(8, 1).repeat(8, 2), fps=10, crf=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips in three shards, one of them broken; two classes."""
    folder = tmp_path_factory.mktemp("captions") / "plain"
    with ShardWriter(folder, clips_per_shard=2) as writer:
        for number in range(5):
            data = video(number) if number != 3 else b"not a video"
            content = {"label": {"name": ["riding_a_bike", "archery"][number % 2]}, "caption": f"old {number}"}
            writer.write(f"clip{number}", {"mp4": data, "json": content, "tgm.npy": np.zeros(3)})
    return folder


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<image>", *letters])}
    bytes_only = Tokenizer(models.BPE(vocabulary, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="</s>",
        additional_special_tokens=["<image>"],
    )


TEXT = {
    "vocab_size": 259,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    folder = tmp_path_factory.mktemp("blip2")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config={**shape, "image_size": 28, "patch_size": 14},
        qformer_config={**shape, "encoder_hidden_size": 32, "vocab_size": 259, "cross_attention_frequency": 1},
        text_config={**TEXT, "model_type": "opt"},
        num_query_tokens=4,
        image_token_index=2,
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so that different pictures give different words
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    Blip2Processor(BlipImageProcessor(size=size), tokenizer(), num_query_tokens=4).save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, tuple[dict, set[str]]]:
    corpus = open_corpus(folder)
    found = {}
    for shard, count in enumerate(corpus.counts):
        for row in range(count):
            ref = corpus.sample(shard, row)
            found[ref.name] = (json.loads(corpus.read(ref, ["json"])["json"]), set(ref.members))
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_three_frames_give_three_captions(
    shards: Path, blip2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "captioned"
    options = ["--shards", str(shards), "--blip2", str(blip2), "--device", "cpu"]
    assert main([*options, "--output", str(output)]) == 0
    assert "4 clips captioned, 1 clips not decoded (not_a_video)" in capsys.readouterr().out
    found = contents(output)
    assert list(found) == [f"{number // 2:05d}/clip{number}" for number in range(5)]
    describe = captions.load_blip2(blip2, "cpu", 1)
    for number, (content, members) in enumerate(found.values()):
        assert members == {"mp4", "json", "tgm.npy"} and "caption" not in content and content["label"]
        if number == 3:
            assert content["captions"] == ["old 3"]
            continue
        assert content["captions"] == describe(captions.three_frames(video(number)))
        assert len(content["captions"]) == 3 and content["old_captions"] == [f"old {number}"]
    assert len({tuple(content["captions"]) for content, _ in found.values()}) > 2, "they depend on the pictures"

    whole = files(output)
    (output / "00001.tar").unlink()  # stopped before its end
    assert main([*options, "--output", str(output)]) == 0 and files(output) == whole
    for task in "10":
        assert main([*options, "--output", str(tmp_path / "shared"), "--task", task, "--tasks", "2"]) == 0
    assert files(tmp_path / "shared") == whole


def test_the_frames_are_the_middles_of_thirds() -> None:
    pictures = np.stack([np.full((16, 16, 3), 20 * number, np.uint8) for number in range(12)])
    frames = captions.three_frames(encode_video(pictures, fps=10, crf=0))
    assert [round(frame.mean() / 20) for frame in frames] == [2, 6, 10]


def test_what_was_left_out_is_said_and_stops_it(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a list; three of its files are not there."""
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_bytes(video(number))
    (tmp_path / "list.csv").write_text("file,label\n" + "".join(f"{number}.mp4,walk\n" for number in range(7)))
    output = tmp_path / "out"
    arguments = ["--shards", str(tmp_path / "list.csv"), "--output", str(output), "--classes", "label"]
    assert main(arguments) == 2
    assert "42.9% of the samples were left out, more than --max-left-out=0.3" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["left_out.jsonl"]
    assert main([*arguments, "--max-left-out", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "list.csv: 4 usable (columns file, label)" in said and "missing_video: 3 (4.mp4: " in said
    assert len((output / "left_out.jsonl").read_text().splitlines()) == 3 and len(contents(output)) == 4


def test_class_names_go_through_templates(shards: Path, tmp_path: Path) -> None:
    own = tmp_path / "templates.txt"
    own.write_text("somebody is {}\n\n{} in the open air\n")
    arguments = ["--shards", str(shards), "--output", str(tmp_path / "out"), "--classes", "label.name"]
    assert main([*arguments, "--templates", str(own)]) == 0
    captions = [content["captions"] for content, _ in contents(tmp_path / "out").values()]
    bike, archery = ([text.format(name) for text in ("somebody is {}", "{} in the open air")] for name in
                     ("riding a bike", "archery"))  # fmt: skip
    assert captions == [bike, archery, bike, archery, bike]


def test_a_language_model_describes_each_class_once(shards: Path, tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    OPTForCausalLM(OPTConfig(**TEXT)).save_pretrained(tmp_path / "lm")
    tokenizer().save_pretrained(tmp_path / "lm")
    arguments = ["--shards", str(shards), "--classes", "label.name", "--language-model", str(tmp_path / "lm")]
    for name in ("one", "two"):
        assert main([*arguments, "--device", "cpu", "--output", str(tmp_path / name)]) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two"), "what is drawn is keyed by the class"
    captions = [content["captions"] for content, _ in contents(tmp_path / "one").values()]
    assert captions[0] == captions[2] == captions[4] != captions[1]
    assert all(len(texts) == 3 and all(texts) for texts in captions)


def test_a_list_of_files_becomes_shards(tmp_path: Path) -> None:
    lines = []
    for number in range(3):
        path = tmp_path / "a folder" / f"v.{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(video(number))
        lines.append(f"a folder/v.{number}.mp4 caption {number}")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    corpus = open_corpus(str(tmp_path / "list.txt"))
    assert [captions._files_in_shards(files) for files in (3, 2000, 2001)] == [[3], [1000] * 2, [1000, 1000, 1]]
    with ShardWriter(tmp_path / "made") as writer:
        for number in range(3):
            captions._copy(corpus.sample(number, 0), corpus, lambda ref, members: [f"new {ref.key}"], writer)
    found = contents(tmp_path / "made")
    assert list(found) == [f"00000/a folder/v%2E{number}" for number in range(3)]
    assert found["00000/a folder/v%2E1"][0] == {
        "captions": ["new a folder/v.1.mp4"],
        "label": None,
        "old_captions": ["caption 1"],
    }


def test_two_files_of_one_sample_are_told_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their shard ended each start with a traceback."""
    for name in ("v.mp4", "v.avi"):
        (tmp_path / name).write_bytes(video(0))
    (tmp_path / "list.csv").write_text("file,label\nv.mp4,walk\nv.avi,run\n")
    given = ["--shards", str(tmp_path / "list.csv"), "--output", str(tmp_path / "out"), "--classes", "label"]
    assert main(given) == 2
    assert "'v.mp4' and 'v.avi' would be one sample, v: rename one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--blip2", "{tmp}/nowhere"], ["--blip2", "no config.json", "BLIP-2"]),
        (["--classes", "class"], ["--classes class", "00000/clip0", "caption, label"]),
        (["--classes", "label.name", "--templates", "{tmp}/none"], ["--templates", "no such file"]),
        (["--classes", "label.name", "--task", "2", "--tasks", "2"], ["--task 2", "0 to 1"]),
        (["--blip2", "{tmp}", "--templates", "x"], ["give --classes"]),
    ],
)
def test_a_mistake_is_one_message(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    given = [option.format(tmp=tmp_path) for option in options]
    assert main(["--shards", str(shards), "--output", str(tmp_path / "out"), *given]) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said


def test_a_resumed_start_makes_no_shards_of_other_input(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards are found by their numbers: with one more or less before them, clips were lost or there twice."""
    given, output = tmp_path / "given", tmp_path / "output"
    shutil.copytree(shards, given)
    options = ["--shards", str(given), "--output", str(output), "--classes", "label.name"]
    assert main([*options[:-1], "label"]) == 2, "a mistake before the first shard is none of the output's"
    assert main(options) == 0
    whole = files(output)
    (output / "00001.tar").write_bytes(whole["00001.tar"][:-600])  # cut, as by a copy
    assert main(options) == 0 and files(output) == whole
    (output / "00001.tar").write_bytes(whole["00001.tar"][: len(whole["00001.tar"]) // 2])
    (output / "00001.index.jsonl").unlink()
    assert main(options) == 0 and files(output) == whole
    (templates := tmp_path / "templates.txt").write_text("a {}\n")
    assert main([*options, "--templates", str(templates)]) == 2
    assert "holds shards made otherwise (templates None -> " in capsys.readouterr().err
    shutil.copy(given / "00000.tar", given / "0.tar")
    assert main(options) == 2
    assert "holds shards made otherwise (shards 3 with 5 clips, " in capsys.readouterr().err
    (given / "0.tar").unlink()
    assert main(options) == 0 and files(output) == whole
    with ShardWriter(tmp_path / "others", clips_per_shard=2) as writer:  # as many clips under the same names
        for number in range(5):
            writer.write(f"clip{number}", {"mp4": video(9 + number), "json": {"label": {"name": "dive"}}})
    assert main(["--shards", str(tmp_path / "others"), *options[2:]]) == 2
    assert "holds shards made otherwise (shards 3 with 5 clips, " in capsys.readouterr().err
    for content in ("{", "[]"):
        (output / "made_from.json").write_text(content)
        assert main(options) == 2 and "nothing tells what the shards beside it" in capsys.readouterr().err
    (output / "made_from.json").unlink()
    assert main(options) == 2 and "no made_from.json says what of" in capsys.readouterr().err
    (output / "made_from.json").mkdir()
    assert main(options) == 2 and "nothing tells what the shards beside it" in capsys.readouterr().err


def test_a_resumed_start_goes_by_the_content_of_its_files(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("a {} one\n")
    options = ["--shards", str(shards), "--output", "out", "--classes", "label.name", "--templates"]
    assert main([*options, "t.txt"]) == 0 == main([*options, str(tmp_path / "t.txt")])
    Path("t.txt").write_text("a {} two\n")
    assert main([*options, "t.txt"]) == 2 and "made otherwise (templates " in capsys.readouterr().err
    listed = ["--shards", "l.csv", "--output", "of_list", "--classes", "label"]
    Path("v.MP4").write_bytes(video(0))
    Path("l.csv").write_text("file,label\nv.MP4,bend\n")
    assert main(listed) == 0 == main(listed)
    assert list(contents(tmp_path / "of_list")) == ["00000/v"]
    Path("l.csv").write_text("file,label\nv.MP4,jump\n")
    assert main(listed) == 2 and "made otherwise (shards 1 with 1 clips, " in capsys.readouterr().err


def test_models_of_one_size_are_told_apart_and_their_place_does_not_count(tmp_path: Path) -> None:
    one, two, moved = (tmp_path / name for name in ("one", "two", "moved"))
    for seed, folder in enumerate((one, two)):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(np.random.default_rng(seed).bytes(1000))
    shutil.copytree(one, moved)
    (moved / "README.md").write_text("a card")
    assert rewriting.content_of(one) == rewriting.content_of(moved) != rewriting.content_of(two)


@pytest.mark.parametrize("name", ["t.md", ".t", "t.txt"])
def test_a_file_counts_by_its_content_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a video of {}")
    before = rewriting.content_of(tmp_path / name)
    (tmp_path / name).write_text("a picture with {}")
    assert rewriting.content_of(tmp_path / name) != before


def test_a_start_beside_another_that_is_at_work_may_not_differ(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    options = ["--shards", str(shards), "--output", str(output), "--classes", "label.name"]
    assert main(options) == 0
    for tar in output.glob("*.tar"):
        tar.unlink()
    living = storage.partial_of(output / "00000.tar")
    living.write_bytes(b"")  # of this process
    elsewhere = living.with_name("00001.tar.another-host.1.1.partial")
    elsewhere.write_bytes(b"")
    os.utime(elsewhere, (0, 0))
    (templates := tmp_path / "templates.txt").write_text("a {}\n")
    assert main([*options, "--templates", str(templates)]) == 2
    assert "holds shards made otherwise (templates None -> " in capsys.readouterr().err
    assert elsewhere.exists(), "a refused start removes nothing"
    living.unlink()
    assert main([*options, "--templates", str(templates)]) == 0, "what was left behind is no start at work"


def test_a_file_system_without_hard_links_will_do(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)  # as exFAT does, which cannot be mounted here
    options = ["--shards", str(shards), "--output", str(tmp_path / "out"), "--classes", "label.name"]
    assert main(options) == 0 == main(options)
    assert json.loads((tmp_path / "out" / "made_from.json").read_text())["classes"] == "label.name"
    assert not list((tmp_path / "out").glob("*.partial"))


def test_tasks_that_were_begun_otherwise_are_told_before_any_shard(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--shards", str(shards), "--output", str(tmp_path / "out"), "--classes", "label.name", "--tasks", "2"]
    assert main([*options, "--task", "0"]) == 0
    for file in (tmp_path / "out").glob("0*"):
        file.unlink()
    assert main([*options, "--task", "1", "--beams", "2"]) == 2
    said = capsys.readouterr().err
    assert "was begun otherwise (beams " in said and "start all tasks alike" in said and "made_from.json" in said
    assert main([*options[:-2], "--beams", "2"]) == 0, "alone it begins anew"
