"""The loader: the same clips whatever the world size, the workers and the first step; nothing broken is lost."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Lock
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loaded import BROKEN, CLIPS, by_global_slot, by_step, load, rows, write_corpus
from PIL import Image

from tgm_scale.data.loading.loader import PREFETCH
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.to_device import SharedBatches
from tgm_scale.data.loading.workers import _fetched, _WorkerPool
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.runtime import seeding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 clips in 5 shards, 4 of them broken."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "shards", CLIPS)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return open_corpus(str(folder))


@pytest.mark.parametrize("repeats", [1, 2, 4])
@pytest.mark.parametrize(("micro", "world"), [(4, 1), (8, 2), (4, 2), (4, 4), (8, 1)])
def test_clips_do_not_depend_on_the_layout(corpus: Corpus, repeats: int, micro: int, world: int) -> None:
    assert by_global_slot([corpus], micro, world, repeated_augmentation=repeats) == by_global_slot(
        [corpus], 16, 1, repeated_augmentation=repeats
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_hand_over_the_same_in_order(corpus: Corpus, workers: int) -> None:
    changes: dict[str, Any] = {"micro_batch_size": 4, "repeated_augmentation": 2, "world_size": 2, "rank": 1}
    assert by_step(load([corpus], workers=workers, **changes)) == by_step(load([corpus], **changes))


def test_resume_continues_as_if_never_stopped(corpus: Corpus) -> None:
    whole = by_step(load([corpus], stop_step=5))
    for start in range(5):
        tail = by_step(load([corpus], start_step=start, stop_step=5))
        assert tail == {step: whole[step] for step in range(start, 5)}


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_positions_are_dealt_out_once_and_to_all_ranks_alike(corpus: Corpus, data: st.DataObject) -> None:
    """Fewer samples than a global batch, epochs that end inside one, 1 to 8 ranks, accumulation, repeats, resume."""
    world, repeats = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([1, 2, 4]))
    micro, accumulation = repeats * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    start, steps = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 4))
    size = micro * world * accumulation
    dealt = []
    for rank in range(world):
        loader = load(
            [corpus],
            global_batch_size=size,
            micro_batch_size=micro,
            world_size=world,
            rank=rank,
            repeated_augmentation=repeats,
            start_step=start,
            stop_step=start + steps,
        )
        dealt.append(list(loader.positions()))
    assert len({len(positions) for positions in dealt}) == 1
    a_step = size // repeats
    assert sorted(position for positions in dealt for position in positions) == list(
        range(start * a_step, (start + steps) * a_step)
    )
    for rank, positions in enumerate(dealt):
        for number, position in enumerate(positions):
            micro_step, slot = divmod(number * repeats, micro)
            step, micro_step = divmod(micro_step, accumulation)
            global_slot = micro_step * micro * world + rank * micro + slot
            assert position == (start + step) * a_step + global_slot // repeats


def test_an_epoch_holds_each_sample_once_and_the_next_draws_anew(corpus: Corpus) -> None:
    clips = [row for step in by_global_slot([corpus], 16, 1, stop_step=6).values() for row in step]
    first, second = clips[:CLIPS], clips[CLIPS : 2 * CLIPS]
    assert len({row[0] for row in first}) == len({row[0] for row in second}) == CLIPS
    by_key = {row[0]: row for row in first}
    assert [row[0] for row in first] != [row[0] for row in second]
    whole = [row for row in second if row[3] == 1]
    assert all(by_key[row[0]][2] != row[2] and by_key[row[0]][4] == row[4] for row in second)
    assert any(by_key[row[0]][1] != row[1] for row in whole) and any(by_key[row[0]][5] != row[5] for row in whole)


def test_a_batch_larger_than_the_corpus_runs_through_epochs(tmp_path: Path) -> None:
    small = open_corpus(str(write_corpus(tmp_path / "small", 3)))
    [(_, [batch])] = list(load([small], stop_step=1))
    assert sorted(Counter(batch.keys).values()) == [5, 5, 6]
    assert len(set(batch.seeds.tolist())) == 16
    assert len(set(batch.clip_ids.tolist())) == 3


def test_all_that_is_random_is_keyed_by_the_sample(corpus: Corpus) -> None:
    [(_, [batch])] = list(load([corpus], stop_step=1, repeated_augmentation=2))
    for slot, key in enumerate(batch.keys):
        seed = seeding.key(7, "sample", 0, corpus.fingerprint, key, slot % 2)
        assert int(batch.seeds[slot]) == seed
        if batch.weight[slot]:
            number = int(key[-2:])
            assert batch.captions[slot] == f"{'abc'[int(3 * seeding.draw(seed, 'caption')[0])]} of {number}"


def test_repeats_share_a_window_and_draw_their_own_crops(corpus: Corpus) -> None:
    crops, captions = set(), set()
    for _, [batch] in load([corpus], repeated_augmentation=4, stop_step=3):
        for first in range(0, 16, 4):
            repeats = slice(first, first + 4)
            assert len(set(batch.keys[repeats])) == len(set(batch.clip_ids[repeats].tolist())) == 1
            assert len(set(batch.starts[repeats].tolist())) == 1
            assert len(set(batch.seeds[repeats].tolist())) == 4
            crops.add(len({tuple(crop) for crop in batch.crops[repeats].tolist()}))
            captions.add(len(set(batch.captions[repeats])))
    assert max(crops) == 4 and max(captions) > 1


def test_broken_samples_keep_their_places(corpus: Corpus) -> None:
    problems: dict[str, str] = {}
    for _, [batch] in load([corpus], stop_step=2, relevance=read_plain):
        assert batch.video.shape == (16, 3, 4, 8, 8) and batch.video.dtype == torch.uint8
        named = {problem.key: problem for problem in batch.problems}
        for slot, key in enumerate(batch.keys):
            assert (batch.weight[slot] == 0) == (key in named) == (key[-3:] in BROKEN)
            if key in named:
                assert not batch.video[slot].any() and batch.captions[slot] == ""
            else:
                assert batch.video[slot].any() and batch.captions[slot]
        problems |= {key[-3:]: problem.reason for key, problem in named.items()}
    assert problems == BROKEN


def test_without_captions_none_is_missed(corpus: Corpus) -> None:
    reasons = {
        problem.reason for _, [batch] in load([corpus], captions=False, stop_step=2) for problem in batch.problems
    }
    assert reasons == set(BROKEN.values()) - {"no_caption"}


def read_plain(member: bytes, caption: int, seconds_T: np.ndarray) -> np.ndarray:
    """A reader of members that hold one map for each third of a second, the same for all captions."""
    maps = np.load(io.BytesIO(member), allow_pickle=False)
    return maps[np.minimum((seconds_T * 3).astype(int), len(maps) - 1)] + 100 * caption


class Unreadable(Exception):
    pass


def read_broken(member: bytes, caption: int, seconds_T: np.ndarray) -> np.ndarray:
    raise Unreadable("not a record")


def read_foreign(member: bytes, caption: int, seconds_T: np.ndarray) -> np.ndarray:
    raise ValueError("made with other towers")


def test_cached_relevance_goes_through_the_clips_crop(corpus: Corpus) -> None:
    """Against Pillow, which resizes a box of an image."""
    for _, [batch] in load([corpus], relevance=read_plain, stop_step=2, repeated_augmentation=2):
        assert batch.relevance is not None and batch.relevance.shape == (16, 2, 2, 2)
        for slot, key in enumerate(batch.keys):
            number = int(key[-2:])
            if not batch.weight[slot]:
                assert not batch.relevance[slot].any()
                continue
            last = (6 + number % 7 - 1) / 25
            seconds = np.minimum(round(float(batch.starts[slot]), 6) + np.arange(4) * 2 / 25, last)
            member = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5) + number
            maps = member[(seconds * 3).astype(int)] + 100 * "abc".index(batch.captions[slot][0])
            top, left, height, width, flip = batch.crops[slot].tolist()
            box = (left / 20 * 5, top / 16 * 4, (left + width) / 20 * 5, (top + height) / 16 * 4)
            for slots, frames in zip(batch.relevance[slot], maps.reshape(2, 2, 4, 5).mean(1)):
                resized = np.asarray(Image.fromarray(frames).resize((2, 2), Image.Resampling.BILINEAR, box=box))
                assert np.allclose(slots, resized[:, ::-1] if flip else resized, atol=1e-3)


@pytest.mark.parametrize("workers", [0, 1])
def test_relevance_that_cannot_be_read_is_a_problem_and_a_foreign_one_a_stop(corpus: Corpus, workers: int) -> None:
    [(_, [batch])] = list(load([corpus], relevance=read_broken, stop_step=1, workers=workers))
    assert not batch.weight.any()
    assert {problem.reason for problem in batch.problems} <= {"bad_relevance", *BROKEN.values()}
    with pytest.raises(ValueError, match="other towers"):
        list(load([corpus], relevance=read_foreign, stop_step=2, workers=workers))


def test_corpora_are_mixed_by_weight_each_with_its_own_order(tmp_path: Path, corpus: Corpus) -> None:
    other = open_corpus(str(write_corpus(tmp_path / "other", 2)))
    mixed = [row for step in by_global_slot([corpus, other], 16, 1, weights=[3, 1]).values() for row in step]
    alone = [row for step in by_global_slot([corpus], 12, 1, global_batch_size=12).values() for row in step]
    ids = {row[4] for row in by_global_slot([other], 16, 1)[0]}
    assert [row for row in mixed if row[4] not in ids] == alone
    assert sum(row[4] in ids for row in mixed) == len(mixed) / 4


def test_a_corpus_that_moves_is_the_same_run(folder: Path, corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert by_step(load([open_corpus(str(tmp_path / "elsewhere"))])) == by_step(load([corpus]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_stops_the_run_by_name(folder: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(folder, tmp_path / "shards")
    loader = load([open_corpus(str(tmp_path / "shards"))], workers=workers)
    (tmp_path / "shards" / "00002.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002\.tar"):
        list(loader)


def workers_since(before: set[BaseProcess]) -> set[BaseProcess]:
    return set(multiprocessing.active_children()) - before


def test_a_killed_worker_stops_the_run_within_seconds(corpus: Corpus) -> None:
    before = set(multiprocessing.active_children())
    clips = iter(load([corpus], workers=2, stop_step=10**6))
    next(clips)
    workers = workers_since(before)
    for worker in workers:
        os.kill(worker.pid or 0, signal.SIGUSR1)  # as a scheduler does to all processes: not theirs to answer
        os.kill(worker.pid or 0, signal.SIGTERM)  # as it does, too
        os.kill(worker.pid or 0, signal.SIGINT)  # as a terminal does
        os.kill(worker.pid or 0, signal.SIGHUP)  # as one that is closed does
    for _ in range(4):
        next(clips)
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    os.kill(workers.pop().pid or 0, signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(RuntimeError, match=r"a data worker died \(exit code -9.*data.workers"):
        for _ in range(100):
            next(clips)
    assert time.monotonic() - killed < 20


def test_workers_end_with_the_loader(corpus: Corpus) -> None:
    before = set(multiprocessing.active_children())
    clips = iter(load([corpus], workers=2, stop_step=10**6))
    next(clips)
    workers = workers_since(before)
    assert len(workers) == 2
    clips.close()  # type: ignore[attr-defined]
    assert not any(worker.is_alive() for worker in workers)


def test_sizes_that_do_not_divide_are_told_with_a_remedy(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"global_batch_size=16 .*micro_batch_size=4 x 3 processes"):
        load([corpus], micro_batch_size=4, world_size=3)
    with pytest.raises(ValueError, match=r"micro_batch_size=4 .*repeated_augmentation=3"):
        load([corpus], micro_batch_size=4, repeated_augmentation=3)


def test_the_run_s_own_random_numbers_are_left_alone(corpus: Corpus) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    list(load([corpus], workers=1, stop_step=1))
    assert torch.equal(torch.rand(4), expected)


ORPHANS = """
import multiprocessing, os, signal, sys
from loaded import load
from tgm_scale.data.shards.opening import open_corpus

