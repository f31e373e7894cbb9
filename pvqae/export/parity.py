"""Does an exported folder give the bundle's scores? Asked of its own `run.py`, in a process without this project.

Does a bundle give the scores that were evaluated? `pvqae parity` asks it before anything is registered.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pvqae.core import config
from pvqae.core.errors import DataError, ParityError
from pvqae.core.layout import Layout, find_root
from pvqae.core.progress import track, working
from pvqae.inference import bundle
from pvqae.inference.bundle import Detector
from pvqae.samples import images, manifest

# Largest difference by precision. Of 8 bit, what lies halfway goes either way in each engine, and layers carry it on.
LIMITS = {"float32": 1e-4, "int8": 0.5}
_SHAPES = ((256, 256), (400, 300), (120, 500), (640, 320))  # of made-up images, where there are no others


@dataclass(frozen=True)
class Parity:
    """Largest differences to the bundle over `images`: of the score in deviations of normals, relative where it is
    above 1; of the map in those of one of the memories that it sums, relative where a value is above the sum of their
    weights. `worst` is the image. Median milliseconds per image, one thread each.
    """

    images: int
    score: float
    anomaly_map: float
    worst: str
    bundle_ms: float
    exported_ms: float
    limit: float = LIMITS["float32"]

    def words(self) -> str:
        return (
            f"parity on {self.images} images: largest difference {self.score:.1e} of a score, {self.anomaly_map:.1e} "
            f"of a map (limit {self.limit:g}); {self.exported_ms:.0f} ms per image, "
            f"{self.bundle_ms:.0f} ms by the bundle, one thread"
        )

    def facts(self) -> dict[str, float | int]:
        """Return what the card keeps: rounded, without times."""
        differences = {"score": self.score, "anomaly_map": self.anomaly_map, "limit": self.limit}
        return {"images": self.images, **{name: float(f"{value:.2g}") for name, value in differences.items()}}

    def insist(self) -> None:
        """Raise `ParityError` above the limit."""
        if not max(self.score, self.anomaly_map) <= self.limit:
            raise ParityError(
                f"{self.worst}: its score and map differ from the bundle's by {self.score:.1e} and "
                f"{self.anomaly_map:.1e}, limit {self.limit:g}; nothing was written. Use the bundle itself"
            )


def check(detector: Detector, folder: Path, files: Sequence[Path]) -> Parity:
    """Score `files` with the bundle and with `folder`'s run.py."""
    if not files:
        raise DataError("export: no images to check the parity on; name a folder of images")
    with tempfile.TemporaryDirectory() as scratch:
        with working(f"run.py scores {len(files)} images"):
            answers = _exported(folder, files, Path(scratch))
        rows = [
            _differences(detector, file, answer, Path(scratch) / f"{number}.npy")
            for number, (file, answer) in enumerate(zip(track(files, "parity", len(files)), answers, strict=True))
        ]
    scores, maps, ours = (np.array(column) for column in zip(*rows, strict=True))
    worst = files[int(np.maximum(scores, maps).argmax())]
    theirs = [answer["milliseconds"] for answer in answers]
    milliseconds = float(np.median(ours)), float(np.median(theirs))
    limit = LIMITS[config.Model(**detector.config["model"]).precision]
    return Parity(len(files), scores.max(), maps.max(), worst.as_posix(), *milliseconds, limit)


