"""The classes that experiments and benches measure: checked manifest rows, and views as detectors read them.

Both are made at first use and found again by the hash of all that they depend on. n views; S side of a view.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from torch import Tensor

from flows.experiments.catalogue import CLASSES
from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.files import whole_folder, write_tensors
from pvqae.core.layout import Layout
from pvqae.core.tensors import checksum, read_tensors
from pvqae.datasets import build, demo, sources
from pvqae.datasets.splits import fraction
from pvqae.features.examples import Examples, prepare
from pvqae.model.backbones import Backbone, Features
from pvqae.samples import geometry, manifest

_PROJECT = Path(__file__).parents[2]
_DEMO = "demo"
VIEW_SOURCES = ("pvqae/samples", "pvqae/features", "pvqae/model")  # the code that decides what a view's features are


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


def dataset_roots(given: Sequence[Path | str] = ()) -> list[Path]:
    """Return the folders that hold datasets: those `given`, else those of $PVQAE_DATASETS, separated as in $PATH, else
    shared/datasets beside the project and its folder `more`, where they are there.

    Raises `DataError` for a folder that was named and is missing.
    """
    named = [Path(folder) for folder in given or os.environ.get("PVQAE_DATASETS", "").split(os.pathsep) if folder]
    for folder in named:
        if not folder.expanduser().is_dir():
            raise DataError(f"{folder}: expected a folder with datasets, found none; mend --data or PVQAE_DATASETS")
    shared = _PROJECT.parent / "shared" / "datasets"
    return [folder.expanduser() for folder in named] or [s for s in (shared, shared / "more") if s.is_dir()]


def find_places(roots: Sequence[Path]) -> list[Place]:
    """List the classes below `roots`, and the demo's. Of a class that two roots have, the first one's counts.

    A root holds folders named after sources (mvtec, btad, mtsd, folder), or is itself laid out as one of them.
    """
    found: dict[tuple[str, str], Place] = {}
    for root in roots:
        named = [name for name, one in sources.SOURCES.items() if name != _DEMO and not one.asks]
        origins = [(name, root / name) for name in named if (root / name).is_dir()]
        origins = origins or [(name, root) for name in named if _parts(name, root)][:1]
        for source, folder in origins:
            for name in sorted(_parts(source, folder)):
                found.setdefault((source, name), Place(source, name, folder))
    return [*found.values(), *(Place(_DEMO, name, None) for name in sorted(demo.TURNS))]


def _parts(source: str, root: Path) -> dict[str, Path]:
    """Folders of the classes. A class that takes its name from the root would lose it in the copy: not one of them."""
    parts = sources.SOURCES[source].parts(root)
    return {name: part for name, part in parts.items() if part != root or name != root.name}


def choose(places: Sequence[Place], wanted: Sequence[str]) -> list[Place]:
    """Return the places of the `wanted` classes in that order; `demo` stands for all of its classes.

    Without `wanted`, all but the demo, or the demo if there is nothing else. Raises `DataError` for an unknown class.
    """
    if not wanted:
        return [place for place in places if place.source != _DEMO] or list(places)
    chosen = []
    for name in wanted:
        if name == _DEMO:
            own = [place for place in places if place.source == _DEMO]
        else:
            own = [place for place in places if place.category == name][:1]
        if not own:
            there = ", ".join(dict.fromkeys(place.category for place in places))
            raise DataError(f"no class {name}; there are {there}; set PVQAE_DATASETS or give --data FOLDER")
        chosen += own
    return list(dict.fromkeys(chosen))


def load(places: Sequence[Place], folder: Path, params: config.Params) -> list[Subject]:
    """Read each class's rows; manifests are built below `folder`, one per dataset and set of classes."""
    datasets: dict[tuple[str, Path | None], list[str]] = {}
    for place in places:
        datasets.setdefault((place.source, place.folder), []).append(place.category)
    layouts = {key: _built(*key, sorted(names), folder, params) for key, names in datasets.items()}
    frames = {key: manifest.read(layout.manifest) for key, layout in layouts.items()}
    subjects = []
    for place in places:
        rows, root = frames[place.source, place.folder], layouts[place.source, place.folder].data
        own = rows[(rows["category"] == place.category) & (rows["split"] != "gate")]
        subjects.append(Subject(place.category, own.reset_index(drop=True), root))
    return subjects


def load_known(name: str, roots: Sequence[Path], folder: Path, params: config.Params) -> Subject:
    """Read the class `name` of the catalogue below `roots`. Raises `DataError` where its images are not there."""
    known = CLASSES[name]
    mates = {one.category for one in CLASSES.values() if one.dataset == known.dataset}
    places = [place for place in find_places(roots) if place.source == known.dataset and place.category in mates]
    if known.category not in {place.category for place in places}:
        searched = ", ".join(map(str, roots)) or "no folder"
        raise DataError(
            f"{known.dataset}: no images of {known.category} in {searched}; set PVQAE_DATASETS or give --data"
        )
    found = next(one for one in load(places, folder, params) if one.name == known.category)
    chosen = [fraction("experiment", group) < known.share for group in found.rows["group_id"]]
    return Subject(name, found.rows[chosen].reset_index(drop=True), found.root)


