"""The classes that experiments train on, as checked manifest rows."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from flows.experiments.bench_subjects import Subject as Subject
from flows.experiments.bench_views import key_of, source_of
from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.files import whole_folder
from pvqae.core.layout import Layout
from pvqae.datasets import build, demo
from pvqae.datasets.splits import fraction
from pvqae.samples import manifest


@dataclass(frozen=True)
class Known:
    """Where a class comes from; of a large one a `share` of its groups is enough to answer a question."""

    dataset: str  # demo, or a folder below the datasets' root
    category: str
    share: float = 1.0


KNOWN: dict[str, Known] = {
    "brick": Known("demo", "brick"),
    "gravel": Known("demo", "gravel"),
    "grass": Known("demo", "grass"),
    "bottle": Known("mvtec", "bottle"),
    "toothbrush": Known("mvtec", "toothbrush"),
    "magnetic_tile": Known("mtsd", "magnetic_tile"),
    "magnetic_tile_third": Known("mtsd", "magnetic_tile", share=1 / 3),
}


def load(name: str, datasets: Path, folder: Path, params: config.Params) -> Subject:
    """The class `name`, its manifest built below `folder` at first use. `datasets` holds the folders mvtec and mtsd.

    Raises `DataError` where its images are not there.
    """
    known = KNOWN[name]
    layout = _built(known.dataset, datasets, folder, params)
    rows = manifest.read(layout.manifest)
    kept = rows[(rows["category"] == known.category) & (rows["split"] != "gate")]
    chosen = [fraction("experiment", group) < known.share for group in kept["group_id"]]
    return Subject(name, kept[chosen].reset_index(drop=True), layout.data)


def _built(dataset: str, datasets: Path, folder: Path, params: config.Params) -> Layout:
    """A workspace with the manifest of `dataset`, official or grouped split."""
    data = config.Data(name=dataset, source=dataset, shares=params.data.shares, max_quarantine=0.05)
    key = key_of(data.model_dump(mode="json"), source_of("pvqae/datasets", "pvqae/samples"), str(datasets.resolve()))
    place = folder / f"{dataset}-{key}"
    layout = Layout(place, dataset)
    if layout.manifest.exists():
        return layout
    with whole_folder(place) as part:
        _bring(dataset, datasets, Layout(part, dataset).raw)
        build.build(part, params.model_copy(update={"data": data}))
    return layout


def _bring(dataset: str, datasets: Path, raw: Path) -> None:
    """Linked where the file system allows it: the manifest's reader follows no symbolic link out of the workspace."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    if dataset == "demo":
        demo.make(raw)
    elif (datasets / dataset).is_dir():
        shutil.copytree(datasets / dataset, raw, copy_function=_link)
    else:
        raise DataError(f"{datasets / dataset}: expected images here, found none; set PVQAE_DATASETS or give --data")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def redrawn(subject: Subject, draw: int) -> Subject:
    """The class with another draw of its groups of normals: as many in each split as before. Draw 0 is that of the
    manifest; groups with a defect are test in all."""
    rows = subject.rows
    free = rows.groupby("group_id").filter(lambda group: (group["label"] == "normal").all())
    split_of = dict(zip(free["group_id"], free["split"], strict=True))
    if not draw or not split_of:
        return subject
    order = sorted(split_of, key=lambda group: fraction(f"draw {draw}", group))
    drawn = dict(zip(order, sorted(split_of.values()), strict=True))
    splits = [drawn.get(group, split) for group, split in zip(rows["group_id"], rows["split"], strict=True)]
    return replace(subject, rows=rows.assign(split=splits))
