"""Validation of a manifest of a million rows: seconds and memory of `pvqae data check`, as a command of its own."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from pvqae.core import config
from pvqae.core.files import write_text
from pvqae.core.layout import Layout
from pvqae.datasets.validation import _MEASURED
from pvqae.samples import manifest
from tests.bench.processes import Cost, run
from tests.bench.rows import Row, Size, at_most

CLASSES = 20
SHARES = {"train": 0.7, "calibrate": 0.15, "gate": 0.05, "test": 0.1}


def validation(size: Size) -> list[Row]:
    count = size.of(2_000, 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, count)
        cost = check(root)
    fast, small = at_most(cost.seconds, 60, " s"), at_most(cost.peak_mb, 2048, " MB")
    what, note = f"validation of a {count:,}-row manifest", f"{cost.cpu:.0f} s of processor time"
    return [
        Row(what, f"{cost.seconds:.1f} s", "", None, *fast, note),
        Row(f"{what}, memory", f"{cost.peak_mb:.0f} MB", "", None, *small, "peak, with all that is imported"),
    ]


def check(root: Path) -> Cost:
    """`pvqae data check` in `root`; it has to find everything in order."""
    done, cost = run([str(Path(sys.executable).parent / "pvqae"), "data", "check"], root, dict(os.environ))
    if "hold every expectation" not in done:
        raise RuntimeError(f"the check of a good manifest said: {done[-2000:]}")
    return cost


def make(root: Path, count: int) -> None:
    """A good dataset's tables below `root`: normals of `CLASSES` classes, a group for every four images."""
    layout = Layout(root, "many")
    params = config.parse({"data": {"name": "many", "source": "folder"}})
    write_text(root / "params.yaml", config.dump(params))
    rows = frame(count)
    manifest.write(rows, layout.manifest)
    rng = np.random.default_rng(0)
    measured = pd.DataFrame({"sha256": rows["sha256"]} | {n: rng.uniform(0.4, 0.5, count) for n in _MEASURED[1:]})
    manifest.write_csv(measured.round(6), layout.statistics)
    manifest.write_csv(pd.DataFrame(columns=["path", "reason"]), layout.quarantine)
    manifest.write_csv(pd.DataFrame(columns=["path", "kind", "reason"]), layout.ignored)
    names = sorted(set(rows["category"]))
    lines = [f"  {name}: {{classes: [{name}]}}" for name in names]
    priors = [f"  {name}: {{classes: [{name}], allocations: models/many/networks/{name}}}" for name in names]
    members = [f"  {name}: {{network: {name}, prior: {name}}}" for name in names]
    text = ["dataset: many", "networks:", *lines, "priors:", *priors, "classes:", *members]
    write_text(layout.classes_file, "\n".join(text) + "\n")


def frame(count: int) -> pd.DataFrame:
    """Manifest rows; nothing but numbers and names is drawn, so a million takes seconds."""
    number = np.arange(count)
    group = number // 4
    part = np.arange(group[-1] + 1) // CLASSES  # of its class, so that each class has all splits
    splits = np.array(list(SHARES))[np.searchsorted(np.cumsum(list(SHARES.values())), part % 20 / 20 + 0.01)]
    category = [f"class_{item % CLASSES:02}" for item in group]
    ids = [f"{name}/{item:08}" for name, item in zip(category, number, strict=True)]
    values = {
        "sample_id": ids,
        "path": [f"raw/many/{item}.png" for item in ids],
        "sha256": [f"{item:064x}" for item in number],
        "category": category,
        "group_id": [f"{name}/part_{item}" for name, item in zip(category, group, strict=True)],
        "split": splits[group],
    }
    same = {"label": "normal", "kind": "good", "mask_path": "", "width": 1024, "height": 768, "channels": 3}
    return pd.DataFrame(values | same | {"bit_depth": 8, "source": "folder", "captured_at": ""})[list(manifest.COLUMNS)]
