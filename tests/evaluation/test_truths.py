"""What people annotated, damaged: the file is named, and what is wrong in it, in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tgm_scale import cli
from tgm_scale.contracts import Grid
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.video.decode import DecodeError
from tgm_scale.data.video.encode import encode_video
from tgm_scale.evaluation.masks.annotated import clips

SHAPE = (4, 32, 48)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("video") / "a.mp4"
    file.write_bytes(encode_video(np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8), 25))
    return file


def read(video: Path, truth: Path) -> int:
    return len(list(clips(video, truth, 1, Sampling(4, 1, 32, Grid(2, 2, 2), seed=0))))


def arrays(**fields: object) -> Callable[[Path], None]:
    return lambda file: np.savez(file, **fields)  # type: ignore[arg-type]


WHOLE = np.packbits(np.ones(SHAPE, bool), axis=-1)
ARRAYS = {
    "no shape": arrays(packed=WHOLE),
    "no packed": arrays(shape=np.array(SHAPE)),
    "floats": arrays(packed=WHOLE.astype(float), shape=np.array(SHAPE)),
    "a shape of floats": arrays(packed=WHOLE, shape=np.array(SHAPE, float)),
    "a shape of one": arrays(packed=WHOLE, shape=np.array(4)),
    "another shape": arrays(packed=WHOLE, shape=np.array((4, 32, 49))),
    "other bytes": arrays(packed=WHOLE[:, :-1], shape=np.array(SHAPE)),
    "zeros without end": arrays(packed=np.zeros((4, 320, 480), np.uint8), shape=np.array(SHAPE)),
    "objects": arrays(packed=np.array([{}], object), shape=np.array(SHAPE)),
    "no archive": lambda file: file.write_bytes(b"text"),
}


def test_whole_truths_pass(video: Path, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.masks.npz", packed=WHOLE, shape=np.array(SHAPE))
    (tmp_path / "a.boxes.json").write_text(json.dumps([[[0, 0.5, 20, 30]], None, [], [[-5, -5, 1000, 9]]]))
    pictures(tmp_path / "a", lambda picture: picture)
    assert [read(video, tmp_path / name) for name in ("a.masks.npz", "a.boxes.json", "a")] == [1, 1, 1]


@pytest.mark.parametrize("kind", ARRAYS)
def test_damaged_masks(video: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.masks.npz"
    ARRAYS[kind](file)
    with pytest.raises(DecodeError, match=r"a\.masks\.npz: ") as caught:
        read(video, file)
    assert len(str(caught.value)) < 400


BOX = [0, 0, 9, 9]
BOXES = [
    "{", "null", "{}", "[]", '"x"', "[" * 100_000, json.dumps([[BOX]] * 3), json.dumps([BOX] * 4),
    json.dumps([[["0", 0, 9, 9]]] * 4), json.dumps([[[0, 0, 9]]] * 4), json.dumps([[{"left": 1}]] * 4),
    "[[[0, 0, NaN, 9]], [], [], []]", "[[[0, 0, 1e999, 9]], [], [], []]", f"[[[0, 0, {10**400}, 9]], [], [], []]",
    "[[[0, 0, true, 9]], [], [], []]", "[[[0, 0, null, 9]], [], [], []]", "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BOXES)))
def test_damaged_boxes(video: Path, tmp_path: Path, number: int) -> None:
    file = tmp_path / "a.boxes.json"
    file.write_text(BOXES[number], errors="surrogateescape")
    with pytest.raises(DecodeError, match=r"a\.boxes\.json: ") as caught:
        read(video, file)
    assert len(str(caught.value)) < 400


def pictures(folder: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    folder.mkdir()
    for t in range(SHAPE[0]):
        change(Image.new("L", (SHAPE[2], SHAPE[1]), 7)).save(folder / f"{t}.png")


def test_damaged_pictures(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    pictures(folder, lambda picture: picture)
    file = folder / "2.png"
    whole = file.read_bytes()
    other = tmp_path / "other.bmp"
    Image.new("L", (SHAPE[2] + 1, SHAPE[1])).save(other)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\n"
    for damaged in (b"", whole[:-30], b"text", postscript, other.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(DecodeError, match=r"2\.png: not a whole picture"):
            read(video, folder)
    file.unlink()
    with pytest.raises(DecodeError, match=r"the truth is \(3, 32, 48\)"):
        read(video, folder)
    for left in folder.iterdir():
        left.unlink()
    with pytest.raises(DecodeError, match=r"the truth is \(0, 32, 48\)"):
        read(video, folder)


@pytest.mark.parametrize("size", [(2 * SHAPE[2], 2 * SHAPE[1]), (SHAPE[2] + 1, SHAPE[1]), (SHAPE[1], SHAPE[2])])
def test_masks_of_another_size_than_the_video_are_named_with_both(
    video: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    """Such as a corpus's own beside videos that were made smaller: one picture, or all."""
    pictures(tmp_path / "all", lambda picture: Image.new("L", size, 7))
    pictures(tmp_path / "one", lambda picture: picture)
    Image.new("L", size, 7).save(tmp_path / "one/2.png")
    np.savez(tmp_path / "a.masks.npz", packed=WHOLE, shape=np.array((SHAPE[0], size[1], size[0])))
    for name in ("all", "one"):
        with pytest.raises(DecodeError, match=rf"a picture of {size[1]} x {size[0]} pixels, wanted 32 x 48"):
            read(video, tmp_path / name)
    with pytest.raises(DecodeError, match=rf"the truth is \(4, {size[1]}, {size[0]}\), the video \(4, 32, 48\)"):
        read(video, tmp_path / "a.masks.npz")


def test_transparency_is_no_object(video: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "a", lambda picture: Image.new("RGBA", picture.size, (0, 0, 0, 255)))
    assert read(video, tmp_path / "a") == 0


@pytest.mark.parametrize("text", ["[]", "null", "", "[" * 9999])
def test_damaged_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str], video: Path, text: str) -> None:
    (tmp_path / "captions.json").write_text(text)
    np.savez(tmp_path / "a.masks.npz", packed=WHOLE, shape=np.array(SHAPE))
    (tmp_path / "a.mp4").write_bytes(video.read_bytes())
    assert (
        cli.main(["masks", "evaluate", "--videos", str(tmp_path), "--captions", str(tmp_path / "captions.json")]) == 2
    )
    said = capsys.readouterr().err
    assert "captions.json: " in said and "Traceback" not in said and len(said) < 500
