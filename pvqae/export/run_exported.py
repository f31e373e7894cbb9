"""Score images with an exported detector: `python run.py IMAGES... [--maps FOLDER]`, a JSON object per line.

An image that can't be read gets a line with "error" instead of a score, and the exit status is 1. Needs numpy and, as
card.json says, onnxruntime or openvino; Pillow only reads the files. It needs the graph (model.onnx, or model.xml and
model.bin), card.json and reading.zip in its folder, which SHA256SUMS vouches for; reading.zip holds the modules by
which `pvqae score` finds and reads images, so both score the same. The graph judges square views of `size` pixels; what
it does not do is here: decode, resize, lay out views, judge several views of one image together, stitch their maps.
H0 W0 pixels of the file; H W of the canvas (the image in model pixels); S side of a view; V views of an image.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "reading.zip"))
from pvqae.core.errors import DataError, PvqaeError
from pvqae.core.files import digest
from pvqae.core.runtime import openvino
from pvqae.samples.geometry import marks
from pvqae.serving import batch_source  # in an export: of reading.zip
from pvqae.serving.batch_source import Files, Item

_FILES = ("card.json", "reading.zip")  # and the graph's
_READ = ("bits",)  # settings of how files are read
_PARTS = ("s_prior", "s_recon", "product")
_Array = np.ndarray[Any, Any]


class _View(NamedTuple):
    """A square of the canvas, cut when it is asked for; negative `top` or `left` where padding comes first."""

    canvas: _Array  # H x W x 3 in [0, 1], float32
    side: int
    top: int
    left: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that it shows."""
        rows, columns = ((max(start, 0), start + self.side) for start in (self.top, self.left))
        return slice(*rows), slice(*columns)

    @property
    def around(self) -> list[tuple[int, int]]:
        """Rows and columns of padding, before and after."""
        before, shown = (max(-self.top, 0), max(-self.left, 0)), self.canvas[self.place].shape[:2]
        return [(b, self.side - b - n) for b, n in zip(before, shown, strict=True)]

    @property
    def pixels(self) -> _Array:
        """3 x S x S in [0, 1]; padding repeats the border."""
        padded = np.pad(self.canvas[self.place], [*self.around, (0, 0)], mode="edge")
        return np.ascontiguousarray(padded.transpose(2, 0, 1))

    @property
    def valid(self) -> _Array:
        """S x S, False on padding."""
        return np.pad(np.ones(self.canvas[self.place].shape[:2], bool), self.around)


def _resize(image: _Array, height: int, width: int) -> _Array:
    """Resize by an antialiased bilinear filter (a triangle as wide as the reduction), columns first, as in training."""
    if image.shape[:2] == (height, width):
        return image
    across = _along(image, width)
    return np.clip(_along(across.swapaxes(0, 1), height).swapaxes(0, 1), 0, 1)


def _along(image: _Array, size: int) -> _Array:
    """Resize axis 1 of an (n, m, 3) image."""
    length, f = image.shape[1], np.float32
    scale = f(length) / f(size)
    support = max(scale, f(1))
    centre = scale * (np.arange(size, dtype=f) + f(0.5))
    first = np.maximum((centre - support + f(0.5)).astype(np.int64), 0)
    last = np.minimum((centre + support + f(0.5)).astype(np.int64), length)
    taps = np.arange(int((last - first).max()))
    place = first[:, None] + taps
    away = (place.astype(f) - centre[:, None] + f(0.5)) / support
    weights = np.where(place < last[:, None], np.maximum(f(1) - np.abs(away), f(0)), f(0)).astype(f)
    weights /= weights.sum(axis=1, keepdims=True)
    out = np.zeros((image.shape[0], size, 3), dtype=f)
    for tap in taps:
        out += image[:, np.minimum(place[:, tap], length - 1)] * weights[None, :, tap, None]
    return out


