"""The gate's cost for a class in a workspace of few or many: two bundles loaded, each gate image scored by both, a
fresh process for parity, the verdict."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from flows.core.processes import Supervisor
from flows.gate import measure, rules
from flows.gate.measure import Pair
from flows.workspace.workspace import Workspace
from pvqae.core import config, files
from pvqae.samples import images, manifest
from tests.bench.rows import seconds
from tests.chaos.conftest import make

EACH, GATE = 20, 12  # rows of a class, and how many of them are the gate's
SIDE = 64
CARD = {"threshold": 1.0, "map_threshold": 2.0, "map_scale": [0.0, 4.0], "interval_95": [0.0, 0.5], "target_rate": 0.05}


def fill(root: Path, params: config.Params, names: list[str]) -> None:
    """A manifest of all classes, whose images are the same files, and the gate's rows of each."""
    space = Workspace(root, root, params)
    rng, below = np.random.default_rng(0), f"raw/{params.data.name}"
    for number in range(EACH):
        images.write(space.layout.data / below / f"{number}.png", rng.random((SIDE, SIDE, 3), dtype=np.float32))
    paths = [f"{below}/{number}.png" for number in range(EACH)]
    digests = [files.digest(space.layout.data / path) for path in paths]
    own = pd.DataFrame({"path": paths, "sha256": digests, "label": ["normal", "defect"] * (EACH // 2)})
    own = own.assign(mask_path="", kind="good", width=SIDE, height=SIDE, channels=3, bit_depth=8, captured_at="")
    own = own.assign(split=["gate"] * GATE + ["train"] * (EACH - GATE), source="folder", number=range(EACH))
    every = []
    for name in names:
        ids = own["number"].map(lambda number, name=name: f"{name}/{number}")
        rows = own.assign(category=name, sample_id=ids, group_id=ids)[list(manifest.COLUMNS)]
        manifest.write(rows[rows["split"] == "gate"], space.layout.class_rows(name, "gate"))
        every.append(rows)
    manifest.write(pd.concat(every), space.layout.manifest)


def judged(root: Path, params: config.Params, names: list[str]) -> float:
    """Seconds of the verdicts on `names`."""
    space = Workspace(root, root, params)
    with tempfile.TemporaryDirectory() as folder, Supervisor() as supervisor:
        challenger = make(Path(folder) / "challenger", Path(folder) / "normals", card=CARD)
        champion = Path(shutil.copytree(challenger, Path(folder) / "champion"))

        def work() -> None:
            for name in names:
                pair = Pair(challenger, champion, {}, ())
                found = measure.measure(space, name, pair, params.gate, params.compute, supervisor)
                rules.judge(found.measured, params.gate)

        return seconds(work)
