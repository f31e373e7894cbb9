"""The classes that a bench measures: manifests of datasets outside any workspace, built once in a work folder."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from flows.experiments.bench_views import key_of, source_of
from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.files import whole_folder
from pvqae.core.layout import Layout
from pvqae.datasets import build, demo, sources
from pvqae.samples import manifest

DEMO = "demo"


@dataclass(frozen=True, eq=False)
class Subject:
    """One class: its manifest rows without the gate's, paths below `root`."""

    name: str
    rows: pd.DataFrame
    root: Path


@dataclass(frozen=True)
class Place:
    """Where a class's images are; `folder` is None for the demo, which is made."""

    source: str
    category: str
    folder: Path | None


def known(data: Path | None) -> list[Place]:
    """The classes below `data`, and the demo's. `data` holds folders named after sources (mvtec, btad, mtsd, folder),
    or is itself laid out as one of them."""
    origins: list[tuple[str, Path]] = []
    if data is not None:
        origins = [(name, data / name) for name in sources.SOURCES if name != DEMO and (data / name).is_dir()]
        origins = origins or [(name, data) for name in sources.SOURCES if name != DEMO and _parts(name, data)][:1]
    found = [
        Place(source, category, folder) for source, folder in origins for category in sorted(_parts(source, folder))
    ]
    return found + [Place(DEMO, name, None) for name in sorted(demo.TURNS)]


def _parts(source: str, root: Path) -> dict[str, Path]:
    """Folders of the classes. A class that takes its name from the root would lose it in the copy: not one of them."""
    return {
        name: part for name, part in sources.SOURCES[source].parts(root).items() if part != root or name != root.name
    }


def choose(places: Sequence[Place], wanted: Sequence[str]) -> list[Place]:
    """The places of the `wanted` classes in that order; `demo` stands for all of its classes. None wanted: all but the
    demo, or the demo if there is nothing else.

    Raises `DataError` for a class that is not there.
    """
    if not wanted:
        return [place for place in places if place.source != DEMO] or list(places)
    chosen = []
    for name in wanted:
        own = [place for place in places if name in (place.category, DEMO) and (name != DEMO or place.source == DEMO)]
        if not own:
            there = ", ".join(dict.fromkeys(place.category for place in places))
            raise DataError(f"{name}: expected one of the classes {there}; set PVQAE_DATASETS or give --data FOLDER")
        chosen += own if name == DEMO else own[:1]
    return list(dict.fromkeys(chosen))


def load(places: Sequence[Place], folder: Path, params: config.Params) -> list[Subject]:
    """Each class with its rows; manifests are built below `folder` at first use, one per dataset and set of classes."""
    datasets: dict[tuple[str, Path | None], list[str]] = {}
    for place in places:
        datasets.setdefault((place.source, place.folder), []).append(place.category)
    layouts = {key: _built(*key, sorted(names), folder, params) for key, names in datasets.items()}
    frames = {key: manifest.read(layout.manifest) for key, layout in layouts.items()}
    subjects = []
    for place in places:
        key = (place.source, place.folder)
        rows = frames[key]
        own = rows[(rows["category"] == place.category) & (rows["split"] != "gate")]
        subjects.append(Subject(place.category, own.reset_index(drop=True), layouts[key].data))
    return subjects


def _built(source: str, origin: Path | None, names: list[str], folder: Path, params: config.Params) -> Layout:
    data = params.data.model_copy(update={"name": source, "source": source, "categories": tuple(names), "root": ""})
    key = key_of(
        data.model_dump(mode="json"), str(origin and origin.resolve()), source_of("pvqae/datasets", "pvqae/samples")
    )
    place = folder / f"{source}-{key}"
    if not Layout(place, source).manifest.exists():
        with whole_folder(place) as part:
            _bring(source, origin, names, Layout(part, source).raw)
            build.build(part, params.model_copy(update={"data": data}))
    return Layout(place, source)


def _bring(source: str, origin: Path | None, names: list[str], raw: Path) -> None:
    """Copies: the manifest's reader follows no link out of its workspace, and originals stay untouched."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    if origin is None:
        demo.make(raw)
        return
    parts = sources.SOURCES[source].parts(origin)
    if all(part.parent == origin for part in parts.values()):
        for name in names:
            shutil.copytree(parts[name], raw / parts[name].name)
    else:  # the root is the class
        shutil.copytree(origin, raw)
