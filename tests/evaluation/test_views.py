"""Views: where they lie in time and space, and that pixels are those of the source."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.video.decode import decode_clip, segments
from tgm_scale.data.video.encode import encode_video
from tgm_scale.evaluation.settings import load_frozen
from tgm_scale.evaluation.views import Decoder, Decoding, Views, decode_views


def ramp(frames: int, height: int, width: int) -> bytes:
    """Grey levels that tell the frame and the column."""
    columns = np.linspace(0, 100, width)[None, None, :, None]
    times = 5.0 * np.arange(frames)[:, None, None, None]
    return encode_video(np.broadcast_to(columns + times, (frames, height, width, 3)).astype(np.uint8), 25)


def test_windows_reach_from_the_first_frame_to_the_last() -> None:
    indices = Views(4, 32, 3, temporal=5).indices(50)
    assert indices[0].tolist() == [0, 3, 6, 9] and indices[-1].tolist() == [40, 43, 46, 49]
    assert np.allclose(np.diff(indices[:, 0]), 10, atol=1)
    assert Views(4, 32, 3).indices(50).tolist() == [[20, 23, 26, 29]]
    assert Views(4, 32, 3, temporal=2).indices(5).tolist() == [[0, 3, 4, 4]] * 2


@pytest.mark.parametrize("count", [16, 17, 50, 1000])
def test_segments_take_one_frame_of_each_part(count: int) -> None:
    two = Views(16, 32, 1, "segments", temporal=2).indices(count)
    for t in range(16):
        part = range(int(t * count / 16), int(np.ceil((t + 1) * count / 16)))
        assert two[0, t] in part and two[1, t] in part and two[0, t] <= two[1, t]
    low, high = segments(count, [0.0] * 16), segments(count, [1 - 1e-9] * 16)
    assert low[0] == 0 and high[-1] == count - 1 and (low <= high).all()


def test_a_source_shorter_than_its_segments_repeats_frames() -> None:
    indices = Views(8, 32, 1, "segments").indices(3)[0]
    assert indices.tolist() == sorted(indices.tolist()) and set(indices.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (32, 32)])
def test_three_squares_go_from_end_to_end_of_the_long_side(shape: tuple[int, int]) -> None:
    squares = Views(2, 32, 1, spatial=3).squares(*shape)
    assert all(square.height == square.width == 32 for square in squares)
    long = [square.left if shape[1] > shape[0] else square.top for square in squares]
    assert long == ([0, 16, 32] if shape[0] != shape[1] else [0, 0, 0])
    assert Views(2, 32, 1).squares(*shape)[0] == squares[1]


def test_pixels_of_each_view_are_those_of_its_frames_and_its_square() -> None:
    data = ramp(20, 32, 64)
    views = decode_views(data, Views(4, 32, 2, temporal=2, spatial=3))
    assert views.shape == (6, 3, 4, 32, 32) and views.dtype == torch.uint8
    whole = torch.from_numpy(decode_clip(data, 20, 1, 0.0).video)
    for v, start in enumerate((0, 13)):
        for s, left in enumerate((0, 16, 32)):
            wanted = whole[[start, start + 2, start + 4, start + 6], :, left : left + 32].permute(3, 0, 1, 2)
            assert torch.equal(views[3 * v + s], wanted)


def test_processes_decode_to_the_same_bits_and_name_what_is_broken(shards: str) -> None:

    corpus = open_corpus(shards)
    refs = [corpus.sample(0, row) for row in range(3)]
    views = Views(4, 32, 2, temporal=2)
    with Decoder(Decoding(views)) as here, Decoder(Decoding(views, workers=1)) as there:
        for one, other in zip(here.decode(corpus, refs), there.decode(corpus, refs)):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    "asked",
    ["frames=100000000000", "frames=4097", "image_size=4104", "temporal_views=1000000"],
)
def test_clips_and_views_that_no_memory_holds_are_refused(asked: str) -> None:
    key, _, value = asked.partition("=")
    most = 1000 if "views" in key else 4096
    with pytest.raises(ValueError, match=rf"encoder\.{key}: found {value}; input should be less .* equal to {most}"):
        load_frozen(None, ["run.dir=x", "encoder.checkpoint=x", "data.test=x", f"encoder.{asked}"])
