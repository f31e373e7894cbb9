"""The verb `pvqae calibrate C`: fit the class's scorer, set its threshold on unseen normals, write its bundle.

Then it is tried on synthetic defects of `SELECTION_KINDS`, for the card: whether it finds defects at all. The frozen
gate is made of other kinds. They choose nothing: what ranks read-outs on synthetic defects misleads about real ones
(docs/experiments/readouts.md).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pvqae.calibration import fitting, thresholds
from pvqae.core import config, files, runtime, seeding
from pvqae.core.errors import CalibrationError
from pvqae.core.layout import Layout
from pvqae.core.progress import track
from pvqae.datasets import splits
from pvqae.datasets.anomalies import ANOMALIES, SELECTION_KINDS
from pvqae.drift import profile
from pvqae.features.examples import Examples, Learned, prepare, retake
from pvqae.features.features import Store, jittered
from pvqae.inference import bundle
from pvqae.inference.measures import Networks
from pvqae.inference.scoring import Scored, Scorer
from pvqae.samples import classes, images, manifest

_RETAKEN, _VIEWS = 4, 512  # images of a fit that are taken again; of no more views than these, if it is not one image
_JITTERED = 16  # photographs of a single part that its threshold comes from
_TRIED = 16  # normals that the finished detector is tried on
_EXTENTS = (0.002, 0.06)  # share of the image that a synthetic defect covers


@dataclass(frozen=True, eq=False)
class Judged:
    """What a fit says of normals that it has not seen."""

    frame: pd.DataFrame  # sample_id, group_id, score
    peaks: NDArray[np.float64]  # highest map value of each
    medians: NDArray[np.float64]  # median map value of each
    curves: list[tuple[NDArray[np.float64], NDArray[np.float64]]]  # `thresholds.area_curve` of each one's map
    pixels: int  # of all maps


def calibrate(layout: Layout, params: config.Params, category: str) -> str:
    """Write `models/<dataset>/<category>/bundle`; returns its sha256."""
    known = classes.read(layout.classes_file, layout.name)
    member = known.member(category)
    runtime.plan(params.compute, len(known.networks)).apply()
    file = layout.class_rows(category, "normals")
    rows = splits.assign_folds(manifest.read_rows(layout, file), params.calibration)
    fits = splits.fits(rows)
    found = fitting.load_networks(layout, params, member.network, member.prior, fits)
    store = Store(layout.features, params.compute.cache_gb)
    examples = prepare(rows, layout.data, params.image, found[splits.FULL].backbone, "none", store=store)
    print(f"{category}: {store.counts}", flush=True)
    scorers = fit_all(found, examples, rows, params, layout.data)
    few = bool(splits.few(rows).all())
    shipped = scorers[splits.FULL]
    judged = within(shipped, rows, layout.data, params.seed) if few else _judge(scorers, rows, layout)
    facts = json.loads((layout.prior(member.prior) / "facts.json").read_text("utf-8"))[category]
    health = fitting.health(found[splits.FULL], _seen(examples, rows, splits.FULL), facts)
    scores, settings = judged.frame["score"].to_numpy(), params.calibration
    if few:
        chosen = thresholds.without_promise(scores, settings.false_alarm_rate, len(rows), settings.promise_from)
        method = "leave_one_out" if rows["group_id"].nunique() > 1 else "one_part"
    else:
        chosen = thresholds.threshold(scores, settings.false_alarm_rate)
        method = "held_out" if len(fits) == 1 else "cross_fit"
    middle = float(np.median(judged.medians))
    card = thresholds.card(chosen, judged.frame, judged.peaks, middle, method, files.digest(file))
    groups, target = list(judged.frame["group_id"]), params.calibration.pixel_false_alarm_area
    card["pixel"] = thresholds.pixel_card(judged.curves, groups, target, judged.pixels)
    card["synthetic"] = tried(shipped, chosen.value, _pictures(rows, layout.data, params.image))
    card["warnings"] = [*chosen.warnings, *blind(card["synthetic"], chosen.value)]
    small = thresholds.smallest(rows, shipped.networks.backbone.spec, shipped.image, shipped.score)
    card["smallest_defect"] = small
    print(f"{category}: {thresholds.sentence(small)}", flush=True)
    for words in [*card["warnings"], *health["warnings"]]:
        print(f"WARNING {category}: {words}", flush=True)
    trusted = profile.build(shipped, examples, rows, judged.frame, layout.data)
    return bundle.save(layout.bundle(category), shipped, params, category, health, card, trusted)


def fit_all(
    found: dict[str, Networks], examples: Examples, rows: pd.DataFrame, params: config.Params, data_root: Path
) -> dict[str, Scorer]:
    """Return a scorer per fit.

    `rows`: the class's normals with column `fold`, paths below `data_root`; `examples`: their views; `found`: the
    networks of each fit.
    """
    fitted = {}
    for fit, networks in track(found.items(), "memory", len(found)):
        seen = _seen(examples, rows, fit)
        count = max(1, min(_RETAKEN, _VIEWS * len(np.unique(seen.rows)) // len(seen)))
        some = np.unique(seen.rows[torch.linspace(0, len(seen) - 1, count).long()]).tolist()
        again = retake(rows, some, data_root, params.image, networks.backbone, params.seed)
        scorer = fitting.fit(networks, seen, _groups(rows, seen), params, fit, again)
        fitted[fit] = scorer if splits.few(rows).all() else fitting.settled(scorer)
        runtime.release_memory()
    return fitted


def _seen(examples: Examples, rows: pd.DataFrame, fit: str) -> Learned:
    return examples.chosen(torch.from_numpy(splits.learns(rows, fit)))


def _groups(rows: pd.DataFrame, seen: Learned) -> torch.Tensor:
    """Return the number of each view's group; of a single part every photograph counts as one."""
    numbers = fitting.group_numbers(rows, seen)
    return numbers if int(numbers.max()) > 0 or not splits.few(rows).all() else seen.rows


