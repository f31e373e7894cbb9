"""What an experiment measures of one run: one class, one variant, one seed.

A measure gives figures by row: "" is the row of the variant itself, other names are rows of their own.
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from flows.experiments import allocations, contest, mechanism, pieces, strips, trial
from flows.experiments.pieces import Trained
from flows.experiments.subjects import Subject, redrawn
from pvqae.core import config
from pvqae.core.seeding import numpy_generator
from pvqae.datasets import anomalies
from pvqae.evaluation import metrics
from pvqae.features import richness
from pvqae.inference.readout import FUSIONS
from pvqae.inference.scoring import Scored
from pvqae.samples import geometry, images
from pvqae.training.losses import costs

Figures = dict[str, dict[str, float | None]]
CONTEST = (contest.OURS, "covering", "patchcore_1", "control")
CLEAN = "no normals of parts with a defect"
DIFFUSE = ("colour_shift", "blur", "stain")
EXTENTS = (0.02, 0.1, 0.3, 1.0)


@dataclass(frozen=True, eq=False)
class Task:
    """`others` are the experiment's further classes, `pictures` a folder for pictures of free images or None."""

    params: config.Params
    subject: Subject
    others: tuple[Subject, ...]
    work: Path
    pictures: Path | None = None


def detection(task: Task) -> Figures:
    """Train, fit, judge."""
    return {"": pieces.judge(pieces.train(task.params, task.subject, task.work))}


def shipped(task: Task) -> Figures:
    """Everything as a class is shipped, its chosen read-out included; calibration takes no part."""
    outcome = trial.run(task.params, task.subject.rows, task.subject.root, task.work)
    numbers = {k: v for k, v in outcome.figures.items() if v is None or isinstance(v, int | float)}
    return {"": numbers | {"megabytes": outcome.megabytes, "milliseconds": outcome.milliseconds}}


def mechanism_tests(task: Task) -> Figures:
    """The three tests of `flows.experiments.mechanism`; test 3 gives a row per budget."""
    found = pieces.train(task.params, task.subject, task.work)
    rows: Figures = {"": _use(found) | {"shuffled_raise": _shuffled(found)}}
    for name, put in mechanism.BUDGETS.items():
        judged = pieces.judge(replace(found, networks=put(found.networks)))
        rows[f"budget {name}"] = {key: judged[key] for key in ("image_auroc", "pixel_auroc")}
    return rows


def _shuffled(found: Trained) -> float:
    return mechanism.shuffled_raise(found.networks, found.learnt, found.params.seed)


def _use(found: Trained) -> dict[str, float | None]:
    use = mechanism.use(found.networks, found.learnt)
    return {"spearman": use.spearman, "least_share": min(use.shares(found.params.model.levels))}


def texture(task: Task) -> Figures:
    """Detection, use of the levels, and how far the cells of normals differ in richness."""
    found = pieces.train(task.params, task.subject, task.work)
    return {"": pieces.judge(found) | _use(found) | {"richness_spread": float(_richness(found)[0].std())}}


def richness_measure(task: Task) -> Figures:
    """`texture`, and how the measure of richness ranks the cells of normals."""
    found = pieces.train(task.params, task.subject, task.work)
    blind = pieces.with_params(task.params, {"train.richness": "none"})
    gap = mechanism.use(pieces.train(blind, task.subject, task.work).networks, found.learnt).saving
    rich, cells = _richness(found)
    png = torch.tensor([_png_bytes(cell) for cell in cells])
    correlations = {
        "png_correlation": mechanism.rank_correlation(rich, png),
        "gap_correlation": mechanism.rank_correlation(rich, gap),
    }
    return {"": pieces.judge(found) | _use(found) | {"richness_spread": float(rich.std())} | correlations}


def _richness(found: Trained) -> tuple[Tensor, Tensor]:
    """1 - cost of every valid cell of the normals learnt from, and its patch."""
    cells = pieces.patches(found.params, found.rows, found.subject.root)
    return 1 - richness.RICHNESS[found.params.train.richness](cells).float(), cells


def _png_bytes(patch_PP: Tensor) -> float:
    """What a lossless coder needs for the grey patch in 8 bits: complexity that no one here defined."""
    buffer = io.BytesIO()
    Image.fromarray((patch_PP.clamp(0, 1) * 255).round().byte().numpy()).save(buffer, "PNG")
    return float(buffer.tell())


def maps(task: Task) -> Figures:
    """What is spent where there is a defect, and where there is none."""
    found = pieces.train(task.params, task.subject, task.work)
    cells = []
    for row, scored in pieces.score(found, from_files=task.pictures is not None):
        cells.append(_cells(row, scored, found))
        if task.pictures is not None:
            strips.draw(row, scored, found, task.pictures)
    table = pd.concat(cells)
    normal, defect = table[table["image"] == "normal"], table[table["defect"]]
    both = pd.concat([normal, defect])
    return {
        "": {
            "spent_normal": _mean(normal["spent"]),
            "spent_defect": _mean(defect["spent"]),
            "changed_normal": _mean(normal["changed"]),
            "changed_defect": _mean(defect["changed"]),
            "cell_auroc": metrics.image_auroc(both["defect"].to_numpy(dtype=bool), both["prior"].to_numpy()),
        }
    }


