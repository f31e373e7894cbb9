"""What 8 bit costs: a class's detector of a float32 network beside one of the same network in INT8, on test images."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from flows.experiments import trial
from flows.experiments.page import markdown
from flows.experiments.subjects import Subject
from pvqae.core import config
from pvqae.core.errors import ParityError
from pvqae.core.progress import track

FIGURES = ("image_auroc", "pixel_auroc", "aupro")
_PRECISIONS = ("float32", "int8")


def compare(subjects: Sequence[Subject], params: config.Params, seeds: Sequence[int], work: Path) -> pd.DataFrame:
    """Fit and judge each class in both precisions with each seed.

    Returns a row per class and seed: class, seed, and of both precisions `FIGURES` (pixel_auroc and aupro None without
    masks) and milliseconds (from a file to its score), as image_auroc_float32, image_auroc_int8 and so on.
    """
    rows, runs = [], [(subject, seed) for subject in subjects for seed in seeds]
    for subject, seed in track(runs, "both precisions", len(runs)):
        row: dict[str, object] = {"class": subject.name, "seed": seed}
        for precision in _PRECISIONS:
            model = params.model.model_copy(update={"precision": precision})
            settings = params.model_copy(update={"model": model, "seed": seed})
            found = trial.BenchmarkContext(subject, settings, work).outcome()
            facts = {name: found.figures[name] for name in FIGURES} | {"milliseconds": found.milliseconds}
            row |= {f"{name}_{precision}": value for name, value in facts.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def losses(found: pd.DataFrame) -> pd.DataFrame:
    """Return by how much each figure is lower with INT8: a row per class, means over the seeds."""
    pairs = {name: found[f"{name}_float32"] - found[f"{name}_int8"] for name in FIGURES}
    return pd.DataFrame(pairs).astype(float).groupby(found["class"], sort=False).mean()


def page(found: pd.DataFrame) -> str:
    """Return the means over the seeds as Markdown: float32 → int8."""
    heads = ["class", *(name.replace("_", " ") for name in FIGURES), "ms per image"]
    lines = []
    for name, rows in found.groupby("class", sort=False):
        means = rows.drop(columns=["class", "seed"]).astype(float).mean()
        cells = [f"{means[f'{key}_float32']:.4f} → {means[f'{key}_int8']:.4f}" for key in FIGURES]
        cells.append(f"{means['milliseconds_float32']:.0f} → {means['milliseconds_int8']:.0f}")
        lines.append([str(name), *cells])
    return "\n".join(markdown(heads, lines)).replace("nan → nan", "-")


def insist(found: pd.DataFrame, limit: float) -> None:
    """Raise `ParityError` where the image AUROC of a class falls by more than `limit` in the mean over the seeds."""
    lost = losses(found)["image_auroc"]
    if not (lost <= limit).all():
        what = ", ".join(f"{name} by {value:.4f}" for name, value in lost[~(lost <= limit)].items())
        raise ParityError(
            f"int8 lowers the image AUROC of {what}; allowed {limit:g}: keep model.precision float32 there"
        )
