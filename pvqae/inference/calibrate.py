"""The verb `pvqae calibrate C`: fit the class's scorer, set its threshold on unseen normals, write its bundle."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from pvqae import config, runtime
from pvqae.datasets import manifest
from pvqae.errors import CalibrationError
from pvqae.inference import bundle, calibration, fitting
from pvqae.inference.measures import Networks
from pvqae.inference.scoring import Scorer
from pvqae.layout import Layout
from pvqae.progress import track
from pvqae.training import folds
from pvqae.training.examples import Examples, prepare


@dataclass(frozen=True, eq=False)
class Judged:
    """What a fit says of normals that it has not seen."""

    frame: pd.DataFrame  # sample_id, group_id, score
    peaks: NDArray[np.float64]  # highest map value of each
    medians: NDArray[np.float64]  # median map value of each


def calibrate(layout: Layout, params: config.Params, category: str) -> str:
    """Write models/<dataset>/<category>/bundle; returns its sha256."""
    classes = yaml.safe_load(layout.classes_file.read_text("utf-8"))
    runtime.apply(runtime.plan(params.compute, len(classes["networks"])))
    network, prior = (classes["classes"][category][key] for key in ("network", "prior"))
    file = layout.class_rows(category, "normals")
    rows = folds.assign(manifest.read(file), params.calibration)
    fits = folds.names(rows)
    found = {fit: fitting.load_networks(layout, params, network, prior, fit) for fit in fits}
    examples = prepare(rows, layout.data, params.image, found[folds.FULL].backbone, "none")
    scorers = {fit: _scorer(found[fit], examples, rows, params, fit) for fit in track(fits, "memory", len(fits))}
    judged = _judge(scorers, rows, layout)
    facts = json.loads((layout.prior(prior) / "facts.json").read_text("utf-8"))
    health = fitting.health(found[folds.FULL], _seen(examples, rows, folds.FULL), facts)
    chosen = calibration.threshold(judged.frame["score"].to_numpy(), params.calibration.false_alarm_rate)
    method = "held_out" if len(fits) == 1 else "cross_fit"
    middle = float(np.median(judged.medians))
    card = calibration.card(chosen, judged.frame, judged.peaks, middle, method, manifest.digest(file))
    for words in [*chosen.warnings, *health["warnings"]]:  # type: ignore[misc]
        print(f"WARNING {category}: {words}", flush=True)
    return bundle.save(layout.bundle(category), scorers[folds.FULL], params, category, health, card)


def _seen(examples: Examples, rows: pd.DataFrame, fit: str) -> Examples:
    return examples.subset(torch.from_numpy(folds.learns(rows, fit)))


def _scorer(found: Networks, examples: Examples, rows: pd.DataFrame, params: config.Params, fit: str) -> Scorer:
    seen = _seen(examples, rows, fit)
    return fitting.fit(found, seen, fitting.group_numbers(rows, seen), params, fit)


def _judge(scorers: dict[str, Scorer], rows: pd.DataFrame, layout: Layout) -> Judged:
    """Every normal that a fit may judge, through the one scoring path."""
    parts, peaks, medians = [], [], []
    for fit, scorer in scorers.items():
        mine = rows[folds.judges(rows, fit)]
        pairs = zip(mine["sample_id"], mine["path"], strict=True)
        for scored in track(scorer.many(pairs, layout.data), f"calibrating {fit}", total=len(mine)):
            parts.append((scored.sample_id, scored.image_score))
            peaks.append(float(scored.anomaly_map.max()))
            medians.append(float(np.median(scored.anomaly_map)))
    if not parts:
        raise CalibrationError(
            "no normals are left for calibration: expected rows with split calibrate; raise data.shares"
        )
    frame = pd.DataFrame(parts, columns=["sample_id", "score"]).merge(rows[["sample_id", "group_id"]], on="sample_id")
    return Judged(frame, np.array(peaks), np.array(medians))
