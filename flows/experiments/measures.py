"""What an experiment measures of one run: one class, one variant, one seed."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from flows.experiments import mechanism, trial
from flows.experiments.catalogue import Figures, Row, with_params
from flows.experiments.subjects import Subject
from flows.experiments.trained import Trained, judge_grouped, numbers, train
from pvqae.core import config
from pvqae.core.seeding import numpy_generator
from pvqae.datasets import anomalies
from pvqae.evaluation import metrics
from pvqae.inference.scoring import Scored
from pvqae.report import pictures
from pvqae.samples import geometry, images
from pvqae.training.losses import costs

_DIFFUSE = ("colour_shift", "blur", "stain")
_EXTENTS = (0.02, 0.1, 0.3, 1.0)
_WIDEST = 512  # pixels of a strip of pictures
_BRIGHT = 6.0  # deviations of S_prior that are drawn brightest


@dataclass(frozen=True, eq=False)
class Task:
    """`others` are the experiment's further classes, `pictures` a folder for pictures of free images or None."""

    params: config.Params
    subject: Subject
    others: tuple[Subject, ...]
    work: Path
    pictures: Path | None = None

    def train(self, overrides: dict[str, Any] | None = None) -> Trained:
        """Train the class, with other params where `overrides` says so."""
        params = with_params(self.params, overrides) if overrides else self.params
        return train(params, self.subject, self.work)

    def trial(self) -> trial.TrialResult:
        """Train and judge the class as it is shipped."""
        return trial.BenchmarkContext(self.subject, self.params, self.work).outcome()


def _detection(task: Task) -> Figures:
    """Train, fit, judge."""
    return {"": task.train().figures()}


def _shipped(task: Task) -> Figures:
    """Measure everything as a class is shipped, its chosen read-out included; calibration takes no part."""
    outcome = task.trial()
    sizes = {"megabytes": outcome.megabytes, "milliseconds": outcome.milliseconds}
    return {"": numbers(outcome.figures) | sizes}


def _mechanism(task: Task) -> Figures:
    """Run the three tests of `flows.experiments.mechanism`; test 3 gives a row per budget."""
    found = task.train()
    raised = mechanism.shuffled_raise(found.networks, found.learnt, found.params.seed)
    rows: Figures = {"": found.use() | {"shuffled_raise": raised}}
    for name, put in mechanism.BUDGETS.items():
        judged = replace(found, networks=put(found.networks)).figures()
        rows[f"budget {name}"] = {key: judged[key] for key in ("image_auroc", "pixel_auroc")}
    return rows


def _texture(task: Task) -> Figures:
    """Measure detection, use of the levels, and how far the cells of normals differ in richness."""
    found = task.train()
    return {"": found.figures() | found.use() | {"richness_spread": float(found.richness()[0].std())}}


def _richness(task: Task) -> Figures:
    """Measure `texture`, and how the measure of richness ranks the cells of normals."""
    found = task.train()
    gap = mechanism.use(task.train({"train.richness": "none"}).networks, found.learnt).saving
    rich, cells = found.richness()
    png = torch.tensor([_png_bytes(cell) for cell in cells])
    correlations = {
        "png_correlation": mechanism.rank_correlation(rich, png),
        "gap_correlation": mechanism.rank_correlation(rich, gap),
    }
    return {"": found.figures() | found.use() | {"richness_spread": float(rich.std())} | correlations}


def _png_bytes(patch_PP: Tensor) -> float:
    """Return what a lossless coder needs for the grey patch in 8 bits: complexity that no one here defined."""
    buffer = io.BytesIO()
    Image.fromarray((patch_PP.clamp(0, 1) * 255).round().byte().numpy()).save(buffer, "PNG")
    return float(buffer.tell())


