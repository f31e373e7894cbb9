"""Compare a chain of warm starts with a training from scratch, to see whether warm starts drift.

New normals of a class arrive in batches, each training starts from the one before, and the last one is compared with a
training of the same normals from scratch. Every link is a small workspace in which the real stages run, folds and
threshold included. All share one feature cache that is empty at the start, so the counts say how many images each link
has decoded.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pvqae.calibration.calibrate import calibrate
from pvqae.core import config, plain_yaml
from pvqae.core.errors import DataError
from pvqae.core.files import write_text
from pvqae.core.layout import Layout
from pvqae.datasets import splits
from pvqae.evaluation import stage
from pvqae.prior import learn
from pvqae.samples import classes, manifest
from pvqae.samples.manifest import TRAINING
from pvqae.training import network, warm

_FIGURES = ("image_auroc", "pixel_auroc", "s_prior_image_auroc", "s_recon_image_auroc", "prior_cross_entropy")
_SCRATCH = "scratch"


@dataclass(frozen=True)
class _Link(Layout):
    """A workspace of its own whose images are elsewhere."""

    images: Path  # the root of the manifest's paths

    @property
    def data(self) -> Path:
        return self.images

    @property
    def classes_file(self) -> Path:
        return self.root / "data" / "classes.yaml"

    @property
    def rows(self) -> Path:
        return self.root / "data" / "rows"

    @property
    def features(self) -> Path:
        return self.root.parent / "features"


def bench(layout: Layout, params: config.Params, category: str, batches: int) -> str:
    """Run `warm_chain` on a workspace's class; return the table, and how far its end is from scratch."""
    found = pd.concat([manifest.read(layout.class_rows(category, part)) for part in manifest.PARTS])
    work = layout.work(f"warm-{category}", network.work_key(layout.class_rows(category, "normals"), params))
    table = warm_chain(params, found, layout.data, work / str(batches), batches)
    last, scratch = table.iloc[-2], table.iloc[-1]
    change, share = last["image_auroc"] - scratch["image_auroc"], last["steps"] / scratch["steps"]
    end = f"image AUROC at the end {change:+.4f} against scratch, {share:.0%} of the steps a link"
    return f"{table.round(4).to_string(index=False)}\n{end}"


def warm_chain(
    params: config.Params, found: pd.DataFrame, data_root: Path, work: Path, batches: int = 5
) -> pd.DataFrame:
    """Train the chain; return a row per link and one from scratch: training data, steps, reading and figures.

    `found` are the manifest rows of one class (normals of train and calibrate, test), paths below `data_root`. Links
    that were finished below `work` are kept. Raises `DataError` where there are fewer parts than batches.
    """
    category = str(found["category"].iloc[0])
    arrived = list(_arrivals(found, batches))
    table: list[dict[str, Any]] = []
    before: _Link | None = None
    for number, frame in enumerate(arrived, start=1):
        link = _Link(work / f"link-{number}", params.data.name, data_root)
        table.append(_link(params, link, category, frame, before))
        before = link
    # Last: it would fill the cache that the links' counts are about.
    table.append(_link(params, _Link(work / _SCRATCH, params.data.name, data_root), category, arrived[-1], None))
    return pd.DataFrame(table)


def _arrivals(found: pd.DataFrame, batches: int) -> Iterator[pd.DataFrame]:
    """Yield the rows that are there after each batch; which part comes when is a hash of its name."""
    learnt = found["split"].isin(TRAINING)
    groups = sorted(set(found[learnt]["group_id"]), key=lambda group: splits.fraction("arrival", group))
    if len(groups) < batches:
        raise DataError(f"expected normals of at least {batches} parts, found {len(groups)}; ask for fewer batches")
    for last in np.linspace(0, len(groups), batches + 1).round().astype(int)[1:]:
        yield found[~learnt | found["group_id"].isin(groups[:last])]


def _link(
    params: config.Params, link: _Link, category: str, frame: pd.DataFrame, before: _Link | None
) -> dict[str, Any]:
    file = link.root / "row.json"
    if not file.exists():
        _begin(link, category, frame, before)
        network.train(link, params, category)
        learn.train(link, params, category)
        calibrate(link, params, category)
        write_text(file, json.dumps(_row(link, category, frame, stage.run(link, params, category))))
    row: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return row


def _begin(link: _Link, category: str, frame: pd.DataFrame, before: _Link | None) -> None:
    """Write the files that the stages of a link read."""
    if before is not None:
        parent = link.root / "data" / "parents" / category
        warm.keep(before.network(category), before.root / "kept")
        warm.place(before.bundle(category), before.root / "kept", parent)
    item = {"classes": [category], "parent": f"data/parents/{category}" if before else classes.FROM_SCRATCH}
    content = {
        "dataset": link.name,
        "networks": {category: item},
        "priors": {category: {"classes": [category], "allocations": f"models/{link.name}/networks/{category}"}},
        "classes": {category: {"network": category, "prior": category}},
    }
    write_text(link.classes_file, plain_yaml.dump(content))
    normals = frame[frame["split"].isin(TRAINING)]
    manifest.write(normals, link.network_rows(category))
    for part, wanted in manifest.PARTS.items():
        manifest.write(frame[frame["split"].isin(wanted)], link.class_rows(category, part))


def _row(link: _Link, category: str, frame: pd.DataFrame, figures: dict[str, Any]) -> dict[str, Any]:
    folder = link.network(category)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text("utf-8").splitlines()]
    shipped = [entry for entry in history if entry["fold"] == "full"]
    origin = json.loads((folder / "origin.json").read_text("utf-8"))
    timing = json.loads(link.timing(category).read_text("utf-8"))
    return {
        "link": link.root.name,
        "normals": int(frame["split"].isin(TRAINING).sum()),
        "warm": sum(value == "parent" for value in origin["fits"].values()),  # fits
        "fits": len(origin["fits"]),
        "steps": len(shipped),
        **{key: timing["reading"][key] for key in ("decoded", "backbone_views", "cache_hits")},
        "seconds": timing["train_seconds"],
        "reconstruction": float(np.mean([entry["reconstruction"] for entry in shipped[-5:]])),
        "codebook_usage": figures["codebook_usage"],
        **{key: figures[key] for key in _FIGURES},
    }
