"""Does pretraining pay on real clips? Four actions by nine performers, six to learn from and three to be tested on.

Pretrains the tiny model on the training clips and synthetic ones, by masked reconstruction alone and jointly with the
captions, for some seeds; then kNN and a linear probe on frozen features compared with random initialisation, and
finetuning compared with training from scratch, with paired intervals over seeds and test clips."""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.evaluation.intervals import paired_interval
from tgm_scale.evaluation.settings import load_finetune
from tgm_scale.evaluation.variants import compare_variants
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime import command
from tgm_scale.runtime.compat import quiet_warnings
from tgm_scale.runtime.files import making, replace_file
from tgm_scale.runtime.outside.json_text import json_lines
from tgm_scale.runtime.progress import ProgressBars, Task

EXAMPLES = """examples:
  python tools/study_weizmann.py --videos "$TGM_REAL_DATA/weizmann"
  python tools/study_weizmann.py --videos DIR --dir runs/short --seeds 1 --steps 20 --finetune-steps 5    a quick look

DIR holds labels.csv (file, label, caption, split) and the clips that it names. Stopped at any moment, the same command
resumes. Writes summary.json and prints it as tables."""

PRETRAINING, FINETUNING = "configs/study_weizmann.yaml", "configs/study_weizmann_finetune.yaml"
VARIANTS = {"mae": ["objective.contrastive_weight=0"], "joint": []}  # overrides of the configuration
SCRATCH, LONGER = "scratch", "scratch, 4 times the steps"  # longer: more updates than pretraining and finetuning


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--videos", type=Path, required=True, metavar="DIR", help="the clips, with labels.csv")
    add("--dir", type=Path, default=Path("runs/study_weizmann"), metavar="DIR", help="default %(default)s")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each kind; default %(default)s")
    add("--clips", type=int, default=200, metavar="N", help="synthetic clips; default %(default)s")
    add("--steps", type=int, default=None, metavar="N", help="of each pretraining; default: the configuration's")
    add("--finetune-steps", type=int, default=None, metavar="N", help="default: the configuration's")
    options = parser.parse_args(arguments)
    quiet_warnings()
    return command.exit_code("study", lambda: _run(options), "the same command resumes from here")