def _maps(task: Task) -> Figures:
    """Measure what is spent where there is a defect, and where there is none."""
    found = task.train()
    cells = []
    for row, scored in found.scored(from_files=task.pictures is not None):
        cells.append(_cells(row, scored, found))
        if task.pictures is not None:
            _draw(row, scored, found, task.pictures)
    table = pd.concat(cells)
    normal, defect = table[table["image"] == "normal"], table[table["defect"]]
    both = pd.concat([normal, defect])
    means = {
        f"{column}_{name}": float(part[column].mean()) if len(part) else None
        for column in ("spent", "changed")
        for name, part in (("normal", normal), ("defect", defect))
    }
    auroc = metrics.image_auroc(both["defect"].to_numpy(dtype=bool), both["prior"].to_numpy())
    return {"": means | {"cell_auroc": auroc}}


def _cells(row: dict[str, Any], scored: Scored, found: Trained) -> pd.DataFrame:
    """Return one row per coarse cell that is image."""
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


def _draw(row: dict[str, Any], scored: Scored, found: Trained, folder: Path) -> None:
    """Draw a strip: picture, expected and actual resolutions (dark coarse, light fine), S_prior."""
    shape, levels = scored.anomaly_map.shape, found.params.model.levels
    mask = geometry.mask_of(row["mask_path"], shape, found.subject.root)
    strip = [
        pictures.outline(scored.picture, mask),
        pictures.level_map(scored.expected_levels, levels, (shape[0], shape[1])),
        pictures.level_map(scored.levels, levels, (shape[0], shape[1])),
        pictures.colours(np.clip(scored.part_maps["s_prior"] / _BRIGHT, 0, 1)),
    ]
    gap = np.full((shape[0], 6, 3), 255, dtype=np.uint8)
    parts = [piece for picture in strip for piece in (picture, gap)][:-1]
    small = pictures.thumbnail(np.concatenate(parts, axis=1), _WIDEST)
    file = folder / f"{found.subject.name}-{row['kind'] or 'good'}.png"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        images.write(file, (small / 255).astype(np.float32))


def _diffuse(task: Task) -> Figures:
    """Measure score against extent: a row per kind and extent, against the untouched normals of the test."""
    found = task.train()
    scorer = found.scorer()
    rows = found.test[found.test["label"] == "normal"].head(12)
    originals = {
        name: images.read(path, task.subject.root, task.params.image.bits)
        for name, path in zip(rows["sample_id"], rows["path"], strict=True)
    }
    normal = [scorer.one(picture, name) for name, picture in originals.items()]
    out: Figures = {}
    for kind in _DIFFUSE:
        for extent in _EXTENTS:
            # One stream per image and kind: a larger extent is the same anomaly, grown.
            made = (
                anomalies.ANOMALIES[kind](picture, numpy_generator(0, "diffuse", kind, name), extent)[0]
                for name, picture in originals.items()
            )
            out[f"{kind} {extent:g}"] = _against(normal, [scorer.one(picture) for picture in made])
    return out


def _against(normal: list[Scored], defective: list[Scored]) -> Row:
    label = np.repeat([False, True], [len(normal), len(defective)])
    every = normal + defective
    scores = {
        **{f"{part}_image_auroc": [item.parts[part] for item in every] for part in ("s_prior", "product")},
        "image_auroc": [item.image_score for item in every],
    }
    aurocs = {name: metrics.image_auroc(label, np.array(values)) for name, values in scores.items()}
    return aurocs | {"deviations": float(np.median(scores["image_auroc"][len(normal) :]))}


def _priors(task: Task) -> Figures:
    """Measure detection with a prior that was fitted on the classes of its group; each class has its own network."""
    alone = with_params(task.params, {"prior.grouping": "per_class"})
    members = [train(alone, subject, task.work) for subject in (task.subject, *task.others)]
    return {"": judge_grouped(task.params, members, task.work)}


MEASURES: dict[str, Callable[[Task], Figures]] = {
    "detection": _detection,
    "shipped": _shipped,
    "mechanism": _mechanism,
    "texture": _texture,
    "richness": _richness,
    "maps": _maps,
    "diffuse": _diffuse,
    "priors": _priors,
}
