"""Whole line scans of 16 bit through every stage: what each takes."""

import sys
from pathlib import Path

from flows.experiments.limits import made_scan, with_hairline, write_scan
from pvqae.core.seeding import numpy_generator
from tests.bench.against import OURS
from tests.bench.processes import Cost
from tests.bench.rows import Row, Size

_DATASET, _CLASS = "scans", "web"
_LINE = 3.0, 0.15  # pixels across; darker than the surface by this share


def scans(size: Size) -> list[Row]:
    """From made scans of 16,384 x 2,048 pixels, every pixel seen, to report, export and scores."""
    shape = size.of(640, 16384), size.of(128, 2048)
    learnt, judged = size.of(4, 8), size.of(2, 4)
    with OURS.project() as project:
        # In a process of its own: the peak of what is started from here is never below what was in use here.
        raw = f"data/raw/{_DATASET}/{_CLASS}"
        project.run("-m", "tests.bench.scans", raw, *map(str, (*shape, learnt, judged)))
        project.settle(data={"name": _DATASET, "source": "mvtec", "categories": [_CLASS]}, train={"steps": 0})
        # Tiles are never smaller than the image's own pixels: so many see each of them.
        project.settle(image={"size": size.of(64, 320), "aspect": "tile", "tiles": 64}, calibration={"folds": 2})
        project.list_one(_DATASET, _CLASS)
        what = f"{learnt} scans of {shape[0]} x {shape[1]} learnt from, {2 * judged} judged, 16 bit"
        return [_row(words, project.pvqae(*words), what, shape) for words in _commands()]


def make(raw: Path, shape: tuple[int, int], learnt: int, judged: int) -> None:
    """Write a class of scans in MVTec AD's tree."""
    for number in range(learnt + judged):
        folder = "train/good" if number < learnt else "test/good"
        write_scan(raw / folder / f"{number:02}.tif", made_scan(0, number, shape), 16)
    for number in range(judged):
        plain = made_scan(0, f"line {number}", shape)
        lined = with_hairline(plain, *_LINE, numpy_generator(0, "line", number))
        write_scan(raw / "test" / "hairline" / f"{number:02}.tif", lined, 16)
        write_scan(raw / "ground_truth" / "hairline" / f"{number:02}_mask.png", (lined != plain).astype("float32"), 8)


def _commands() -> list[tuple[str, ...]]:
    bundle, tests = f"models/{_DATASET}/{_CLASS}/bundle", f"data/raw/{_DATASET}/{_CLASS}/test"
    return [
        *(("data", "build"), ("data", "check"), ("train", _CLASS), ("prior", _CLASS), ("calibrate", _CLASS)),
        *(("evaluate", _CLASS), ("report",), ("export", bundle, "exported", "--images", f"{tests}/hairline")),
        ("score", bundle, f"{tests}/good", "--out", "scored"),
    ]


def _row(words: tuple[str, ...], cost: Cost, what: str, shape: tuple[int, int]) -> Row:
    each = cost.peak_mb * 1e6 / (shape[0] * shape[1])
    took = f"{cost.seconds:.0f} s, {cost.cpu:.0f} s of processor time, {cost.peak_mb:.0f} MB at the peak"
    return Row(f"`pvqae {' '.join(words[:2])}`: {what}", took, "", None, "", None, f"{each:.0f} bytes a pixel of one")


if __name__ == "__main__":
    columns, rows, *counts = map(int, sys.argv[2:])
    make(Path(sys.argv[1]), (columns, rows), *counts)