if __name__ == "__main__":
    clips = iter(load([open_corpus(sys.argv[1])], workers=2, stop_step=10**6))
    next(clips)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_trainer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "orphans.py"), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    workers = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(workers) == 2
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "workers outlived their trainer"
        time.sleep(0.1)


UNFINISHED = """
import sys
from loaded import load
from tgm_scale.data.shards.opening import open_corpus

if __name__ == "__main__":
    clips = iter(load([open_corpus(sys.argv[1])], workers=2, stop_step=10**6))
    next(clips)
    print("read", flush=True)
"""


def test_workers_start_below_a_long_folder_and_end_with_the_interpreter(folder: Path, tmp_path: Path) -> None:
    """The path of a socket has at most 107 bytes; and who leaves the loader open does not wait for its workers."""
    long = tmp_path / ("temporary-" * 9) / ("files-" * 9)
    long.mkdir(parents=True)
    (tmp_path / "unfinished.py").write_text(UNFINISHED)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "unfinished.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(long)},
    )
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


def test_a_batch_that_is_held_keeps_its_pixels_and_others_memory_is_used_again(corpus: Corpus) -> None:
    expected = by_step(load([corpus], stop_step=12))
    held = [batch for _, [batch] in load([corpus], workers=2, stop_step=12)]
    assert [[rows(batch)] for batch in held] == list(expected.values())
    places = set()
    for _, [batch] in load([corpus], workers=2, stop_step=12):
        places.add(batch.video.data_ptr())
    assert len(places) <= 4  # the one in hand, the last one, and two that 8 samples ahead can touch


