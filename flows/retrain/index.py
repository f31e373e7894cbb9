"""Index of a dataset's images, to find copies of them and images that cannot be of their class.

Thumbnails are T x T pixels, grey, 0 .. 255.
"""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from flows.retrain.ledger import Entry, IntakePaths
from pvqae.core.config import Params
from pvqae.core.errors import DataError
from pvqae.core.files import whole_file
from pvqae.core.layout import Layout
from pvqae.datasets import facts, inspection, sources
from pvqae.datasets.layouts import Found
from pvqae.samples import images

_Thumb = NDArray[np.float16]
_T = 32
_FEWEST = 8  # images of a class whose mean says what they have in common
# Of what validation allows: it looks at the class's training normals only, which differ a little from all its normals,
# and an image that passes here must not stop the training there. Known normals reach 3.1 of 8 sigmas.
_SHARE_OF_LIMIT = 0.75
_STATISTICS = ("mean", "std", "sharpness")
_SIZES, _SHAPES = 2.0, 1.2  # by which factor an image may be larger or smaller, wider or narrower than its class's


@dataclass(frozen=True, eq=False)
class Known:
    """What is remembered of an image."""

    name: str
    category: str
    normal: bool
    sha256: str
    width: int
    height: int
    mean: float
    std: float
    sharpness: float
    thumb: _Thumb

    @classmethod
    def read(cls, path: Path, name: str, category: str, normal: bool, bits: images.Bits = "auto") -> Self | str:
        """Decode a file with `image.bits`; return why it can't be read where it can't, without the file's name."""
        facts = inspection.inspect(Path(path.name), path.parent, bits)
        if isinstance(facts, str):
            return facts.removeprefix(f"{path.name}: ")
        try:
            thumb = _thumbnail(images.read(path, bits=bits))
        except DataError as error:
            return str(error)
        header = facts.header
        return cls(
            name, category, normal, facts.sha256, header.width, header.height, **vars(facts.statistics), thumb=thumb
        )


def _thumbnail(image: images.Floats) -> _Thumb:
    """Reduce an image (H0, W0, 3) by area to (T, T)."""
    grey = Image.fromarray(image.mean(axis=2, dtype=np.float32) * np.float32(255))
    return np.asarray(grey.resize((_T, _T), Image.Resampling.BOX), dtype=np.float16)


class _Thumbs:
    """Thumbnails of a class, with what they have in common taken off, and their names."""

    def __init__(self, images: Sequence[Known]) -> None:
        flat = np.stack([image.thumb for image in images]).astype(np.float32).reshape(len(images), -1)
        self._mean = flat.mean(axis=0) if len(images) >= _FEWEST else np.zeros_like(flat[0])
        self._rows = [_normalised(flat - self._mean)]
        self._names = [image.name for image in images]

    def _row(self, image: Known) -> NDArray[np.float32]:
        return _normalised(image.thumb.astype(np.float32).reshape(1, -1) - self._mean)

    def add(self, image: Known) -> None:
        self._rows.append(self._row(image))
        self._names.append(image.name)

    def nearest(self, image: Known) -> tuple[float, str]:
        row = self._row(image)[0]
        alike = np.concatenate([rows @ row for rows in self._rows])
        return float(alike.max()), self._names[int(alike.argmax())]