def within(scorer: Scorer, rows: pd.DataFrame, data_root: Path, seed: int) -> Judged:
    """Score normals too few for folds by what the other parts taught `scorer`, which was just fitted to all of them.

    Each part's codes are taken out of the memories while its images are scored; statistics and networks have seen it.
    Of a single part the images are jittered anew, since nothing else is there that the memory has not seen.
    `rows`: all normals of the class, in the order in which the scorer was fitted.
    """
    parts = pd.factorize(rows["group_id"])[0]
    alone, results = len(set(parts)) == 1, list[Scored]()
    for number, (sample_id, path) in enumerate(track(_pairs(rows), "calibrating", total=len(rows))):
        pixels = images.read(path, data_root, scorer.image.bits)
        if alone:
            draws = seeding.numpy_generator(seed, "judge", path)
            again = [jittered(pixels, draws) for _ in range(-(-_JITTERED // len(rows)))]
            results += [scorer.one(one, sample_id) for one in again]
        else:
            results.append(_without(scorer, int(parts[number])).one(pixels, sample_id))
    return _judged(results, rows)


def _without(scorer: Scorer, part: int) -> Scorer:
    """Return the scorer without the codes of a part; a memory that has no others keeps them."""
    memories = {name: memory.apart_from(part) for name, memory in scorer.networks.memories.items()}
    return replace(scorer, networks=replace(scorer.networks, memories=memories))


def _pairs(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["sample_id"], rows["path"], strict=True))


def _pictures(rows: pd.DataFrame, data_root: Path, image: config.Image) -> Iterator[tuple[str, images.Floats]]:
    """Yield sample_id and pixels of some of the rows, spread evenly; of a tiled image the square in its middle, which
    has all that its scale is chosen by: a line scan may be eight times as long.
    """
    count = min(_TRIED, len(rows))
    some = rows.iloc[np.linspace(0, len(rows) - 1, count).round().astype(int)]
    for sample_id, path in track(zip(some["sample_id"], some["path"], strict=True), "trying defects", count):
        pixels = images.read(path, data_root, image.bits)
        if image.aspect == "tile":
            pixels = _middle(pixels)  # a copy, so that the scan itself is freed before it is scored
        yield sample_id, pixels


def _middle(pixels: images.Floats) -> images.Floats:
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side].copy()


def _judge(scorers: dict[str, Scorer], rows: pd.DataFrame, layout: Layout) -> Judged:
    """Score every normal that a fit may judge, through the one scoring path."""

    def scored() -> Iterator[Scored]:
        for fit, scorer in scorers.items():
            mine = rows[splits.judges(rows, fit)]
            yield from track(scorer.many(_pairs(mine), layout.data), f"calibrating {fit}", total=len(mine))

    return _judged(scored(), rows)


def _judged(results: Iterable[Scored], rows: pd.DataFrame) -> Judged:
    parts, peaks, medians, curves, pixels = [], [], [], [], 0
    for scored in results:
        parts.append((scored.sample_id, scored.image_score))
        peaks.append(float(scored.anomaly_map.max()))
        medians.append(float(np.median(scored.anomaly_map)))
        curves.append(thresholds.area_curve(scored.anomaly_map))
        pixels += scored.anomaly_map.size
    if not parts:
        raise CalibrationError(
            "no normals are left for calibration: expected rows with split calibrate; raise data.shares"
        )
    frame = pd.DataFrame(parts, columns=["sample_id", "score"]).merge(rows[["sample_id", "group_id"]], on="sample_id")
    return Judged(frame, np.array(peaks), np.array(medians), curves, pixels)


def with_defects(sample_id: str, picture: images.Floats) -> Iterator[tuple[str, images.Floats]]:
    """Yield each kind of `SELECTION_KINDS` that can be made visible, and the picture (H, W, 3) with it."""
    for kind in SELECTION_KINDS:
        digest = hashlib.sha256(f"{kind}/{sample_id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8]))
        image, mask = ANOMALIES[kind](picture, rng, float(np.exp(rng.uniform(*np.log(_EXTENTS)))))
        if mask.any():
            yield kind, image


def tried(scorer: Scorer, threshold: float, pictures: Iterable[tuple[str, images.Floats]]) -> dict[str, Any]:
    """Count how many of n synthetic defects on these normals the detector scores above its threshold.

    `highest` is their highest score, None where no defect could be made visible.
    """
    scores = [
        scorer.one(image, sample_id).image_score
        for sample_id, picture in pictures
        for _, image in with_defects(sample_id, picture)
    ]
    found, highest = sum(score > threshold for score in scores), float(f"{max(scores):.6g}") if scores else None
    return {"n": len(scores), "found": found, "highest": highest}


def blind(tried: dict[str, Any], threshold: float) -> list[str]:
    """Return a warning if the detector finds none of its synthetic defects; empty if it does, or none could be made."""
    if tried["found"] or not tried["n"]:
        return []
    return [
        f"none of {tried['n']} synthetic defects scores above the threshold {threshold:.6g}, the highest "
        f"{tried['highest']:.6g}: it would find nothing and can't be champion; add normals of more parts, or images "
        "that show more of what varies"
    ]