def _mean(values: "pd.Series[Any]") -> float | None:
    return float(values.mean()) if len(values) else None


def _cells(row: dict[str, Any], scored: Scored, found: Trained) -> pd.DataFrame:
    """One row per coarse cell that is image."""
    levels, price = scored.levels, costs(found.params.model.levels).numpy()
    mask = geometry.mask_of(row["mask_path"], scored.anomaly_map.shape, found.subject.root)
    image = Image.fromarray(mask.astype(np.float32)).resize(levels.shape[::-1], Image.Resampling.BOX)
    prior = Image.fromarray(scored.part_maps["s_prior"]).resize(levels.shape[::-1], Image.Resampling.BOX)
    kept = (levels >= 0).ravel()
    return pd.DataFrame(
        {
            "image": row["label"],
            "defect": (np.asarray(image) > 0.25).ravel()[kept],
            "spent": price[levels.ravel()[kept]],
            "changed": (levels != scored.expected_levels).ravel()[kept],
            "prior": np.asarray(prior).ravel()[kept],
        }
    )


def diffuse(task: Task) -> Figures:
    """Score against extent: a row per kind and extent, against the untouched normals of the test."""
    found = pieces.train(task.params, task.subject, task.work)
    scorer = pieces.fitted(found)
    rows = found.test[found.test["label"] == "normal"].head(12)
    pictures = {
        row["sample_id"]: images.read(row["path"], task.subject.root, task.params.image.bits)
        for row in rows.to_dict("records")
    }
    normal = [scorer.one(picture, name) for name, picture in pictures.items()]
    out: Figures = {}
    for kind in DIFFUSE:
        for extent in EXTENTS:
            # One stream per image and kind: a larger extent is the same anomaly, grown.
            made = (
                anomalies.ANOMALIES[kind](picture, numpy_generator(0, "diffuse", kind, name), extent)[0]
                for name, picture in pictures.items()
            )
            out[f"{kind} {extent:g}"] = _against(normal, [scorer.one(picture) for picture in made])
    return out


def _against(normal: list[Scored], defective: list[Scored]) -> dict[str, float | None]:
    label = np.repeat([False, True], [len(normal), len(defective)])

    def auroc(values: list[float]) -> float | None:
        return metrics.image_auroc(label, np.array(values))

    parts = {
        f"{part}_image_auroc": auroc([item.parts[part] for item in normal + defective])
        for part in ("s_prior", "product")
    }
    scores = [item.image_score for item in normal + defective]
    return parts | {"image_auroc": auroc(scores), "deviations": float(np.median(scores[len(normal) :]))}


def priors(task: Task) -> Figures:
    """Detection with a prior that was fitted on the classes of its group; every class has its own network."""
    alone = pieces.with_params(task.params, {"prior.grouping": "per_class"})
    members = [pieces.train(alone, subject, task.work) for subject in (task.subject, *task.others)]
    return {"": pieces.judge_grouped(task.params, members, task.work)}


def allocation_tests(task: Task) -> Figures:
    """A row for each way in which the allocation can decide whose distances count."""
    return allocations.rows(task.params, task.subject, task.work)


def draws(task: Task) -> Figures:
    """Ours and the yardsticks on another draw of the class's normals; the seed is the draw. A row for each of them, and
    one without the normals that show a part which has a defect on another photograph."""
    with tempfile.TemporaryDirectory(dir=task.work) as work:  # gigabytes of views that no other run needs
        ring = contest.Ring(redrawn(task.subject, task.params.seed), task.params, Path(work))
        found = {method: ring.entry(method, task.params.seed) for method in CONTEST}
    groups, kept = ring.test["group_id"], ring.defect.copy()
    kept |= ~groups.isin(set(groups[ring.defect])).to_numpy()
    rows: Figures = {}
    for method, entry in found.items():
        rows[method] = {figure: entry.facts[figure] for figure in contest.FIGURES}
        rows[f"{method}, {CLEAN}"] = {"image_auroc": metrics.image_auroc(ring.defect[kept], entry.scores[kept])}
    return rows


def fusions(task: Task) -> Figures:
    """The image scores of one detector, its chosen read-out included, put together in each way. A row for each."""
    scores = trial.run(task.params, task.subject.rows, task.subject.root, task.work).judged.scores
    defect = (scores["label"] == "defect").to_numpy()

    def part(name: str) -> Any:  # an array: fusions are of numbers, and of all that adds like them
        return scores[name].to_numpy()

    return {name: {"image_auroc": metrics.image_auroc(defect, fuse(part))} for name, fuse in FUSIONS.items()}  # type: ignore[arg-type]


MEASURES: dict[str, Callable[[Task], Figures]] = {
    "detection": detection,
    "shipped": shipped,
    "mechanism": mechanism_tests,
    "allocation": allocation_tests,
    "texture": texture,
    "richness": richness_measure,
    "maps": maps,
    "diffuse": diffuse,
    "priors": priors,
    "draws": draws,
    "fusions": fusions,
}