def _layout(height: int, width: int, card: dict[str, Any]) -> tuple[int, int, list[tuple[int, int]]]:
    """Return H, W and the (top, left) of each view, for an image of `height` x `width` pixels."""
    size, aspect = card["size"], card["aspect"]
    if aspect == "auto":
        aspect = "squash" if 0.8 <= width / height <= 1.25 else "letterbox"
    if aspect == "squash":
        return size, size, [(0, 0)]
    if aspect == "letterbox":
        scale = size / max(height, width)
        high, wide = max(1, round(height * scale)), max(1, round(width * scale))
        return high, wide, [(-((size - high) // 2), -((size - wide) // 2))]
    high, wide = _tiled(height, width, card)
    rows, columns = (_starts(length, size, card["overlap"]) for length in (high, wide))
    return high, wide, [(top, left) for top in rows for left in columns]


def _tiled(height: int, width: int, card: dict[str, Any]) -> tuple[int, int]:
    """Return H, W of an image that is cut into overlapping views, `tiles` of them along its short side."""
    size = card["size"]
    wanted = math.floor(size * (1 + (card["tiles"] - 1) * (1 - card["overlap"])) + 1e-6)
    scale = max(size, min(wanted, height, width)) / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def _starts(length: int, side: int, overlap: float) -> list[int]:
    count = 1 + math.ceil((length - side) / (side * (1 - overlap)) - 1e-6)
    return [round(start) for start in np.linspace(0, length - side, count)]


def _views(image: _Array, card: dict[str, Any]) -> tuple[tuple[int, int], list[_View]]:
    """Return (H, W) and the views of an image."""
    height, width, places = _layout(image.shape[0], image.shape[1], card)
    canvas = _resize(image, height, width)
    return (height, width), [_View(canvas, card["size"], top, left) for top, left in places]


def _stitch(shape: tuple[int, int], found: list[_View], maps: Iterable[_Array]) -> _Array:
    """Return H x W from V of S x S, padding dropped; overlaps are averaged with weights that fall to a view's border.

    One view is what it is. `maps` may be made one by one.
    """
    total, side = np.zeros(shape, np.float32), found[0].side
    ramp = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)) / side
    tent = np.outer(ramp, ramp) if len(found) > 1 else np.ones((side, side), np.float32)
    for view, values in zip(found, maps, strict=True):
        inside = tuple(slice(before, side - after) for before, after in view.around)
        total[view.place] += tent[inside] * values[inside]
    if len(found) > 1:
        for axis, starts in enumerate(({view.top for view in found}, {view.left for view in found})):
            weight = np.zeros(shape[axis], np.float32)
            for start in sorted(starts):
                weight[start : start + side] += ramp
            total /= np.expand_dims(weight, 1 - axis)
    return total


def _check(folder: Path) -> dict[str, bytes]:
    """Return the content of every exported file by its name.

    Raises `ValueError` or `OSError`, naming a file that has changed. What runs is what was checked: nothing is read
    again.
    """
    lines = (folder / "SHA256SUMS").read_text("utf-8", errors="replace").split("\n")
    listed = {name: expected for expected, _, name in (line.partition("  ") for line in lines if line)}
    contents = {name: (folder / name).read_bytes() for name in sorted({*_FILES, *listed})}
    for name, data in contents.items():
        found = hashlib.sha256(data).hexdigest()
        if found != listed.get(name):
            expected = listed.get(name, "one in SHA256SUMS")
            raise ValueError(f"{folder / name}: expected sha256 {expected}, found {found}; export the detector again")
    return contents


def _numbered(mask: _Array) -> tuple[_Array, int]:
    """Return the regions of a mask, 8 neighbours, numbered from 1, and their count: scipy's `label` without scipy.

    Pixels side by side in a row are one run; runs of two rows that touch take the lower number until none changes.
    """
    edges, wide = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1), mask.shape[1] + 2
    (row, first), end = np.nonzero(edges == 1), np.nonzero(edges == -1)[1]
    low = np.searchsorted(row * wide + end, (row + 1) * wide + first)
    touching = np.searchsorted(row * wide + first, (row + 1) * wide + end, "right") - low
    above = np.repeat(np.arange(len(row)), touching)
    below = np.repeat(low - np.cumsum(touching) + touching, touching) + np.arange(len(above))
    number, last = np.arange(len(row)), None
    while last is None or (number != last).any():
        last, number = number, number.copy()
        np.minimum.at(number, above, last[below])
        np.minimum.at(number, below, last[above])
        number = number[number]
    names, place = np.unique(number, return_inverse=True)
    numbers = np.zeros(mask.shape, dtype=np.int64)
    numbers[mask] = np.repeat(place + 1, end - first)
    return numbers, len(names)


