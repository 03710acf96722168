"""Objects of the drill: a small corpus, a tower, and a run on them; the results of an undisturbed run; and a start of
the console command in a fork of this process, with its output in a file and a time limit."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tgm_scale.assembly.corpora import open_corpora
from tgm_scale.assembly.parts import clip_loader
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.checkpoints import checkpoint, folders
from tgm_scale.config import load
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video
from tgm_scale.demo.corpus.make import SyntheticSpec, render_clip
from tgm_scale.guidance.towers import SMALL_TOWERS, load_image_tower, load_text_tower
from tgm_scale.runs.faults import FaultState
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.outside.json_text import json_object

CLIPS, A_SHARD, BROKEN, LEFT_OUT = 12, 4, 5, "00002/clip-9"
STEPS, EVERY = 6, 2
OUTPUT = "output.txt"
LIMIT = 90.0  # seconds; a whole start takes 0.3. A start with a damaged file in owner/ watches it for 15
HANGS = -999
_READ_ANYTHING = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: with them root may read and write anything
CONFIG = f"""
run: {{dir: run}}
data: {{shards: shards, frames: 2, stride: 1, size: 32, workers: 0, max_skipped_share: 0.95, max_left_out_share: 0.95}}
guidance: {{towers: tower}}
masking: {{recipe: text_guided, mask_ratio: 0.5}}
model: {{size: tiny, patch: 16, tubelet: 2, depth: 1, decoder_depth: 1}}
optim: {{base_lr: 3e-2}}
train: {{steps: {STEPS}, global_batch_size: 4, micro_batch_size: 4}}
checkpoint: {{every: {EVERY}, keep: 3}}
log: {{every: 100, tensorboard: false}}
"""
COMMAND = ["pretrain", "--config", "config.yaml"]


@dataclass(frozen=True)
class Reference:
    """Results of the undisturbed run: digest of the last checkpoint's tensors; by step (loss, digest of the data); by
    sample the digest of its members (None where it is unusable)."""

    weights: str
    steps: dict[str, list[float]]
    clips: dict[str, str | None]


def make(folder: Path) -> Reference:
    """Make FOLDER/{config.yaml, shards, tower, run}: the run as a kill leaves it before its last checkpoint is
    complete."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    shutil.copytree(SMALL_TOWERS, folder / "tower", copy_function=shutil.copy)
    with ShardWriter(folder / "shards", A_SHARD) as writer:  # clips of 10 kB: most of a shard is not in its ends
        for number in range(CLIPS):
            clip = render_clip(number, SyntheticSpec(size=160, frames=4))
            video = encode_video(clip.frames, 12)
            writer.write(
                f"clip-{number}",
                {"mp4": b"no video" * 9 if number == BROKEN else video, "json": {"captions": clip.captions}},
            )
    (folder / "run").mkdir()
    FaultState(rollbacks=1, skip_list=[LEFT_OUT]).write(folder / "run")  # as after a rollback
    code = start(folder, [COMMAND], then=write_clips)
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with exit code {code}: {folder / OUTPUT}")
    expected = read_reference(folder)
    shutil.rmtree(folders.folder_of(folder / "run" / "checkpoints", STEPS))
    (folder.parent / "expected.json").write_text(json.dumps(asdict(expected), indent=1), encoding="utf-8")
    return expected


def read_reference(folder: Path) -> Reference:
    """Return the results of a successful run in FOLDER/run. Raises ValueError or OSError without a whole last
    checkpoint."""
    rows = {str(row["step"]): [row["loss"], row["data_digest"]] for row in read_metrics(folder / "run")}
    return Reference(weights_of(folder), rows, clips_of(folder))


def weights_of(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    reader = checkpoint.Reader(folders.folder_of(folder / "run" / "checkpoints", STEPS))
    for name in reader.names():  # not the file's bytes, whose order differs where memory is short
        for part in ("weight", "exp_avg", "exp_avg_sq"):
            digest.update(name.encode() + reader.tensor(name, part).numpy().tobytes())
    return digest.hexdigest()


def clips_of(folder: Path) -> dict[str, str | None]:
    return json_object(folder / "clips.json")


def write_clips() -> None:
    """Write the digest of each sample in a pass over the corpus here; None for an unusable one."""
    config = load("config.yaml", [])
    plan = plan_pretraining(config, ProcessInfo(0, 1, 0, torch.device("cpu")))
    opened = open_corpora(config.data, plan.captions)
    loader = clip_loader(plan, config.data, config.guidance, config.run.seed, opened, range(STEPS))
    samples = loader.samples
    found: dict[str, str | None] = {problem.key: None for corpus in opened for problem in corpus.all_problems()}
    pixels = torch.empty(1, config.data.frames, config.data.size, config.data.size, 3, dtype=torch.uint8)
    for position in range(sum(len(corpus) for corpus in opened)):
        fetched = samples.fetch(position)
        read = b"".join(data for _, data in sorted(fetched.members.items()))
        used = samples.decode(fetched, pixels).problem is None
        found[fetched.ref.name] = hashlib.blake2b(read, digest_size=16).hexdigest() if used else None
    Path("clips.json").write_text(json.dumps(found), encoding="utf-8")


def warm() -> None:
    """Import and compute once what every start would: a start is then a fork of this process. The number of threads is
    not set: a thread pool would not survive the fork."""
    import deepspeed  # noqa: F401

    import tgm_scale.conversion.read
    import tgm_scale.evaluation.online
    import tgm_scale.runs.check_run
    import tgm_scale.runs.status
    import tgm_scale.training.pretraining  # noqa: F401

    load_text_tower(SMALL_TOWERS)
    load_image_tower(SMALL_TOWERS)


def start(folder: Path, commands: Sequence[Sequence[str]], then: Callable[[], None] | None = None) -> int:
    """Run the commands one after another in `folder`, then `then` in the same process if the last exit code is 0.
    Return that code, or HANGS where they took too long. Output and codes are in FOLDER/output.txt."""
    child = os.fork()
    if child == 0:
        _run(folder, commands, then)
    end = time.monotonic() + LIMIT
    while not (waited := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return HANGS
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(waited[1])


def _run(folder: Path, commands: Sequence[Sequence[str]], then: Callable[[], None] | None) -> None:
    code = 1
    try:
        os.chdir(folder)
        os.environ.update(HOME=str(folder / "home"), XDG_CACHE_HOME=str(folder / "home"))
        sink = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        _be_refused()
        from tgm_scale import cli

        for command in commands:
            code = cli.main(command)
            print(f"exit code of {command[0]}: {code}", flush=True)
        if then is not None and code == 0:
            then()
    except BaseException:  # as an interpreter does
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_refused() -> None:
    """Drop root's privileges on file modes, so that it is refused like an ordinary owner."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; for capabilities 0 to 31, then for the others
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for capability in _READ_ANYTHING:
        for each in range(3):
            sets[each] &= ~(1 << capability)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
