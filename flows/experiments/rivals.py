"""Other libraries beside ours: each is installed on request, in an environment of its own, and runs there as a process.

They are handed the views that ours reads (decoded, laid out at model size; padding repeats the border), the same
normals, and the weights of the same frozen network. They return image scores and maps; judging is ours. n test images.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import yaml

from flows.experiments.baselines import BaselineResult
from flows.experiments.subjects import blank_canvas, key_of, source_of
from flows.experiments.trial import BenchmarkContext
from pvqae.core.errors import PvqaeError
from pvqae.core.files import digest, whole_folder, write_text
from pvqae.core.progress import track
from pvqae.model.efficientnet import packaged_tensors
from pvqae.samples import geometry
from pvqae.samples.images import read

_CONTENT: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
_BACKBONE = "efficientnet_lite0"
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_CODE = tuple(f"pvqae/samples/{name}.py" for name in ("decoding", "geometry", "images"))  # decides what a view is
SCRIPT = Path(__file__).with_name("rival_script.py")
Tell = Callable[[str], None]


class RivalError(PvqaeError):
    """A rival could not be installed or did not finish: its row of the table says so, and the bench goes on."""


@dataclass(frozen=True)
class Rival:
    """One method of another library."""

    environment: str  # also the package's name
    fit: str  # of `rival_script.py`
    title: str
    layers: str  # blocks of the frozen network that it reads
    share: float | None = None  # of the patches that its bank keeps, where that is not the library's default

    @property
    def pins(self) -> list[str]:
        """Every package of its environment with its version."""
        pins: list[str] = _CONTENT["environments"][self.environment]
        return pins


RIVALS = {name: Rival(**values) for name, values in _CONTENT["methods"].items()}


@dataclass(frozen=True, eq=False)
class RivalRun:
    """What a rival said of the test images, and what that took."""

    results: list[BaselineResult]  # n, in the order of the test rows
    facts: dict[str, Any]  # fit_seconds, milliseconds, megabytes, peak_megabytes, versions


def install(rival: Rival, home: Path, tell: Tell = print) -> Path:
    """Return the Python of the rival's environment below `home`, made first where it is missing or has other pins.

    Raises `RivalError` with the installer's own words, e.g. where there is no network.
    """
    folder = home.absolute() / rival.environment
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join([sys.version, *rival.pins])
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return python
    tell(f"{folder}: installing {rival.environment} and {len(rival.pins) - 1} packages; minutes, once")
    local = os.environ.get("PIP_FIND_LINKS", "")
    _uv(folder, "venv", "--clear", "--python", sys.executable, str(folder))
    source = [] if local else ["--torch-backend", "cpu"]  # a local folder of wheels has a CPU build
    _uv(folder, "pip", "install", "--no-deps", "--python", str(python), *source, *rival.pins)
    write_text(stamp, wanted)
    return python


def _uv(folder: Path, *words: str) -> None:
    found = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise RivalError("expected the program uv, found none; run `make install`, or pip install uv")
    # uv reads no settings of pip; what the user has set for uv itself stays.
    known = {"UV_FIND_LINKS": "PIP_FIND_LINKS", "SSL_CERT_FILE": "PIP_CERT"}
    environ = {name: os.environ[own] for name, own in known.items() if os.environ.get(own)} | dict(os.environ)
    done = subprocess.run([found, *words, "--quiet"], env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"
        raise RivalError(
            f"{folder}: could not be installed; check the network and run again. The installer said: {reason}"
        )


def run(context: BenchmarkContext, name: str, seed: int, home: Path, minutes: float, tell: Tell = print) -> RivalRun:
    """Fit the rival `name` on the normals of a class and score its test images, for at most `minutes`.

    `home` holds the environments. Scores and maps are kept below `context.work`, half a megabyte a view at 320 px: what
    took hours can be judged again. Raises `RivalError` where the rival can't be installed, fails, or takes longer.
    """
    if context.params.model.backbone != _BACKBONE:
        raise RivalError(f"rivals stand on {_BACKBONE}, found model.backbone={context.params.model.backbone}")
    place = context.work.absolute() / "rivals" / f"{context.subject.name}-{name}-{seed}-{_key(context, name, seed)}"
    if not place.exists():
        with whole_folder(place) as folder:
            _measure(context, name, seed, install(RIVALS[name], home, tell), folder, minutes)
    return _collect(context, place)


def _key(context: BenchmarkContext, name: str, seed: int) -> str:
    """Name a run by all that decides its scores: a change of judging, or of another rival, repeats nothing."""
    rival, image = RIVALS[name], context.params.image.model_dump(mode="json")
    images = [rows[["sample_id", "sha256"]].values.tolist() for rows in (context.normals, context.test)]
    code = (source_of(*_CODE), digest(SCRIPT))
    return key_of(images, image, seed, rival.pins, rival.fit, rival.share, code)


def _measure(context: BenchmarkContext, name: str, seed: int, python: Path, folder: Path, minutes: float) -> None:
    """Run the rival in `folder`, where its scores, maps and facts stay."""
    rival = RIVALS[name]
    _write_views(context, context.normals, folder / "train.raw")
    counts, milliseconds = _write_views(context, context.test, folder / "test.raw")
    job = {"fit": rival.fit, "share": rival.share, "seed": seed, "side": context.params.image.size}
    weights = folder / "weights.npz"
    write_weights(weights)
    job |= {"weights": str(weights), "package": rival.environment}
    write_text(folder / "job.json", json.dumps(job))
    _start(python, folder, minutes)
    write_text(folder / "views.json", json.dumps({"counts": counts, "reading": median(milliseconds)}))
    for part in ("train.raw", "test.raw", "weights.npz"):
        (folder / part).unlink()


def write_weights(file: Path) -> None:
    """Write the packaged weights as plain arrays in the package's order: one place alone reads its pickle."""
    np.savez(file, **{name: tensor.numpy() for name, tensor in packaged_tensors().items()})  # type: ignore[arg-type]


