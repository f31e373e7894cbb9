"""A train flow that has nothing to do: seconds, and what it imports all the same."""

import re
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench.processes import run
from tests.bench.rows import Row, Size, at_most
from tests.end_to_end.test_train_flow import TINY, Clone, clone

SETTINGS = (*TINY, "train.steps=10", "prior.steps=5", "evaluation.pictures=0", "data.categories=[]")
HEAVY = ("torch", "great_expectations", "sklearn", "skimage")
NOTHING = "Nothing changed: no stage ran, no version registered."


def noop(size: Size) -> list[Row]:
    settings = (*SETTINGS, "data.categories=[brick]") if size.quick else SETTINGS
    count = 1 if size.quick else 3
    with tempfile.TemporaryDirectory() as folder:
        project = clone(Path(folder))
        train(project, settings)
        walls = [train(project, settings, again=True)[1] for _ in range(size.of(1, 3))]
        found = imported(train(project, settings, again=True, environ={"PYTHONPROFILEIMPORTTIME": "1"})[0])
    wall = statistics.median(walls)
    return [
        Row(f"flow with nothing to do, {count} classes", f"{wall:.1f} s", "", None, *at_most(wall, 15, " s")),
        Row("flow with nothing to do: imports of " + ", ".join(HEAVY), ", ".join(found) or "none", "", None, "none",
            not found),
    ]  # fmt: skip


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
