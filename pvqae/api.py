"""Three lines of Python: fit a detector to good parts, score a photograph, save and load.

    detector = pvqae.fit("photos/good")
    found = detector.score("part.png")
    detector.save("bundle")

`fit` runs the stages of dvc.yaml, each once, in a folder of its own that it removes: a bundle is made in one way only.
H0 W0 pixels of a photograph.
"""

import base64
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from pvqae.calibration.calibrate import calibrate
from pvqae.core import config
from pvqae.core.errors import ConfigError, DataError, ValidationFailed
from pvqae.core.files import Sealed, whole_folder
from pvqae.core.layout import Layout
from pvqae.datasets import build, layouts, validation
from pvqae.inference import bundle
from pvqae.inference.scoring import Scored
from pvqae.prior import learn
from pvqae.report import pictures
from pvqae.samples import classes, images, manifest
from pvqae.training import network

Array = NDArray[Any]  # H0 x W0 (x 3): uint8, uint16, or floats in [0, 1]
Source = Path | str | Array
_DATASET = "python"
_BITS = {"uint8": 8, "uint16": 16}


def fit(normals: Source | Iterable[Source] | pd.DataFrame, params: Any = None, name: str = "part") -> "Detector":
    """Return a detector of what is not in `normals`, photographs of good parts only.

    `normals`: a folder (with all below it), several files or arrays, or a frame with the column `path`. Several
    photographs of one part are files named PART__VIEW, or rows of a frame with the same `part`: a part is then judged
    by what other parts taught, without which the threshold is too low. One photograph is enough to begin with; a
    detector of fewer than `calibration.promise_from` (8) promises no false-alarm rate, and says so.

    `params`: `Params`, or sections of params.yaml as a mapping, e.g. {"calibration": {"false_alarm_rate": 0.01}}. By
    default no network is trained (train.steps: 0), which changes no score and no threshold; {"train": {"steps": 60}}
    adds what it says of resolutions. `name`: of the class, in the bundle.

    Raises `DataError` for what is no photograph, `ValidationFailed` for photographs that no detector should learn from
    (blank, not of one camera, fewer than `data.min_normals`), each with the repair, `ConfigError` for `params` or a
    `name` that can't be.
    """
    if wrong := classes.unusable(name):
        raise ConfigError(f"name: expected {wrong}, found {name!r}")
    settings = _settings(params)
    with tempfile.TemporaryDirectory(prefix="pvqae-fit-", ignore_cleanup_errors=True) as folder, _torch_as_before():
        layout = Layout(Path(folder), _DATASET)
        place = layout.raw / name / "good"
        given = _gather(normals, place)
        one = {"classes": [name]}
        graph = {
            "dataset": _DATASET,
            "networks": {name: one},
            "priors": {name: one | {"allocations": layout.network(name).relative_to(layout.root).as_posix()}},
            "classes": {name: {"network": name, "prior": name}},
        }
        layout.classes_file.write_text(yaml.safe_dump(graph), "utf-8")
        with _named(given, place.relative_to(layout.data).as_posix()) as named:
            build.build(layout.root, settings)
            _check(layout, settings, named)
        network.train(layout, settings, name)
        learn.train(layout, settings, name)
        calibrate(layout, settings, name)
        return load(layout.bundle(name))


def load(folder: Path | str) -> "Detector":
    """Verify and load a bundle.

    Raises `IntegrityError` if anything is not what was sealed, or what was sealed is no bundle. The detector does not
    need the folder any more.
    """
    files = bundle.read(Path(folder))
    found = bundle.parse(files)
    return Detector(found.scorer, found.config, found.card, found.sha256, files)


