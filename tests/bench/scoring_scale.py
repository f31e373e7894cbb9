"""Scoring very many images in one run: does it slow down, does it grow?"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from pvqae.inference import bundle
from pvqae.samples import images
from pvqae.serving import batch
from pvqae.serving.batch_source import Item
from tests.bench.manifest import text_chunk
from tests.bench.rows import Row, Size, at_least, at_most
from tests.chaos.conftest import PARAMS, make


@dataclass
class Camera:
    """A source of `count` images that differ in their bytes alone; notes time and memory at every `step`-th."""

    picture: bytes
    count: int
    step: int
    marks: list[tuple[float, float, float]] = field(default_factory=list)  # processor and wall seconds, MB

    def items(self) -> Iterator[Item]:
        yield from (Item(f"camera/{number}.png", str(number)) for number in range(self.count))

    def file(self, item: Item, scratch: Path) -> Path:
        if int(item.identity) % self.step == 0:
            self.mark()
        target = scratch / "image.png"
        target.write_bytes(self.picture[:-12] + text_chunk(item.identity) + self.picture[-12:])
        return target

    def mark(self) -> None:
        memory = psutil.Process().memory_info().rss / 2**20
        self.marks.append((time.process_time(), time.perf_counter(), memory))


def scoring_scale(size: Size) -> list[Row]:
    count, step = size.of(60, 100_000), size.of(10, 1_000)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        detector = bundle.load(make(root / "bundle", root / "normals", PARAMS))
        images.write(root / "one.png", np.random.default_rng(0).random((64, 64, 3), dtype=np.float32))
        camera = Camera((root / "one.png").read_bytes(), count, step)
        found = batch.run(detector, camera, root / "out")
        camera.mark()
    if found.failed or found.scored != count:
        raise RuntimeError(f"expected {count} scored images, found {found}")
    busy = [after[0] - before[0] for before, after in zip(camera.marks, camera.marks[1:], strict=False)]
    first, last = busy[1], busy[-2]  # without warm-up, and without the end, which writes the tables
    low, high = camera.marks[2][2], camera.marks[-2][2]
    rate = count / (camera.marks[-1][1] - camera.marks[0][1])
    what, steady, flat = f"scoring {count:,} images of 64 px", first / last, high / low
    thousand = f"{step:,} images: {{:.1f}} s of processor time".format
    return [
        Row(f"{what}: last thousand", thousand(last), f"second {thousand(first)}", steady, *at_least(steady, 0.95),
            f"{rate:.0f} images/s on the whole"),
        Row(f"{what}: memory", f"{high:.0f} MB", f"after 2,000: {low:.0f} MB", flat, *at_most(flat, 1.05, "×")),
    ]  # fmt: skip
