"""1,000 captions, jsons, names and labels that nobody would write, through the places where they enter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fuzzing import TEXT_KINDS, fuzzed_text
from loading import clip_loader
from tars import write_tar

from tgm_scale.contracts import Grid
from tgm_scale.data.building.annotations import captions_of, parse_row
from tgm_scale.data.lists.reading import read_list
from tgm_scale.data.lists.text import fault_of
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.video_list import VideoListCorpus

CASES = 1000
SPAN = {"YoutubeID": "v", "Start_timestamp": "00:00:00.000", "End_timestamp": "00:00:01.000"}


def fuzzed() -> list[bytes]:
    random = np.random.default_rng(0)
    return [fuzzed_text(random, TEXT_KINDS[number % len(TEXT_KINDS)]) for number in range(CASES)]


def test_captions_of_any_bytes_can_be_written_and_said() -> None:
    for data in fuzzed():
        for members in ({"json": data}, {"txt": data}, {"json": b'{"caption": ' + data + b"}"}):
            captions = captions_of(members)
            assert all(caption.strip() == caption and fault_of(caption) is None for caption in captions)
            assert all(caption.encode() for caption in captions)


def test_rows_of_any_bytes_are_rows_or_mistakes() -> None:
    rows = 0
    for data in fuzzed():
        line = json.dumps(SPAN)[:-1].encode() + b', "Caption": ' + data + b"}"
        try:
            row = parse_row(line)
        except ValueError as error:
            assert str(error).encode()
        else:
            rows += bool(row.caption.encode())
    assert 0 < rows < CASES


def test_samples_of_any_names_and_texts_keep_their_place_under_one_name_each(tmp_path: Path) -> None:
    members, cases = [], fuzzed()
    for number, data in enumerate(cases):
        name = data.decode("utf-8", "surrogateescape").replace("\0", "").replace("/", "_").replace(".", "_")[:60]
        members += [(f"{number} {name}.mp4", b"no video"), (f"{number} {name}.json", data)]
    corpus = open_corpus(write_tar(tmp_path / "0.tar", members))
    assert len(corpus) == CASES == len({ref.name for ref in corpus.refs})
    loader = clip_loader(
        [corpus], frames=2, stride=1, size=8, grid=Grid.of(2, 8, 2, 4), seed=0, global_batch_size=CASES,
        micro_batch_size=CASES, rank=0, world_size=1, workers=0, stop_step=1,
    )  # fmt: skip
    _, [batch] = next(iter(loader))
    assert len(set(batch.keys)) == len(set(batch.clip_ids.tolist())) == CASES and not batch.weight.any()
    assert {problem.reason for problem in batch.problems} >= {
        "bad_caption",
        "broken_json",
        "no_caption",
        "not_a_video",
    }
    assert all(json.dumps(vars(problem), ensure_ascii=False).encode() for problem in batch.problems)


def test_lists_of_any_labels_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").touch()
    read = 0
    for number, data in enumerate(fuzzed()):
        for name, text in (("l.txt", b"v.mp4 " + data), ("l.csv", b"file,label\nv.mp4," + data), ("l.json", data)):
            (tmp_path / name).write_bytes(text)
            if name != ("l.txt", "l.csv", "l.json")[number % 3]:
                continue
            try:
                corpus = VideoListCorpus(read_list(tmp_path / name))
            except ValueError as error:
                assert str(error).encode()
            else:
                read += 1
                assert all(label.encode() and fault_of(label) is None for label in corpus.labels.values())
    assert read