@dataclass(frozen=True, eq=False)
class Detector(bundle.Detector):
    """A detector with the files of its bundle."""

    files: Sealed

    def score(self, image: Source, sample_id: str = "") -> "Verdict":
        """Score a file or an array. Raises `DataError` for what is no photograph."""
        if isinstance(image, Path | str):
            pixels, sample_id = images.read(image, bits=self.scorer.image.bits), sample_id or str(image)
        else:
            pixels = _pixels(np.asarray(image), "the image")
        scored = self.scorer.one(pixels, sample_id)
        return Verdict(**{field.name: getattr(scored, field.name) for field in fields(Scored)}, detector=self)

    def save(self, folder: Path | str) -> Path:
        """Write the bundle, whole or not at all; an earlier bundle in `folder` is replaced. Return the folder.

        Raises `ConfigError` for a folder with anything else in it.
        """
        out = Path(folder)
        if out.exists() and not (out.is_dir() and ((out / "SHA256SUMS").is_file() or not any(out.iterdir()))):
            raise ConfigError(
                f"{out}: expected a new folder or a bundle to replace, found something else; name another"
            )
        with whole_folder(out) as part:
            for name, data in self.files.files.items():
                (part / name).write_bytes(data)
        return out

    def __repr__(self) -> str:
        return f"<{self._words()}>"

    def _repr_html_(self) -> str:
        low, high = self.card["interval_95"]
        photographs, parts = _counted(self.card["n"], "photograph"), _counted(self.card["n_groups"], "good part")
        promised = f"target {self.card['target_rate']:.1%}, expected {low:.1%} to {high:.1%} (95 %)"
        rows = {
            "class": self.config["category"],
            "threshold": f"{self.threshold:.4g}",
            "learnt from": f"{photographs} of {parts}",
            "false alarms": self.card.get("no_promise") or promised,
            "bundle": f"{self.sha256[:12]}, {sum(map(len, self.files.files.values())) / 1e6:.1f} MB",
        }
        warned = [words for words in self.card["warnings"] if words != self.card.get("no_promise")]
        rows |= {f"warning {number}": words for number, words in enumerate(warned, 1)}
        cells = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in rows.items())
        return f"<table>{cells}</table>"

    def _words(self) -> str:
        few = ", no rate promised" if self.card.get("no_promise") else ""
        return f"pvqae detector of {self.config['category']}, threshold {self.threshold:.4g}{few}, {self.sha256[:12]}"