class Index:
    """The images known so far. A new image is compared with all of its class, of every split."""

    def __init__(self, images: Iterable[Known] = ()) -> None:
        self._classes: dict[str, list[Known]] = {}
        self._thumbs: dict[str, _Thumbs] = {}
        self._names: dict[str, str] = {}
        for image in images:
            self.add(image)

    def add(self, image: Known) -> None:
        """Add an image that comes in."""
        self._classes.setdefault(image.category, []).append(image)
        self._names.setdefault(image.sha256, image.name)
        if image.category in self._thumbs:
            self._thumbs[image.category].add(image)

    def copy_of(self, sha256: str) -> str:
        """Return the name of the image with the same bytes, "" when there is none."""
        return self._names.get(sha256, "")

    def nearest(self, image: Known) -> tuple[float, str]:
        """Return the correlation with the most similar image of its class, in -1 .. 1, and that image's name.

        The class's mean is taken off first: photographs of equal parts in one place correlate by 0.9998 (bottles),
        what is left of them by 0.97, while a JPEG of quality 50 of the same photograph keeps 0.994. -1 without images.
        """
        own = self._classes.get(image.category, [])
        if not own:
            return -1.0, ""
        if image.category not in self._thumbs:
            self._thumbs[image.category] = _Thumbs(own)
        return self._thumbs[image.category].nearest(image)

    def misfit(self, image: Known) -> str:
        """Return why an image cannot be a normal of its class: size, shape or exposure; "" when it can."""
        own = [other for other in self._classes.get(image.category, []) if other.normal]
        return (_size_misfit(image, own) or _exposure_misfit(image, own)) if own else ""

    @classmethod
    def build(cls, found: Sequence[Found], raw: Path, cache: Path, bits: images.Bits = "auto") -> Self:
        """Index a dataset's images; decode only those that the file `cache` lacks, and leave out unreadable ones."""
        before = _load(cache)
        states = [f"{_state(item, raw)}|{bits}" for item in found]
        with ThreadPoolExecutor() as pool:

            def look(pair: tuple[Found, str]) -> Known | str:
                item, state = pair
                return before.get(state) or Known.read(
                    item.path, item.path.relative_to(raw).as_posix(), item.category, item.label == "normal", bits
                )

            seen = list(pool.map(look, zip(found, states, strict=True)))
        after = {state: image for state, image in zip(states, seen, strict=True) if isinstance(image, Known)}
        if after.keys() != before.keys():
            _save(after, cache)
        return cls(after.values())

    @classmethod
    def of(cls, paths: IntakePaths, params: Params) -> Self:
        """Index all images of the dataset."""
        raw = Layout(paths.root, paths.dataset).raw
        return cls.build(
            sources.scan(params.data.source, raw, data=params.data), raw, paths.home / "index.npz", params.image.bits
        )

    def remember(self, paths: IntakePaths, entries: Iterable[Entry], bits: images.Bits) -> None:
        """Add the kept images of `entries`: they are on their way into the dataset, or held."""
        for entry in entries:
            file = paths.file(entry)
            if file and file.exists():
                image = Known.read(file, entry.key, entry.category, not entry.defect, bits)
                if isinstance(image, Known):
                    self.add(image)


def _normalised(x: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = x - x.mean(axis=-1, keepdims=True)
    result: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-9)
    return result


def _size_misfit(image: Known, own: Sequence[Known]) -> str:
    sizes = {(other.width, other.height) for other in own}
    found = f"found {image.width} x {image.height}"
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        same = (image.width, image.height) == (width, height)
        return "" if same else f"expected {width} x {height} pixels as all of its class, {found}"
    sides, shapes = [max(size) for size in sizes], [width / height for width, height in sizes]
    fits = min(sides) / _SIZES <= max(image.width, image.height) <= max(sides) * _SIZES
    fits = fits and min(shapes) / _SHAPES <= image.width / image.height <= max(shapes) * _SHAPES
    return "" if fits else f"expected sides of about {min(sides)} to {max(sides)} pixels as its class, {found}"


def _exposure_misfit(image: Known, own: Sequence[Known]) -> str:
    """Return what validation would stop the training for."""
    rows = [(other.category, *(getattr(other, name) for name in _STATISTICS)) for other in [*own, image]]
    frame = pd.DataFrame(rows, columns=["category", *_STATISTICS])
    learnt = pd.Series([True] * len(own) + [False])
    if not facts.shows_something(frame, frame["std"], learnt).iloc[-1]:
        return f"the picture is blank: its grey levels spread by {image.std:g}"
    limit = _SHARE_OF_LIMIT * facts.LIMIT
    for name in _STATISTICS:
        away = float(facts.deviations(frame, frame[name], learnt).iloc[-1])
        if abs(away) > limit:
            return f"expected {name} within {limit:g} robust sigmas of its class, found {away:.1f}"
    return ""


def _state(item: Found, raw: Path) -> str:
    state = item.path.stat()
    name = item.path.relative_to(raw).as_posix()
    return f"{name}|{state.st_size}|{state.st_mtime_ns}|{item.category}|{item.label}"


def _load(cache: Path) -> dict[str, Known]:
    if not cache.exists():
        return {}
    try:
        with np.load(cache, allow_pickle=False) as stored:
            rows, thumbs = json.loads(str(stored["rows"])), stored["thumbs"]
        return {state: Known(**row, thumb=thumb) for (state, row), thumb in zip(rows, thumbs, strict=True)}
    except Exception:  # a cache: whatever is wrong with it, the images themselves are there
        return {}


def _save(images: dict[str, Known], cache: Path) -> None:
    rows = [(state, _row(image)) for state, image in images.items()]
    thumbs = np.stack([image.thumb for image in images.values()]) if images else np.zeros((0, _T, _T), np.float16)
    with whole_file(cache) as part, part.open("wb") as file:
        np.savez(file, rows=np.array(json.dumps(rows)), thumbs=thumbs)


def _row(image: Known) -> dict[str, Any]:
    return {key: value for key, value in vars(image).items() if key != "thumb"}