def _write_views(context: BenchmarkContext, rows: pd.DataFrame, file: Path) -> tuple[list[int], list[float]]:
    """Write the views of some images in single precision; returns their number per image, and what reading cost."""
    counts, times = [], []
    with file.open("wb") as stream:
        for path in track(rows["path"], f"views for a rival, {file.stem}", total=len(rows)):
            begun = time.process_time()
            canvas = geometry.canvas(read(path, context.subject.root, context.params.image.bits), context.params.image)
            times.append((time.process_time() - begun) * 1000)
            counts.append(len(canvas.views))
            for view in canvas.views:
                view.pixels.astype(np.float32).tofile(stream)
    return counts, times


def _start(python: Path, folder: Path, minutes: float) -> None:
    """Run the script; raises `RivalError` with its last words."""
    offline = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | _THREADS | offline
    log = folder / "log.txt"
    try:
        with log.open("wb") as stream:
            command = [str(python), "-I", str(SCRIPT), str(folder)]
            done = subprocess.run(
                command, cwd=folder, env=environ, stdout=stream, stderr=stream, timeout=60 * minutes, check=False
            )
    except subprocess.TimeoutExpired:
        raise RivalError(f"not finished after {minutes:g} minutes; give it longer with --rival-minutes") from None
    except OSError as error:
        raise RivalError(f"{python}: could not be started: {error}; remove its folder and run again") from None
    if done.returncode:
        lines = log.read_text("utf-8", "replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        raise RivalError(f"failed with exit code {done.returncode}: {reason[-300:]}")


def _collect(context: BenchmarkContext, folder: Path) -> RivalRun:
    """Join the views of each image: the highest score, and one map."""
    facts, views = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("facts", "views"))
    counts, side = views["counts"], context.params.image.size
    total, scores = sum(counts), np.fromfile(folder / "scores.raw")
    if len(scores) != total or (folder / "maps.raw").stat().st_size != total * side * side * 4:
        raise RivalError(f"expected scores and maps of {total} views, found {len(scores)} scores; remove {folder}")
    parts = np.split(np.arange(total), np.cumsum(counts)[:-1])
    costs = np.array(facts["milliseconds"])
    facts["milliseconds"] = round(views["reading"] + median(float(costs[part].sum()) for part in parts), 2)
    return RivalRun(list(_results(context, folder, [scores[part] for part in parts], side)), facts)


def _results(
    context: BenchmarkContext, folder: Path, scores: Sequence[np.ndarray[Any, Any]], side: int
) -> Iterator[BaselineResult]:
    with (folder / "maps.raw").open("rb") as stream:
        for row, part in zip(context.test.to_dict("records"), scores, strict=True):
            maps = np.fromfile(stream, np.float32, len(part) * side * side).reshape(-1, side, side)
            canvas = blank_canvas(int(row["height"]), int(row["width"]), context.params.image)
            yield BaselineResult(str(row["sample_id"]), float(part.max()), canvas.stitch(list(maps)))