@dataclass(frozen=True, eq=False)
class Verdict(Scored):
    """What a detector says of one photograph."""

    detector: Detector

    @property
    def score(self) -> float:
        """The image score, in deviations of the scores of good parts; above `threshold` it is a defect."""
        return self.image_score

    @property
    def threshold(self) -> float:
        return self.detector.threshold

    @property
    def decision(self) -> str:
        """`defect` or `normal`."""
        return "defect" if self.image_score > self.threshold else "normal"

    @cached_property
    def map(self) -> NDArray[np.float32]:
        """H0 x W0, how unusual each pixel is."""
        height, width = self.canvas.image_shape
        drawn = Image.fromarray(self.anomaly_map.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(drawn, dtype=np.float32)

    @cached_property
    def mask(self) -> images.Mask | None:
        """H0 x W0, what lies above the pixel threshold; None of a bundle of 0.1, which has none."""
        return self.detector.mask(self)

    @cached_property
    def regions(self) -> list[dict[str, Any]] | None:
        """The connected regions of the mask, the highest first: box, area, share of the photograph, highest value."""
        marks = self.detector.marks(self)
        return None if marks is None else marks["regions"]

    def __repr__(self) -> str:
        return f"<{self._words()}>"

    def _words(self) -> str:
        said = f"{self.decision}: score {self.score:.4g}, threshold {self.threshold:.4g}"
        if self.regions is None:
            return said
        return f"{said}, {_counted(len(self.regions), 'region')} marked"

    def _repr_html_(self) -> str:
        drawn = pictures.over(self.picture, self.anomaly_map, self.detector.card)
        shown = ((pictures.thumbnail(self.picture), "photograph"), (drawn, "anomaly map, marks outlined"))
        figures = "".join(
            '<figure style="margin:0"><img alt="{0}" src="data:image/webp;base64,{1}"><figcaption>{0}</figcaption>'
            "</figure>".format(words, base64.b64encode(pictures.webp(picture)).decode("ascii"))
            for picture, words in shown
        )
        text = f"{self.sample_id} {self._words()}".strip()
        return f'<p>{escape(text)}</p><div style="display:flex;gap:1em">{figures}</div>'


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _settings(given: Any) -> config.Params:
    """Return checked params of one class of a folder, from `Params` or sections.

    Nothing is set aside for a test or a gate: who fits by hand has other photographs for them.
    """
    if isinstance(given, config.Params):
        values = given.model_dump(mode="json")
    elif given is None or isinstance(given, Mapping):
        values = {"train": {"steps": 0}, **(given or {})}
    else:
        raise ConfigError(f"params: expected Params or a mapping of sections, found {type(given).__name__}")
    data = {"name": _DATASET, "source": "folder", "categories": [], "protocol": "grouped"}
    shares = {"calibrate": values.get("data", {}).get("shares", {}).get("calibrate", 0.15), "gate": 0.0, "test": 0.0}
    values["data"] = {**values.get("data", {}), **data, "shares": shares}
    return config.parse(values)


@contextmanager
def _named(given: Mapping[str, str], place: str) -> Iterator[Callable[[str], str]]:
    """Yield a function that puts names as `given` into a text about their copies below `place`; errors get them, too.

    What is said of params.yaml and of a dataset's commands is left out: there is neither.
    """
    copies = re.compile("|".join(re.escape(f"{place}/{name}") for name in sorted(given, key=len, reverse=True)))

    def named(text: str) -> str:
        plain = copies.sub(lambda found: given[found[0].removeprefix(f"{place}/")], text)
        return re.sub(r", then run `python -m flows data add NAME ROOT`| in params\.yaml", "", plain)

    try:
        yield named
    except DataError as error:
        raise type(error)(named(str(error))) from None


def _check(layout: Layout, settings: config.Params, named: Callable[[str], str]) -> None:
    """Check the photographs, and warn of what taught nothing and of what looks odd."""
    out = pd.read_csv(layout.quarantine, dtype="str", keep_default_na=False)
    told = [f"{path} taught nothing: {reason}" for path, reason in out.itertuples(index=False)]
    try:
        noted = validation.check(layout, settings, judged=False).warnings
        told += [text for text in noted if not text.startswith("promised_rate") and layout.quarantine.name not in text]
    except ValidationFailed as error:
        raise ValidationFailed(str(error).rpartition("\nOpen ")[0]) from None  # the page is gone with its folder
    except ImportError:
        told.append("the photographs are not checked (blank, torn, of another camera): install pvqae[validation]")
        manifest.write_rows(manifest.read(layout.manifest), classes.read(layout.classes_file, layout.name), layout)
    for text in told:
        warnings.warn(named(text), stacklevel=4)


@contextmanager
def _torch_as_before() -> Iterator[None]:
    """Give torch's settings back: stages set it up for a process of their own."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)


def _gather(normals: Source | Iterable[Source] | pd.DataFrame, place: Path) -> dict[str, str]:
    """Copy photographs to `place` and return what each copy is called by who gave it, a folder by one name for all.

    Raises `DataError` for what is no photograph.
    """
    if isinstance(normals, Path | str):
        folder = Path(normals)
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of photographs of good parts, found none; correct the path")
        shutil.copytree(folder, place)
        if not any(layouts.is_image(file.name) for file in place.rglob("*")):
            raise DataError(
                f"{folder}: expected photographs of good parts, found none of {', '.join(sorted(images.SUFFIXES))}"
            )
        return {"": f"{folder}/"}
    parts: list[str] | None = None
    if isinstance(normals, pd.DataFrame):
        if "path" not in normals:
            raise DataError(f"normals: expected a frame with the column path, found {', '.join(map(str, normals))}")
        if "part" in normals:
            parts = [f"{code:06}__" for code in pd.factorize(normals["part"], use_na_sentinel=False)[0]]
        normals = list(normals["path"])
    if not isinstance(normals, Iterable):
        raise DataError(f"normals: expected a folder, several photographs or a frame, found {normals!r}")
    if isinstance(normals, np.ndarray) and normals.ndim < 3:
        raise DataError(f"normals: expected several photographs, found one array of shape {normals.shape}")
    place.mkdir(parents=True)
    given: dict[str, str] = {}
    for number, one in enumerate(normals):
        if not isinstance(one, Path | str):
            name = f"{number:06}.png"
            _write(np.asarray(one), place / name, f"normals[{number}]")
        elif not Path(one).is_file():
            raise DataError(f"{one}: expected the file of a photograph, found none; correct the path")
        else:
            name = Path(one).name if parts is None else f"{parts[number]}{number:06}{Path(one).suffix}"
            name = name if not (place / name).exists() else f"{number:06}-{name}"
            shutil.copyfile(one, place / name)
        given[name] = str(one) if isinstance(one, Path | str) else f"normals[{number}]"
    if not given:
        raise DataError("normals: expected photographs of good parts, found none")
    return given


def _write(array: Array, file: Path, what: str) -> None:
    pixels = _pixels(array, what)
    grey = array.ndim == 2 or array.shape[-1] == 1
    deep = grey and array.dtype.name != "uint8"  # PNG by Pillow has no more than 8 bits of a colour
    images.write(file, pixels, channels=1 if grey else 3, bit_depth=16 if deep else 8)


def _pixels(array: Array, what: str) -> images.Floats:
    """Return an array as H0 x W0 x 3 floats in [0, 1]. Raises `DataError` for any other array."""
    expected = "H x W or H x W x 3 pixels, uint8, uint16 or floats in [0, 1]"
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if not shaped or not array.size or not (array.dtype.name in _BITS or array.dtype.kind == "f"):
        found = f"{array.dtype.name} of shape {array.shape}" if array.ndim else f"{array.item()!r:.40}"
        raise DataError(f"{what}: expected {expected}, found {found}")
    grey = array[..., None] if array.ndim == 2 else array
    values = np.broadcast_to(grey, (*grey.shape[:2], 3)).astype(np.float32)
    if (bits := _BITS.get(array.dtype.name)) is not None:
        return values / np.float32(2**bits - 1)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise DataError(f"{what}: expected {expected}, found floats from {low:.4g} to {high:.4g}; divide by the white")
    return values