@pytest.mark.parametrize(("micro", "workers"), [(16, 1), (4, 1), (4, 6)])
def test_workers_have_a_whole_step_to_do_while_one_is_computed(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, micro: int, workers: int
) -> None:
    asked = []
    ask = _WorkerPool.ask
    monkeypatch.setattr(_WorkerPool, "ask", lambda crew, task: asked.append(task.number) or ask(crew, task))
    steps = iter(load([corpus], micro_batch_size=micro, workers=workers, stop_step=10))
    next(steps)
    assert len(asked) == 16 + max(16, workers * PREFETCH)
    steps.close()  # type: ignore[attr-defined]


def test_shared_memory_is_taken_again_when_no_tensor_of_it_is_left() -> None:
    memory = SharedBatches((2, 3))
    place, pixels = memory.take()
    view = pixels[1, 1:]
    del pixels
    assert memory.take()[0] != place, "a view of it is still there"
    memory.pixels(place)[:] = 7
    assert view.tolist() == [7, 7]
    del view
    assert memory.take()[0] == place


def test_pixels_do_not_go_through_dev_shm(corpus: Corpus) -> None:
    before = set(os.listdir("/dev/shm"))
    clips = iter(load([corpus], workers=2, stop_step=10**6))
    next(clips)
    assert set(os.listdir("/dev/shm")) - before <= {name for name in os.listdir("/dev/shm") if name.startswith("sem.")}


def test_a_thread_of_a_worker_that_dies_ends_the_worker() -> None:
    """Else the others go on, or nobody does, and the training waits for ever."""
    tasks, asking = multiprocessing.Pipe(duplex=False)
    asking.send_bytes(b"no task")
    remote = cast(Samples, SimpleNamespace(remote=True))
    with pytest.raises(pickle.UnpicklingError):
        next(_fetched(remote, tasks, cast(Lock, threading.Lock())))
    asking.close()  # the other threads end