def _exported(folder: Path, files: Sequence[Path], maps: Path) -> list[dict[str, float]]:
    """Return what run.py says of each file; isolated, so that it finds nothing but installed packages.

    Raises `DataError` for an image without a score, `ParityError` where the script fails.
    """
    command = [sys.executable, "-I", str(folder / "run.py"), "--threads", "1", "--maps", str(maps)]
    names = "".join(f"{file.absolute()}\n" for file in files)
    done = subprocess.run(command, input=names, capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer in answers:
        if "error" in answer:
            raise DataError(f"{answer['image']}: parity can't be checked on it: {answer['error']}")
    if done.returncode:
        raise ParityError(f"{folder / 'run.py'} failed: {done.stderr.strip()[-500:]}")
    return answers


def _differences(detector: Detector, file: Path, answer: dict[str, float], kept: Path) -> tuple[float, float, float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begun = time.perf_counter()
        scored = detector.score(file)
        took = (time.perf_counter() - begun) * 1000
    finally:
        torch.set_num_threads(threads)
    found = np.load(kept, allow_pickle=False)
    kept.unlink()
    if found.shape != scored.anomaly_map.shape:
        return np.inf, np.inf, took
    return (
        _away(np.array(answer["score"]), np.array(scored.image_score)),
        # A map is a sum of deviations with weights, and so are its differences.
        _away(found, scored.anomaly_map, max(1.0, sum(detector.scorer.score.map.values()))),
        took,
    )


def _away(found: np.ndarray, wanted: np.ndarray, unit: float = 1.0) -> float:
    away = np.abs(found.astype(np.float64) - wanted) / np.maximum(unit, np.abs(wanted))
    return float(away.max()) if np.isfinite(away).all() else np.inf


def sample(
    bundle: Path, folder: Path | None, scratch: Path, tell: Callable[[str], None], workspaces: Sequence[Path] = ()
) -> list[Path]:
    """Return the images to check parity on: those below `folder`; `tell` says which.

    Without it: the test images of the class in the first of `workspaces` that has some, by default those of this
    project; else made-up ones, which are written to `scratch`.
    """
    if folder is not None:
        tell(f"parity is checked on the images below {folder}")
        return _in_folder(folder)
    facts = json.loads((bundle / "config.json").read_text("utf-8")) if (bundle / "config.json").is_file() else {}
    dataset, category = facts.get("dataset", ""), facts.get("category", "")
    for place in workspaces or _workspaces(dataset):
        if found := _of_class(Layout(place, dataset), category):
            tell(f"parity is checked on the test images of {category} in {place}")
            return found
    tell("no test images of the class here: parity is checked on made-up images; better name some with --images")
    return _made_up(scratch)


def _workspaces(dataset: str) -> tuple[Path, ...]:
    """Return where this project may have the images of a dataset: in itself, or where a run with --set worked."""
    root = find_root(Path.cwd()) or Path.cwd()
    return root, root / ".pvqae" / "runs" / dataset


def _of_class(layout: Layout, category: str) -> list[Path]:
    """Return the test images of a class that are in a workspace; none if its manifest does not know them."""
    if not layout.name or not layout.manifest.is_file():
        return []
    rows = manifest.read(layout.manifest)
    named = layout.data / "raw" / layout.name
    mine = rows[(rows["category"] == category) & (rows["split"] == "test")]
    files = [layout.data / path for path in mine["path"]]
    return [file for file in files if file.is_relative_to(named) and file.is_file()]


def _in_folder(folder: Path) -> list[Path]:
    """Return all images below `folder`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images; correct the path")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in images.SUFFIXES and path.is_file())


def _made_up(folder: Path) -> list[Path]:
    """Write soft noise in several shapes to `folder`; return the files."""
    rng, files = np.random.default_rng(0), []
    for number, (height, width) in enumerate(_SHAPES):
        coarse = torch.from_numpy(rng.random((1, 3, 9, 9), dtype=np.float32))
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
        noisy = smooth[0].permute(1, 2, 0).numpy() + 0.05 * rng.standard_normal((height, width, 3), dtype=np.float32)
        files.append(folder / f"{number}.png")
        images.write(files[-1], noisy.clip(0, 1))
    return files


def compare(folder: Path, images_csv: Path, data_root: Path, rows: int) -> dict[str, float | int]:
    """Score `rows` images of an evaluation's images.csv again, evenly spread; the largest difference of a score."""
    table = pd.read_csv(images_csv, dtype=str, keep_default_na=False).astype({"image_score": float})
    chosen = table.iloc[:: max(1, len(table) // max(1, rows))].head(rows)
    detector = bundle.load(folder)
    again = detector.score_many(zip(chosen["sample_id"], chosen["path"], strict=True), data_root)
    pairs = zip(again, chosen["image_score"], strict=True)
    differences = [abs(scored.image_score - evaluated) for scored, evaluated in pairs]
    return {"max_abs_difference": max(differences, default=float("inf")), "images": len(differences)}