def _joined(runs: list[dict[str, _Array]]) -> dict[str, _Array]:
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


class _OnnxRuntime:
    """ONNX Runtime, `CHUNK` views at once: memory does not grow with the image."""

    FILES, CHUNK = ("model.onnx",), 8

    def __init__(self, files: dict[str, bytes], threads: int, size: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: one per core
        self.session = onnxruntime.InferenceSession(files["model.onnx"], options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, pixels: _Array, valid: _Array) -> dict[str, _Array]:
        return dict(zip(self.names, self.session.run(self.names, {"pixels": pixels, "valid": valid}), strict=True))


class _OpenVino:
    """OpenVINO, one view at a time: compiled for any number of views it takes twice the time. Never half precision."""

    FILES, CHUNK = ("model.bin", "model.xml"), 1

    def __init__(self, files: dict[str, bytes], threads: int, size: int):
        core = openvino().Core()
        model = core.read_model(files["model.xml"], files["model.bin"])
        model.reshape({"pixels": [1, 3, size, size], "valid": [1, size, size]})
        settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.names = [output.any_name for output in model.outputs]

    def __call__(self, pixels: _Array, valid: _Array) -> dict[str, _Array]:
        found = self.request.infer({"pixels": pixels, "valid": valid})
        return {name: found[name].copy() for name in self.names}  # the request's own memory is written again


_ENGINES: dict[str, type[_OnnxRuntime] | type[_OpenVino]] = {"onnx": _OnnxRuntime, "openvino": _OpenVino}


class Detector:
    """`Detector(folder).score(image)`; image a file or H0 x W0 x 3 pixels in [0, 1]."""

    def __init__(self, folder: Path | str, threads: int = 0):
        files = _check(Path(folder))
        self.card = json.loads(files["card.json"].decode("utf-8"))
        engine = _ENGINES[self.card["format"]]
        if missing := [name for name in engine.FILES if name not in files]:
            raise ValueError(f"{Path(folder) / missing[0]}: not in SHA256SUMS; export the detector again")
        self.engine = engine(files, threads, self.card["preprocessing"]["size"])

    def score(self, image: Path | str | _Array) -> dict[str, Any]:
        """Return score, threshold, margin, decision, parts, anomaly_map (H x W), and what the pixel threshold marks."""
        pixels = image if isinstance(image, np.ndarray) else self.read(Path(image))
        shape, found = _views(pixels, self.card["preprocessing"])
        kept: list[dict[str, _Array]] = []  # maps of all views are larger than the image: each is used and dropped

        def maps() -> Iterator[_Array]:
            for run in self._runs(found):
                yield from run.pop("anomaly_map")
                kept.append(run)

        anomaly_map, limit = _stitch(shape, found, maps()), self.card.get("pixel_threshold")
        graph = _joined(kept)
        there = [name for name in _PARTS if name in graph]  # s_recon alone where no network was trained
        parts = {name: graph[name][0] for name in there}
        score = graph["image_score"][0]
        if len(found) > 1:  # the graph judged each view alone
            parts = {name: self._pooled(name, graph) for name in there}
            score = self._fused(parts)
        score, threshold = float(score), self.card["threshold"]
        marked = dict.fromkeys(("marked_area", "region_count", "regions"))
        if limit is not None:
            marked = marks(anomaly_map, limit, pixels.shape[:2], _numbered)
        return {
            "score": score,
            "threshold": threshold,
            "margin": score - threshold,
            "decision": "defect" if score > threshold else "normal",
            "precision": self.card["precision"],
            "parts": {name: float(value) for name, value in parts.items()},
            "pixel_threshold": limit,
            **marked,
            "anomaly_map": anomaly_map,
        }

    def read(self, file: Path) -> _Array:
        """Return H0 x W0 x 3 pixels in [0, 1]. Raises `DataError` for what the bundle would not score either."""
        settings = self.card["preprocessing"]
        pixels, _ = batch_source.read(file, **{key: settings[key] for key in _READ if key in settings})
        if reason := batch_source.unfit(pixels):
            raise DataError(reason)
        return pixels

    def graph(self, found: list[_View]) -> dict[str, _Array]:
        """Return all outputs of the graph (card.json says what they are), a row per view."""
        return _joined(list(self._runs(found)))

    def _runs(self, found: list[_View]) -> Iterator[dict[str, _Array]]:
        """Yield the outputs of the graph, some views at a time."""
        chunk = self.engine.CHUNK
        for start in range(0, len(found), chunk):
            some = found[start : start + chunk]
            yield self.engine(np.stack([view.pixels for view in some]), np.stack([view.valid for view in some]))

    def _pooled(self, name: str, graph: dict[str, _Array]) -> float:
        """Return the image score of a part over the cells of all views."""
        cells = np.sort(graph[f"{name}_cells"][graph["valid_cells"]])
        count = max(1, round(self.card["image_score"]["top"] * len(cells) / len(graph["valid_cells"])))
        mean, deviation = self.card["image_score"]["scales"].get(name, (0.0, 1.0))
        found: float = (float(cells[-count:].mean(dtype=np.float64)) - mean) / deviation
        return found

    def _fused(self, parts: dict[str, Any]) -> float:
        fusion = self.card["image_score"]["fusion"]
        if fusion == "gated":
            return float(parts["s_recon"] + 0.25 * max(0.0, parts["s_prior"]))
        return float(parts["product" if fusion == "product" else f"s_{fusion}"])


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "images",
        nargs="*",
        help="images, or folders of images; without any, their names are read from stdin, one a line",
    )
    parser.add_argument("--maps", type=Path, help="folder for anomaly maps, NAME.npy per image, NAME its number from 0")
    parser.add_argument("--threads", type=int, default=0, help="of the graph's runtime; 0: one per core")
    given = parser.parse_args()
    sys.exit(_run(given))