def find(wanted: Sequence[str], roots: Sequence[Path], folder: Path, params: config.Params) -> list[Subject]:
    """Read the `wanted` classes, see `choose`; names of the catalogue that stand for a share of a class come last."""
    shares = [name for name in wanted if name in CLASSES and CLASSES[name].share < 1]
    whole = [name for name in wanted if name not in shares]
    found = load(choose(find_places(roots), whole), folder, params) if whole or not shares else []
    return [*found, *(load_known(name, roots, folder, params) for name in shares)]


def _built(source: str, origin: Path | None, names: list[str], folder: Path, params: config.Params) -> Layout:
    """Build a workspace with the manifest of some classes of a dataset."""
    changes = {"name": source, "source": source, "categories": tuple(names), "root": ""}
    data = params.data.model_copy(update=changes)
    code = source_of("pvqae/datasets", "pvqae/samples")
    place = folder / f"{source}-{key_of(data.model_dump(mode='json'), str(origin and origin.resolve()), code)}"
    if not Layout(place, source).manifest.exists():
        with whole_folder(place) as part:
            _bring(source, origin, names, Layout(part, source).raw)
            build.build(part, params.model_copy(update={"data": data}))
    return Layout(place, source)


def _bring(source: str, origin: Path | None, names: list[str], raw: Path) -> None:
    """Link or copy the images: the manifest's reader follows no symbolic link out of its workspace."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    if origin is None:
        demo.make(raw)
        return
    parts = sources.SOURCES[source].parts(origin)
    if all(part.parent == origin for part in parts.values()):
        for name in names:
            shutil.copytree(parts[name], raw / parts[name].name, copy_function=_link)
        beside = sources.SOURCES[source].beside
        if beside and (origin / beside).is_dir():
            shutil.copytree(origin / beside, raw / beside, copy_function=_link)
    else:  # the root is the class
        shutil.copytree(origin, raw, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@cache
def source_of(*parts: str) -> str:
    """Hash the code in these files or folders of the project; read once, as the process itself reads it."""
    total = hashlib.sha256()
    for part in parts:
        place = _PROJECT / part
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(file.relative_to(_PROJECT).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def key_of(*facts: object) -> str:
    """Return 16 hex digits that name work: equal facts, equal work."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(examples: Examples) -> str:
    """Hash all that a fit sees."""
    return checksum(_tensors(examples))


def examples_of(
    rows: pd.DataFrame, data_root: Path, params: config.Params, backbone: Backbone, folder: Path
) -> Examples:
    """Read the views of `rows` (manifest rows), or the file below `folder` that an earlier run left.

    Features are in half precision, about 1 MB a view at 256 px; of a trained backbone the pixels are kept instead.
    """
    facts = (
        params.image.model_dump(),
        params.model.backbone,
        params.model.levels,
        params.train.richness,
        backbone.facts(),
    )
    names = rows[["path", "sha256"]].values.tolist()
    file = folder / f"{key_of(names, facts, backbone.weights_sha256, source_of(*VIEW_SOURCES))}.safetensors"
    try:
        return _from_tensors(read_tensors(file))
    except (FileNotFoundError, SafetensorError):
        pass
    tensors = _tensors(prepare(rows, data_root, params.image, backbone, params.train.richness))
    write_tensors(file, tensors)
    return _from_tensors(tensors)  # of one memory layout with what is read back: sums then agree to the last bit


def _tensors(found: Examples) -> dict[str, Tensor]:
    tensors = {"rows": found.rows, "cost": found.cost, "valid": found.valid}
    if found.images is not None:
        tensors["images"] = found.images
    if found.features is not None:
        tensors |= {f"level_{r}": x for r, x in enumerate(found.features.levels)}
        tensors["target"] = found.features.target
    return {name: x.contiguous() for name, x in tensors.items()}


def _from_tensors(tensors: dict[str, Tensor]) -> Examples:
    levels = [tensors[f"level_{r}"] for r in range(sum(name.startswith("level_") for name in tensors))]
    features = Features(levels, tensors["target"]) if levels else None
    return Examples(tensors["rows"], tensors.get("images"), features, tensors["cost"], tensors["valid"])


@dataclass(frozen=True, eq=False)
class _ImageViews:
    """One image: features of its views in single precision, and where the views are."""

    row: int  # position in the frame
    features: Features
    valid: Tensor  # B x S x S
    canvas: geometry.Canvas  # its pixels are black: only the geometry is kept


def each_image(examples: Examples, rows: pd.DataFrame, image: config.Image) -> Iterator[_ImageViews]:
    """Yield one image after another, in the order of `rows`, the manifest rows that `examples` were made of."""
    for position, (height, width) in enumerate(zip(rows["height"], rows["width"], strict=True)):
        batch = examples.batch((examples.rows == position).nonzero()[:, 0])
        assert batch.features is not None, "only frozen features are kept"
        yield _ImageViews(position, batch.features, batch.valid, blank_canvas(int(height), int(width), image))


@lru_cache(maxsize=8)
def blank_canvas(height: int, width: int, image: config.Image) -> geometry.Canvas:
    """Return the canvas of an image of this size, with black pixels."""
    return geometry.canvas(np.zeros((height, width, 3), dtype=np.float32), image)
