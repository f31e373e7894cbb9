"""A train flow that has nothing to do: seconds, and what it imports all the same."""

import re
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from pvqae.samples import images
from tests.bench.processes import run
from tests.bench.rows import Row, Size, at_most
from tests.clones import TINY, Clone, clone

SETTINGS = (*TINY, "train.steps=10", "prior.steps=5", "evaluation.pictures=0", "data.categories=[]")
IMAGES = 24  # of a class of the hundred
LEAST = (
    *("data.source=folder", "data.name=many", "data.shares={calibrate: 0.3, gate: 0, test: 0.3}", "data.min_normals=4"),
    *("image.size=64", "model.width=8", "model.codes=16", "memory.codes=16", "train.steps=2", "train.batch=4"),
    *("train.kappa=0.01", "prior.steps=2", "prior.width=16", "calibration.folds=2", "evaluation.pictures=0"),
    "compute.threads=1",
)
HEAVY = ("torch", "great_expectations", "sklearn", "skimage")
NOTHING = "Nothing changed: no stage ran, no version registered."


def noop(size: Size) -> list[Row]:
    settings = (*SETTINGS, "data.categories=[brick]") if size.quick else SETTINGS
    with tempfile.TemporaryDirectory() as folder:
        project = clone(Path(folder))
        train(project, settings)
        rows = again(project, settings, 1 if size.quick else 3, 15, size)
        found = imported(train(project, settings, again=True, environ={"PYTHONPROFILEIMPORTTIME": "1"})[0])
    heavy = "flow with nothing to do: imports of " + ", ".join(HEAVY)
    return [*rows, Row(heavy, ", ".join(found) or "none", "", None, "none", not found)]


def hundred(size: Size) -> list[Row]:
    """The same with a hundred classes, which are made by stages of a few steps each."""
    count = size.of(2, 100)
    with tempfile.TemporaryDirectory() as folder:
        project = clone(Path(folder))
        photographs(Path(folder) / "photographs", count)
        settings = (*LEAST, f"data.root={folder}/photographs")
        train(project, settings)
        return again(project, settings, count, 60, size)


def photographs(root: Path, classes: int) -> None:
    """Noise: nothing of it is looked at."""
    rng = np.random.default_rng(0)
    for number in range(classes):
        for index in range(IMAGES):
            file = root / f"class_{number:03}" / "good" / f"{index}.png"
            images.write(file, rng.random((64, 64, 3), dtype=np.float32) * 0.2 + 0.4)


def again(project: Clone, settings: tuple[str, ...], classes: int, floor: float, size: Size) -> list[Row]:
    walls = [train(project, settings, again=True)[1] for _ in range(size.of(1, 3))]
    wall = statistics.median(walls)
    return [Row(f"flow with nothing to do, {classes} classes", f"{wall:.1f} s", "", None, *at_most(wall, floor, " s"))]


def train(
    project: Clone, settings: tuple[str, ...], again: bool = False, environ: dict[str, str] | None = None
) -> tuple[str, float]:
    """What `flows train` printed, and its seconds."""
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "flows", "train", *words]
    text, cost = run(command, project.root, project.environ | (environ or {}))
    if again and NOTHING not in text:
        raise RuntimeError(f"expected a run that changes nothing, found {text[-2000:]}")
    return text, cost.seconds


def imported(text: str) -> list[str]:
    """Which heavy packages a process or its children imported, from Python's own list of imports."""
    return [name for name in HEAVY if re.search(rf"^import time:.*\| +{name}$", text, re.MULTILINE)]