def _run(given: argparse.Namespace) -> int:
    """Score the images; return the exit status, 1 if one got no score."""
    try:
        detector = Detector(Path(__file__).parent, given.threads)
        return _judge(detector, given)
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}; install the package, which this detector needs")
    except (OSError, ValueError, PvqaeError) as error:
        sys.exit(f"error: {error}")


def _judge(detector: Detector, given: argparse.Namespace) -> int:
    """Print a line per image; 1 when one got no score."""
    if given.maps:
        given.maps.mkdir(parents=True, exist_ok=True)
    failed = 0
    source = Files(tuple(map(Path, given.images or sys.stdin.read().splitlines())))
    for number, item in enumerate(source.items()):
        row = _scored(detector, source, item, given.maps and given.maps / f"{number}.npy")
        failed += "error" in row
        print(json.dumps(row), flush=True)
    return int(failed > 0)


def _scored(detector: Detector, source: Files, item: Item, target: Path | None) -> dict[str, Any]:
    """Return the line of an image; its map is written to `target`."""
    begun = time.perf_counter()
    try:
        file = source.file(item, Path())
        digest(file)  # as `pvqae score` does first: the same files are refused, in the same words
        result = detector.score(file)
    except (PvqaeError, OSError) as error:
        return {"image": item.path, "error": str(error)}
    numbers = [result["score"], *result["parts"].values()]
    if not all(map(math.isfinite, numbers)):
        return {"image": item.path, "error": f"a score is not finite: {numbers}; calibrate this class again"}
    milliseconds = round((time.perf_counter() - begun) * 1000, 2)
    anomaly_map = result.pop("anomaly_map")
    if target:
        np.save(target, anomaly_map)
    return {"image": item.path, **result, "milliseconds": milliseconds}


if __name__ == "__main__":
    _main()
