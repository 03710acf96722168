"""A preview as its users run it: the page, its figures against the library's, and what is refused."""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import THEMES, browsed
from PIL import Image

from tgm_scale import cli
from tgm_scale.assembly.run_plan import recipe_masker
from tgm_scale.commands.command import part_names
from tgm_scale.commands.pages import PREVIEW
from tgm_scale.config import Config
from tgm_scale.contracts import Batch, BatchLayout
from tgm_scale.conversion.convert import convert
from tgm_scale.conversion.key_maps import ModelMetadata
from tgm_scale.conversion.weights import Weights, encoder_of
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.guidance.maps import Relevance
from tgm_scale.guidance.towers import SMALL_TOWERS, load_image_tower, load_text_tower
from tgm_scale.masking import recipes
from tgm_scale.masking.diagnostics import GuidanceMonitor, overlap
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import SIZES, ModelOptions
from tgm_scale.preview.clips import sampling_of
from tgm_scale.preview.settings import resolve
from tgm_scale.report.reconstruct import reconstruct
from tgm_scale.report.render import contact_sheet, slot_frames

CLIPS = 12
SMALL = ["data.frames=8", "data.stride=1", "data.size=64", "model.size=tiny"]


class Page(HTMLParser):
    """What a browser would load, the headings, the tables and the texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.captions: list[str] = []
        self.text = ""
        self._in: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        self._in.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in ("h1", "h2"):
            self.headings.append("")
        elif tag == "figcaption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag = self._in[-1] if self._in else ""
        if tag != "style":
            self.text += data
        for where, texts in (("td", self.rows and self.rows[-1]), ("th", self.rows and self.rows[-1]),
                             ("h1", self.headings), ("h2", self.headings), ("figcaption", self.captions)):  # fmt: skip
            if tag == where and texts:
                texts[-1] += data

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(one.partition("base64,")[2]) for one in self.addresses]

    def row(self, label: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == label and len(row) > 2)


def run(*words: str | Path) -> int:
    return cli.main(["preview", *map(str, words)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "synthetic"
    make_corpus(folder, CLIPS, SyntheticSpec(seed=5))
    return folder


@pytest.fixture(scope="module")
def options(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    file = tmp_path_factory.mktemp("page") / "page.html"
    return [f"data.shards={corpus}", "guidance.towers=small", *SMALL, "--output", str(file)]


@pytest.fixture(scope="module")
def page(options: list[str]) -> Page:
    assert run(*options) == 0
    file = Path(options[-1])
    assert file.stat().st_size < 5e6
    return Page(file.read_text())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files: two with a text beside them, one in captions.json, one without a caption, one broken."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(["a", "b", "c", "mute", "broken"]):
        frames = np.random.default_rng(number).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
        (folder / f"{name}.mp4").write_bytes(encode_video(frames, 12))
    (folder / "broken.mp4").write_bytes((folder / "broken.mp4").read_bytes()[:900])
    for name in ("a", "b", "broken"):
        (folder / f"{name}.txt").write_text(f"noise called {name}")
    (folder / "captions.json").write_text(json.dumps({"c": "<b>the \u202ethird</b>", "b": "not this one"}))
    return folder


def parsed(words: Sequence[str | Path]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    PREVIEW.add_arguments(parser)
    found = parser.parse_intermixed_args(given := [str(word) for word in words])
    found.given = given
    part_names(found, {"recipes": []} if found.recipes else {})
    return found


def first_batch(config: Config, corpus: Path) -> Batch:
    """What a run of this configuration begins with."""
    samples = Samples.in_order([open_corpus(corpus)], sampling_of(config, {"relevance", "motion"}, True))
    [(_, [batch])] = ClipLoader(samples, BatchLayout(CLIPS, CLIPS), range(1), workers=0)
    return batch


@pytest.mark.parametrize("theme", THEMES)
def test_a_browser_shows_it_wide_and_narrow_without_an_error(
    page: Page, options: list[str], tmp_path: Path, theme: int
) -> None:
    looks, console = browsed(tmp_path, Path(options[-1]).read_text(), theme)
    assert [one["width"] for one in looks] == [1280, 400] and console == ""
    for one in looks:
        assert one["wide"] == one["width"] and one["fetched"] == [] and one["paper"] == THEMES[theme]
        assert len(one["pictures"]) == len(page.pictures) and min(one["pictures"]) >= 160, "all of them are drawn"


def test_the_page_asks_for_nothing_and_shows_every_clip(page: Page, options: list[str], corpus: Path) -> None:
    assert not {"script", "link", "iframe", "object", "video"} & set(page.tags)
    assert all(address.startswith("data:image/webp;base64,") for address in page.addresses)
    assert "http" not in page.text and "url(" not in Path(options[-1]).read_text()
    ways = ["text_guided (raw)", "text_guided (value)", "text_guided (vv)", "motion_guided", "tube"]
    of_a_clip = ["the clip", "relevance, scorer raw", "relevance, scorer value", "relevance, scorer vv", *ways]
    assert page.captions == of_a_clip * CLIPS == of_a_clip * (len(page.pictures) // len(of_a_clip))
    assert {Image.open(io.BytesIO(one)).size for one in page.pictures} == {(658, 160), (658, 326)}
    batch = first_batch(resolve(parsed(options)).config, corpus)
    assert page.headings[-CLIPS - 1 : -1] == batch.keys, "the clips with which a run begins, in its order"
    assert all(f"“{caption}”" in page.text for caption in batch.captions)


def test_the_figures_are_those_of_the_library(page: Page, options: list[str], corpus: Path) -> None:
    config = resolve(parsed(options)).config
    batch, masker = first_batch(config, corpus), recipe_masker(config, "text_guided")
    texts_BE = load_text_tower(SMALL_TOWERS).encode(batch.captions)
    image = load_image_tower(SMALL_TOWERS)
    different = torch.tensor([[one != other for other in batch.captions] for one in batch.captions])
    for scorer in ("raw", "value", "vv"):
        asked_BKE = texts_BE.expand(CLIPS, *texts_BE.shape)
        answers_BKSRC = Relevance(image, scorer).of_captions(batch.video, asked_BKE, masker.grid)
        own_BSRC = answers_BKSRC[torch.arange(CLIPS), torch.arange(CLIPS)]
        monitor = GuidanceMonitor(masker)
        monitor.observe(batch.seeds, batch.weight, torch.arange(CLIPS), own_BSRC)
        figures = monitor.metrics()
        hidden = masker.hidden(batch.seeds, relevance=own_BSRC)
        swapped = torch.zeros(CLIPS)
        for k in range(CLIPS):
            of_k = overlap(hidden, masker.hidden(batch.seeds, relevance=answers_BKSRC[:, k]))
            swapped += of_k * different[:, k]
        swapped /= different.sum(1)
        row = page.row(f"text_guided ({scorer})")
        assert row[1] == f"{masker.hidden_count / masker.grid.tokens:.1%}"
        means = [float(swapped.double().mean()), figures["mask_centre_overlap"], figures["mask_slot_repeat"]]
        assert [cell.split("\u00a0")[0] for cell in row[2:5]] == [f"{mean:.1%}" for mean in means]
        inside = (answers_BKSRC[0, 0].double() * hidden[0]).sum() / hidden[0].sum()
        assert inside > answers_BKSRC[0, 0].double().mean()
    tube = recipe_masker(config, "tube").hidden(batch.seeds)
    assert page.row("tube")[2] == "-" and page.row("tube")[4].startswith("100.0%")
    centre = overlap(tube, GuidanceMonitor(recipe_masker(config, "tube")).box.expand(tube.shape)).double().mean()
    assert page.row("tube")[3].startswith(f"{float(centre):.1%}\u00a0")


def test_a_tower_that_knows_the_clips_is_told_from_one_that_does_not(
    page: Page, corpus: Path, towers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The packaged CLIP on synthetic clips, and random weights: captions change the masks of both, and only those of
    the first towards what they say."""
    for scorer in ("raw", "value"):
        row = page.row(f"text_guided ({scorer})")
        swapped, chance = (float(cell.split("%")[0]) for cell in (row[2], row[1]))
        assert swapped < chance + 0.5 * (100 - chance) and float(row[-2].rstrip("%")) > 95 and row[-1] == "0.0005*"
    assert page.row("tube")[-1].count("*") == 0
    assert "* passes: p is at most 0.0100, 0.05 over the 5 lines of the table." in page.text
    assert "(raw) tells these captions apart best" in page.text and "comes with the package" not in page.text
    file = tmp_path / "random.html"
    assert (
        run(f"data.shards={corpus}", f"guidance.towers={towers}", *SMALL, "--recipes", "text_guided", "--output", file)
        == 0
    )
    random = Page(file.read_text())
    for scorer in ("raw", "value", "vv"):
        assert float(random.row(f"text_guided ({scorer})")[-1]) > 0.01
    said = f"guidance.towers={towers} knows nothing of these {CLIPS} clips"
    assert said in random.text and said in capsys.readouterr().out


