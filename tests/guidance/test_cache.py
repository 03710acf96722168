"""Relevance maps as a shard member: what goes in comes out, and only for the towers that made it."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from tgm_scale.guidance.cache import RelevanceCache, UnreadableMaps, fingerprint, pack

MADE_BY = "0123456789abcdef" * 2
SECONDS = np.array([0.0, 0.5, 1.0, 1.5])


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 4, 7, 7)).astype(np.float32)


def test_a_member_gives_the_maps_of_the_nearest_frames(maps: np.ndarray) -> None:
    member = pack(maps, SECONDS, MADE_BY)
    assert len(member) < 2 * maps.size + 500  # float16 and a small head
    out = RelevanceCache(MADE_BY).read(member, 1, np.array([0.0, 0.3, 0.8, 9.0, 0.1]))
    assert out.shape == (5, 7, 7) and out.dtype == np.float32
    np.testing.assert_allclose(out, maps[1][[0, 1, 2, 3, 0]], atol=2e-3)


def test_the_middle_frame_of_a_tubelet_stands_for_it(maps: np.ndarray) -> None:
    """The middle of two is the second, as online (`guidance.frames_per_tubelet=one`)."""
    member, times = pack(maps, SECONDS, MADE_BY), np.array([0.0, 0.5, 1.0, 1.5])
    out = RelevanceCache(MADE_BY, one_of=2).read(member, 0, times)
    np.testing.assert_allclose(out, maps[0][[1, 1, 3, 3]], atol=2e-3)
    assert not np.array_equal(out, RelevanceCache(MADE_BY).read(member, 0, times))
    np.testing.assert_allclose(RelevanceCache(MADE_BY, one_of=4).read(member, 0, times), maps[0][[2] * 4], atol=2e-3)


def test_maps_of_other_towers_stop_the_run_with_a_remedy(maps: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"made with other towers or settings .*guidance.scorer"):
        RelevanceCache("f" * 32).read(pack(maps, SECONDS, MADE_BY), 0, SECONDS)


def test_the_fingerprint_follows_the_files_and_the_settings(clip: Path) -> None:
    first = fingerprint(clip, "value", None)
    assert len(first) == 32 and fingerprint(str(clip), "value", None) == first
    others = {fingerprint(clip, "raw", None), fingerprint(clip, "value", 96)}
    weights = clip / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    others.add(fingerprint(clip, "value", None))
    assert len(others) == 3 and first not in others
    (clip / "README.md").write_text("a note")
    assert fingerprint(clip, "value", None) in others


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_broken_members_are_told_apart_and_never_unpickled(maps: np.ndarray, tmp_path: Path) -> None:
    member = pack(maps, SECONDS, MADE_BY)
    trap = np.empty(1, dtype=object)
    trap[0] = Harmful(tmp_path / "touched")
    pickled = io.BytesIO()
    np.save(pickled, trap, allow_pickle=True)
    assert pickle.dumps(trap)  # the trap is armed
    plain = io.BytesIO()
    np.save(plain, maps)
    spoilt = pack(np.full((2, 4, 7, 7), np.nan), SECONDS, MADE_BY)
    for broken in (b"", member[:100], member[:-1], b"text" * 100, pickled.getvalue(), plain.getvalue(), spoilt):
        with pytest.raises(UnreadableMaps, match=r"tgm.npy: "):
            RelevanceCache(MADE_BY).read(broken, 0, SECONDS)
    with pytest.raises(UnreadableMaps):
        RelevanceCache(MADE_BY).read(member, 2, SECONDS)  # a caption that was not scored
    assert not (tmp_path / "touched").exists()


def record(maps: np.ndarray, seconds: np.ndarray, made_by: object = MADE_BY.encode()) -> bytes:
    """A member as `pack` writes it, of any kinds and shapes."""
    kinds = [("fingerprint", np.asarray(made_by).dtype), ("seconds", seconds.dtype, seconds.shape)]
    stream = io.BytesIO()
    np.save(stream, np.array((made_by, seconds, maps), dtype=[*kinds, ("maps", maps.dtype, maps.shape)]))
    return stream.getvalue()


FLAT = np.zeros((2, 4, 7, 7), np.float16)
ODD = {
    "rank 3": (FLAT[0], SECONDS),
    "rank 2": (FLAT[0, 0], SECONDS),
    "rank 5": (FLAT[None], SECONDS),
    "a side of 0": (FLAT[..., :0], SECONDS),
    "no times": (FLAT[:, :0], SECONDS[:0]),
    "other times": (FLAT, SECONDS[:2]),
    "texts": (FLAT.astype("S4"), SECONDS),
    "whole numbers": (FLAT.astype(int), SECONDS),
    "complex": (FLAT.astype(complex), SECONDS),
    "NaN times": (FLAT, SECONDS * np.nan),
    "a number for a fingerprint": (FLAT, SECONDS, 7),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_record_of_another_form_is_bad_data_of_one_sample(kind: str) -> None:
    assert RelevanceCache(MADE_BY).read(record(FLAT, SECONDS), 0, SECONDS).shape == (4, 7, 7)
    with pytest.raises(UnreadableMaps):
        RelevanceCache(MADE_BY).read(record(*ODD[kind]), 0, SECONDS)
