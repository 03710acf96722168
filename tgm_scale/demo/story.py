"""Report of the demo: expectations, results, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tgm_scale.demo import plots
from tgm_scale.demo.gallery import Gallery, Strip
from tgm_scale.demo.summary import Summary, at, check_expectations
from tgm_scale.report.html import Card, Code, PassFail, Picture, Report, Section, Table, Text
from tgm_scale.runs.metrics import read_metrics

_TERMS = {"loss_reconstruction": "reconstruction loss", "loss_contrastive": "contrastive loss"}
_ROLES = {
    "object": "the object that the caption names",
    "same_colour": "a distractor of the same colour",
    "same_shape": "a distractor of the same shape",
}
_PAINTED = {  # by objective.normalise_by
    "patch": (
        "It predicts each patch's pattern; brightness and contrast are taken from the visible patches around, never "
        "from the hidden pixels, so the colour of a wholly hidden object is not to be expected."
    ),
    "clip": (
        "It predicts grey levels in units of the clip's mean and contrast, which are taken from the visible patches, "
        "never from the hidden pixels; where the object is wholly hidden its colour is not to be expected."
    ),
}
_FLAT = {
    "patch": "0.99 is the error of predicting a flat patch",
    "clip": "about 1 is the error of predicting the clip's mean colour everywhere",
}
_SCORERS = {
    "raw": "raw: tokens of the last layer (this run's)",
    "value": "value: value path of the last block",
    "vv": "vv: value-value attention in the last block",
    "colour_control": "control without a model: distance to the named colour",
    "absent_caption": "control: caption of an object that is not in the clip",
}


def loss_curves(runs: Mapping[str, Path]) -> bytes:
    """Plot one panel for each loss term, with one curve for each run that has it."""
    rows = {name: read_metrics(folder) for name, folder in runs.items()}
    panels: dict[str, dict[str, plots.Curve]] = {}
    for key, title in _TERMS.items():
        for name, of_run in rows.items():
            if of_run[-1].get(key) is not None:
                curve = ([row["step"] for row in of_run], [row[key] for row in of_run])
                panels.setdefault(title, {})[name] = curve
    return plots.curves(panels)


def probe_bars(summary: Summary) -> bytes:
    """Plot accuracies of the linear probe, with the standard deviation over seeds; one group per label."""
    groups = {
        label: {
            **{name: (value["mean"], value["std"]) for name, value in of_label.items()},
            "commonest label": (summary["chance"][label], 0.0),
        }
        for label, of_label in summary["probe"].items()
    }
    return plots.bars("accuracy of a linear probe", groups)


def compose(
    summary: Summary,
    strips: Sequence[Strip],
    recipes: Gallery,
    curves: bytes,
    bars: bytes,
    facts: Mapping[str, Any],
) -> Report:
    """Return the whole report. facts: machine, seeds, steps, batch, clips, train_clips, test_clips, normalise_by,
    commands."""
    findings = check_expectations(summary)
    met = sum(finding.met for finding in findings)
    floors = Table(
        ["wanted of this run", "found", "bound"],
        [[f.text, PassFail(f"{f.found:.3g}", f.met), f.wanted] for f in findings],
    )
    return Report(
        title="Text-guided masked video pretraining: a run from nothing",
        lead=(
            "A corpus was made, a masked video autoencoder was pretrained on it with text-guided masking, and what it "
            f"learned was measured, in {summary['seconds'] / 60:.1f} minutes on {facts['machine']}. "
            f"{met} of the {len(findings)} things wanted of the run came out."
        ),
        cards=[
            Card(f"{at(summary, 'mask.object_hidden'):.0%}", "of the named object is hidden (random masks: 60 %)"),
            Card(f"{at(summary, 'relevance_auc.raw'):.2f}", "AUC of relevance for the named object's tokens"),
            Card(f"{at(summary, 'probe.motion.joint.mean'):.1%}", "motion probe, joint pretraining"),
            Card(f"{at(summary, 'probe.motion.mae.mean'):.1%}", "motion probe, MAE alone"),
            Card(f"{at(summary, 'probe.motion.random.mean'):.1%}", "motion probe, random initialisation"),
        ],
        sections=[
            Section("What was wanted, and what came out", [floors]),
            Section("The masks", [*_masks(summary), *(_picture(strip, facts) for strip in strips)]),
            Section("Every masking recipe on one clip", [_recipes(recipes)]),
            Section("The losses", [_curves(summary, curves, facts)]),
            Section("What the features know", _features(summary, bars, facts)),
            Section("Export", [_export(summary)]),
            Section("The runs again", [Code("\n".join(facts["commands"]))]),
        ],
        footer="The figures are in summary.json next to this file.",
    )


def _masks(summary: Summary) -> list[Text | Table]:
    mask, auc = summary["mask"], summary["relevance_auc"]
    hidden = [[text, f"{mask[f'{role}_hidden']:.3f}"] for role, text in _ROLES.items()]
    hidden += [
        ["the object, in the runs' own masks (relevance and noise)", f"{mask['of_the_runs']['object_hidden']:.3f}"],
        ["the object, under a caption of an absent object", f"{mask['absent_caption_hidden']:.3f}"],
        ["the object, under random masks of the same ratio", f"{mask['random_hidden']:.3f}"],
    ]
    return [
        Text(
            "Each caption names one object of its clip. Frozen CLIP towers score every patch against the caption; of "
            "each slot's tokens the 60 % of highest score are hidden. Colour alone does not give the object away: one "
            "distractor has its colour, another its shape. A token is an object's when at least half of its pixels "
            "show it."
        ),
        Table(["share of tokens that is hidden", "mean over test clips"], hidden),
        Table(
            ["relevance, AUC for the object's tokens", "mean over test clips"],
            [[text, f"{auc[name]:.3f}"] for name, text in _SCORERS.items()],
        ),
    ]


def _picture(strip: Strip, facts: Mapping[str, Any]) -> Picture:
    caption = (
        f"“{strip.caption}”. The rows: the clip with the named object outlined from the truth; relevance of the "
        "caption; what the encoder sees; what the model paints into the hidden patches. "
        f"{_PAINTED[facts['normalise_by']]}"
    )
    return Picture(strip.png, f"film strip: {strip.caption}", caption)


def _recipes(recipes: Gallery) -> Picture:
    caption = (
        f"“{recipes.caption}”: the first frame of each slot, and what is left of it under each recipe at a mask ratio "
        "of 0.75. Outlined: the object that the caption names."
    )
    return Picture(recipes.strip, "film strip: every masking recipe", caption)


def _curves(summary: Summary, png: bytes, facts: Mapping[str, Any]) -> Picture:
    caption = (
        "Loss at each step, one curve a run. Reconstruction, first seed of the joint run: "
        f"{at(summary, 'loss.first'):.3f} at the start, {at(summary, 'loss.last'):.3f} at the end (means of 2 % of "
        f"the steps); {_FLAT[facts['normalise_by']]}."
    )
    return Picture(png, "loss curves", caption)


def _features(summary: Summary, bars: bytes, facts: Mapping[str, Any]) -> list[Text | Table | Picture]:
    rows = []
    for label, probe in summary["probe"].items():
        for name, text in (
            ("joint", "joint: MAE and contrast"),
            ("mae", "MAE alone"),
            ("random", "random initialisation"),
        ):
            gain = summary["gain"][label].get(name)
            interval = f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" if gain else ""
            accuracy = f"{probe[name]['mean']:.3f} ± {probe[name]['std']:.3f}"
            rows.append([label, text, accuracy, interval, f"{summary['knn'][label][name]:.3f}"])
    return [
        Text(
            f"Frozen features (mean token, everything visible, captions unseen) of clips with one moving object; the "
            f"labels are how it moves, its shape and its colour. {facts['train_clips']} clips to fit, "
            f"{facts['test_clips']} to test, none of them seen in pretraining ({facts['steps']} steps of "
            f"{facts['batch']} clips, from two corpora of {facts['clips']}). {facts['seeds']} seeds of each kind, "
            "each compared with the weights that it started from; the intervals are a paired bootstrap over seeds and "
            "clips."
        ),
        Table(["label", "features", "linear probe", "gain over random, 95 %", "kNN"], rows),
        Picture(bars, "accuracy of the probe", "Bars: mean over seeds, with the standard deviation."),
    ]


def _export(summary: Summary) -> Text:
    return Text(
        "The joint run was exported to the Hugging Face layout, loaded with transformers.VideoMAEForPreTraining and "
        f"run on a fixed clip: its predictions differ from ours by at most {at(summary, 'export.max_difference'):.1e}."
    )