def test_a_folder_of_videos(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    assert run(f"data.shards={videos}", "guidance.towers=small", *SMALL, "--output", file) == 0
    page, printed = Page(file.read_text()), capsys.readouterr()
    assert {"a.mp4", "b.mp4", "c.mp4"} < set(page.headings)
    assert "“noise called b”" in page.text and "“<b>the \\u202ethird</b>”" in page.text, "shown as text"
    for name, reason in (("mute.mp4", "no_caption"), ("broken.mp4", "truncated")):
        assert any(row[:2] == [name, reason] for row in page.rows), page.rows
        assert f"left out: {name}: {reason}: " in printed.err
    assert "mute.mp4: no_caption: no usable one in a .txt or .json beside it" in printed.err
    assert "is the CLIP that comes with the package" in page.text and "is the CLIP that comes" in printed.out
    assert "3 clips" in printed.out and len(page.rows) > 6


def test_a_clip_that_a_list_gives_no_caption_is_named_with_its_line(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("file,caption\na.mp4,noise\nb.mp4,\nc.mp4,noise\n")
    corpus = [f"data.shards={listed}", f"data.root={videos}", "guidance.towers=small"]
    assert run(*corpus, *SMALL, "--output", tmp_path / "page.html") == 0
    assert f"left out: b.mp4: no_caption: {listed} line 3" in capsys.readouterr().err


def test_clips_by_name_in_their_order(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.shards={videos}", *SMALL, "--recipes", "tube", "--output", tmp_path / "page.html"]
    assert run(*words, "--keys", "mute.mp4,c") == 0
    page = Page((tmp_path / "page.html").read_text())
    assert page.headings[-3:-1] == ["mute.mp4", "c.mp4"] and "No caption." in page.text
    assert "too few" not in page.text and "No caption has a say in these recipes" in page.text
    assert run(*words, "--keys", "d.mp4") == 2
    assert "--keys d.mp4: is the name of no sample; names are such as " in capsys.readouterr().err


def test_without_captions_the_recipes_that_need_none_are_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mute.mp4").write_bytes((videos / "mute.mp4").read_bytes())
    words = [f"data.shards={tmp_path}", *SMALL, "guidance.towers=small", "--output", tmp_path / "page.html"]
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert "none of 1 samples looked at has a caption" in told and "--recipes tube motion_guided" in told
    assert not (tmp_path / "page.html").exists()
    assert run(*words, "--recipes", "tube", "motion_guided") == 0
    assert run(*words[:-1], tmp_path / "p2.html", "--keys", "mute.mp4") == 2


@pytest.fixture(scope="module")
def checkpoint(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a run's weights with its configuration."""
    size, folder = SIZES["tiny"], tmp_path_factory.mktemp("checkpoint")
    config = {
        "data": {"shards": str(corpus), "frames": 8, "stride": 1, "size": 64, "synthetic": {"clips": 3}, "gone": 1},
        "guidance": {"towers": "small", "scorer": "raw"},
        "masking": {"recipe": "text_guided", "mask_ratio": 0.75},
        "model": {"size": "tiny"},
        "objective": {"normalise_by": "clip"},
        "section_of_another_version": {},
    }
    state = MaskedVideoAutoencoder(size, 8, 64, options=ModelOptions("sdpa"), seed=1).state_dict()
    stated = ModelMetadata(size.heads, size.decoder_heads, 8, 64, None, config)
    weights = Weights.of("pretraining", state, stated, [])
    convert(weights, folder / "model.safetensors", "safetensors")
    convert(encoder_of(weights), folder / "encoder.safetensors", "safetensors")
    return folder


def test_a_checkpoint_brings_its_data_and_reconstructs(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    file = checkpoint / "model.safetensors"
    words = ["--checkpoint", file, "--clips", "3", "--recipes", "text_guided,tube", "--output", tmp_path / "page.html"]
    assert run(*words) == 0
    page = Page((tmp_path / "page.html").read_text())
    last = "reconstruction under text_guided (raw), with brightness and contrast of visible patches alone"
    assert page.captions.count(last) == 3 and page.row("tube")[1].startswith("7")
    settings = resolve(parsed(words))
    batch, masker = first_batch(settings.config, corpus), recipe_masker(settings.config, "text_guided")
    text = load_text_tower(SMALL_TOWERS).encode(batch.captions[:1])
    relevance = Relevance(load_image_tower(SMALL_TOWERS), "raw")(batch.video[:1], text, masker.grid)
    mask = masker(batch.seeds[:1], relevance=relevance)
    model = MaskedVideoAutoencoder(SIZES["tiny"], 8, 64, options=ModelOptions("sdpa"), seed=1).eval()
    completed = reconstruct(model, batch.video[:1].contiguous(), mask, "clip")[0]
    drawn = page.pictures[page.captions.index(last)]
    assert drawn == contact_sheet([slot_frames(completed, masker.grid.slots)])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", ["text_guided", "motion_guided", "tube"]),
        ("masking.recipe=block", ["block", "text_guided", "motion_guided", "tube"]),
        ("masking.recipe=tube guidance.towers=null", ["tube", "motion_guided"]),
        ("--recipes random,tube random", ["random", "tube"]),
        ("--recipes all", [name for name in recipes.RECIPES if name not in ("adamae", "automae")]),
    ],
)
def test_a_run_brings_its_own_recipe(words: str, names: list[str], checkpoint: Path, tmp_path: Path) -> None:
    given = [*words.split(), "--checkpoint", checkpoint / "model.safetensors", "--output", tmp_path / "page.html"]
    settings = resolve(parsed(given))
    assert [masker.name for masker in settings.maskers] == names
    assert settings.config.data.synthetic is None and settings.normalise_by == "clip"


@pytest.mark.parametrize("command", ["preview --output page.html", "masks evaluate --videos x"])
def test_of_two_checkpoints_none_is_left_out_in_silence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--checkpoint", "runs/a", "--checkpoint", "runs/b"])
    assert stopped.value.code == 2
    assert "argument --checkpoint: given twice, runs/a and runs/b: wanted one\n" in capsys.readouterr().err


def test_what_is_not_as_in_the_run_is_said_on_the_page_and_printed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint / "model.safetensors"
    words = ["--checkpoint", file, "--clips", "2", "--recipes", "tube", "--output", tmp_path / "page.html"]
    assert run(*words) == 0
    assert "Not as in the run" not in capsys.readouterr().out + (tmp_path / "page.html").read_text()
    assert run(*words, "masking.mask_ratio=0.5") == 0
    said = f"Not as in the run of {file}, since the command line wins over it: masking.mask_ratio=0.5 (there 0.75)."
    assert said in capsys.readouterr().out and said in Page((tmp_path / "page.html").read_text()).text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--checkpoint {0}/model.safetensors data.size=32", r"a model of 8 frames of 64 pixels.* of 8 frames of 32"),
        (
            "--checkpoint {0}/model.safetensors model.patch=16",
            r"tokens of 2 x 8 x 8.*tokens of 2 x 16 x 16.*leave out",
        ),
        ("--checkpoint {0}/encoder.safetensors", r"encoder weights, without a decoder"),
        ("--checkpoint {0}/none", r"--checkpoint .*none"),
        ("guidance.towers=small", r"data\.shards"),
        ("data.shards={0} guidance.towers=small --clips 101", r"--clips 101: wanted at most 100"),
        ("data.shards={0}", r"text_guided is guided by a frozen model"),
        ("data.shards={0}/nowhere guidance.towers=small", r"data\.shards=.*nowhere: no such file or folder"),
        ("data.shards={0} --recipes tubes", r"masking\.recipe=tubes: unknown; did you mean tube"),
        ("data.shards={0} --recipes tube --output {0}", r"--output .*: a folder; wanted a file's name"),
        (
            "data.shards={0} --recipes tube --output {0}/model.safetensors",
            r"no HTML page: name another",
        ),
        ("data.shards={0} --recipes tube --output {0}/no/page.html", r"--output .*its folder is not there"),
        ("data.shards={0} --recipes tube data.frame=8", r"data\.frame"),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(
    words: str, told: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [] if "--output" in words else ["--output", str(tmp_path / "page.html")]
    assert run(*words.format(checkpoint).split(), *output) == 2
    said = capsys.readouterr()
    assert re.search(told, said.err, re.DOTALL), said.err
    assert said.out == "" and not list(tmp_path.iterdir())
