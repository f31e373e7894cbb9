"""What Prefect, MLflow, DVC and validation add to the library's own work on one class."""

import os
import sys
import tempfile
from pathlib import Path

from tests.bench.noop import train
from tests.bench.processes import run
from tests.bench.rows import Row, Size, at_most
from tests.clones import TINY, clone

SETTINGS = (*TINY, "evaluation.pictures=6")
# The verbs' own functions in one process; the validation's seconds do not count, its rows are needed.
LIBRARY = """
import time
from pathlib import Path
start = time.perf_counter()
from pvqae.core import runtime
from pvqae.datasets import build, demo
from pvqae.cli.console import workspace
from pvqae.report import report
from pvqae.evaluation import stage
from pvqae.calibration import calibrate
from pvqae.training import network
from pvqae.prior import learn as prior
layout, params = workspace()
demo.make(layout.raw)
build.build(Path.cwd(), params)
checked = time.perf_counter()
from pvqae.datasets import validation
validation.check(layout, params)
checked = time.perf_counter() - checked
network.train(layout, params, "brick")
prior.train(layout, params, "brick")
calibrate.calibrate(layout, params, "brick")
stage.run(layout, params, "brick")
report.report(layout)
print("SECONDS", time.perf_counter() - start - checked)
"""


def orchestration(size: Size) -> list[Row]:
    settings = (*SETTINGS, f"train.steps={size.of(10, 300)}")
    with tempfile.TemporaryDirectory() as folder:
        project = clone(Path(folder) / "flow")
        whole = train(project, settings)[1]
        alone = library(project.space, clone(Path(folder) / "alone").root)
    added = whole - alone
    note = f"{added / 300:.0%} of a training of five minutes (floor 10 %); registration with parity included"
    what = "flow beside the library alone, one class: seconds added"
    return [Row(what, f"{added:.1f} s", f"{whole:.1f} s and {alone:.1f} s", None, *at_most(added, 20, " s"), note)]


def library(made: Path, root: Path) -> float:
    """Seconds of the same work in `root`, with the params and classes of the workspace `made`."""
    for name in ("params.yaml", "data/classes.yaml"):
        (root / name).write_bytes((made / name).read_bytes())
    text, _ = run([sys.executable, "-c", LIBRARY], root, dict(os.environ) | {"PYTHONPATH": str(root)})
    return float(text.split("SECONDS")[1])