def _run(options: argparse.Namespace) -> int:
    study = Study(options)
    with ProgressBars() as bars:
        study.make_corpora()
        study.pretrain(bars)
        frozen = study.judge_frozen(bars)
        finetuned = study.finetune(bars)
    summary = {"frozen": frozen, "finetuned": finetuned, "steps": options.steps, "seeds": options.seeds}
    replace_file(options.dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(tables(summary))
    return 0


class Study:
    """Stages of the study, each from files to files."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.dir
        self.seeds = range(options.seeds)
        self.data = {name: self.folder / "data" / name for name in ("train", "test", "synthetic")}

    def make_corpora(self) -> None:
        """Write both splits as labelled shards, and synthetic clips. Raises ValueError for a folder without labels."""
        table = self.options.videos / "labels.csv"
        if not table.is_file():
            raise ValueError(f"--videos {self.options.videos}: no labels.csv in it")
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for split in ("train", "test"):
            if not self.data[split].exists():
                with making(self.data[split]) as unfinished, ShardWriter(unfinished) as writer:
                    for row in (row for row in rows if row["split"] == split):
                        fields = {"label": row["label"], "captions": [row["caption"]]}
                        video = (self.options.videos / row["file"]).read_bytes()
                        writer.write(Path(row["file"]).stem, {"mp4": video, "json": fields})
        if not self.data["synthetic"].exists():
            with making(self.data["synthetic"]) as unfinished:
                make_corpus(unfinished, self.options.clips, SyntheticSpec(mode="one_mover"))

    def run(self, variant: str, seed: int) -> Path:
        return self.folder / f"{variant}-{seed}"

    def pretrain(self, bars: ProgressBars) -> None:
        task = bars.task("pretraining runs", len(VARIANTS) * len(self.seeds))
        weights = (("train", 0.8), ("synthetic", 0.2))
        shards = json.dumps([{"path": str(self.data[name]), "weight": weight} for name, weight in weights])
        steps = [f"train.steps={self.options.steps}"] if self.options.steps else []
        for seed in self.seeds:
            for variant, overrides in VARIANTS.items():
                folder = self.run(variant, seed)
                given = [f"data.shards={shards}", *_of_run(folder, seed), *steps, *overrides]
                _start("pretrain", PRETRAINING, folder, given)
                task.advance()

    def judge_frozen(self, bars: ProgressBars) -> dict[str, Any]:
        """Return kNN and linear probe of every run, compared with random initialisation of the same seeds."""
        train, test = (open_corpus(str(self.data[split])) for split in ("train", "test"))
        task: Task = bars.task("clips through all encoders", len(train) + len(test))
        variants = {variant: [self.run(variant, seed) for seed in self.seeds] for variant in VARIANTS}
        labels = {"label": "label"}
        found = compare_variants(variants, list(self.seeds), train, test, labels, progress=task.advance)["label"]
        return {
            "knn": found.knn,
            "linear probe": found.probe,
            "gain": {
                "knn": {name: gain._asdict() for name, gain in found.knn_gain.items()},
                "linear probe": {name: gain._asdict() for name, gain in found.probe_gain.items()},
            },
            "chance": found.chance,
            "clips": {"train": found.train_clips, "test": found.test_clips},
        }

    def finetune(self, bars: ProgressBars) -> dict[str, Any]:
        """Return accuracies and gains of finetuning every run, and of training from scratch with the same seeds and
        steps."""
        origins = [SCRATCH, LONGER, *VARIANTS]
        task = bars.task("finetuning runs", len(origins) * len(self.seeds))
        steps = self.options.finetune_steps or load_finetune(FINETUNING, []).train.steps
        assert steps is not None, "the study's configuration gives train.steps"
        right: dict[str, list[list[bool]]] = {origin: [] for origin in origins}
        for seed in self.seeds:
            for origin in origins:
                folder = self.run(f"finetune-{origin.replace(', 4 times the steps', '-longer')}", seed)
                given = [f"data.{split}={self.data[split]}" for split in ("train", "test")]
                given += [f"train.init_from={self.run(origin, seed)}"] if origin in VARIANTS else []
                given.append(f"train.steps={steps * 4 if origin == LONGER else steps}")
                if not (folder / "results.json").is_file():
                    _start("finetune", FINETUNING, folder, [*given, *_of_run(folder, seed)])
                rows = json_lines(folder / "predictions.jsonl")
                right[origin].append([row["label"] == row["prediction"] for row in rows])
                task.advance()
        right_SM = {origin: torch.tensor(rows).double() for origin, rows in right.items()}
        return {
            "accuracy": {origin: rows.mean(dim=1).tolist() for origin, rows in right_SM.items()},
            "gain": {name: paired_interval(right_SM[name] - right_SM[SCRATCH])._asdict() for name in VARIANTS},
            "gain over longer": {
                name: paired_interval(right_SM[name] - right_SM[LONGER])._asdict() for name in VARIANTS
            },
            "loss of pretraining": {name: self._last_losses(name) for name in VARIANTS},
        }

    def _last_losses(self, variant: str) -> list[float]:
        rows = [read_metrics(self.run(variant, seed)) for seed in self.seeds]
        return [statistics.fmean(row["loss_reconstruction"] for row in run[-50:]) for run in rows]


def _of_run(folder: Path, seed: int) -> list[str]:
    return [f"run.dir={folder}", f"run.seed={seed}"]


def _start(command: str, config: str, folder: Path, overrides: list[str]) -> None:
    """Run a command to its end, or resume it. Raises ValueError with the end of its output where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "tgm_scale", command, "--config", config, *overrides]
    with (folder / "output.log").open("a", encoding="utf-8") as log:
        code = subprocess.run(line, stdout=log, stderr=log, env={"OMP_NUM_THREADS": "1", **os.environ}).returncode
    if code:
        tail = "\n  ".join((folder / "output.log").read_text(encoding="utf-8").splitlines()[-15:])
        raise ValueError(f"{command} in {folder} failed; the end of its output:\n  {tail}")


def tables(summary: dict[str, Any]) -> str:
    """Return means over seeds, each seed's figure, and the gain with its interval, as Markdown."""
    frozen, finetuned = summary["frozen"], summary["finetuned"]
    lines = ["| | start | accuracy | of each seed | gain (95 %) |", "|---|---|---|---|---|"]
    for method in ("knn", "linear probe"):
        for name, values in frozen[method].items():
            lines.append(_line(method, name, values, frozen["gain"][method].get(name)))
    for name, values in finetuned["accuracy"].items():
        lines.append(_line("finetuning", name, values, finetuned["gain"].get(name)))
    for name, gain in finetuned["gain over longer"].items():
        lines.append(_line("finetuning, beside the longer", name, finetuned["accuracy"][name], gain))
    return "\n".join([*lines, f"\nchance {frozen['chance']:.3f}, {frozen['clips']['test']} test clips"])


def _line(method: str, name: str, values: list[float], gain: dict[str, float] | None) -> str:
    shown = "" if gain is None else f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    each = " ".join(f"{value:.3f}" for value in values)
    return f"| {method} | {name} | {statistics.fmean(values):.3f} | {each} | {shown} |"


if __name__ == "__main__":
    sys.exit(main())
