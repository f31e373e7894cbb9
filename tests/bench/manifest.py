"""The manifest of many images: what a rebuild costs compared with `sha256sum` over the same files."""

import os
import subprocess
import sys
import tempfile
import zlib
from dataclasses import astuple
from pathlib import Path

import numpy as np

from pvqae.core.files import digest
from pvqae.datasets import inspection
from pvqae.samples import images
from tests.bench.processes import run
from tests.bench.rows import Row, Size, at_least, at_most, seconds

SIDE = 146  # of an image of noise: 64 KB as a PNG
# In a process of its own, whose peak is that of these files alone.
INSPECT = (
    "import sys, pathlib; from pvqae.datasets import inspection;"
    "root = pathlib.Path(sys.argv[1]);"
    "paths = sorted(p.relative_to(root) for p in root.glob('*/*.png'))[:int(sys.argv[2])];"
    "print(sum(not isinstance(f, str) for f in inspection.inspect_all(paths, root, root / 'facts.sqlite')))"
)


def manifest(size: Size) -> list[Row]:
    count, part = size.of(300, 100_000), size.of(30, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, count)
        paths = sorted(path.relative_to(root) for path in root.glob("*/*.png"))
        some = paths[: size.of(50, 2_000)]
        cold = seconds(lambda: inspect(root, some))
        know(root, paths)
        hashing, warm = zip(*((sha256sum(root), seconds(lambda: inspect(root, paths))) for _ in range(3)), strict=True)
        low, high = peak(root, part), peak(root, count)
    ours, theirs = count / sorted(warm)[1], count / sorted(hashing)[1]
    what, ratio, flat = f"manifest of {count:,} images of 64 KB", ours / theirs, high / low
    rate = "{:.0f} images/s".format
    return [
        Row(
            f"{what}: hash, facts known by it", rate(ours), f"`sha256sum`: {rate(theirs)}", ratio, *at_least(ratio, 0.8)
        ),
        Row(f"{what}: first time, decoded", rate(len(some) / cold), "once per sha256, then kept", None, "", None),
        Row(f"{what}: memory", f"{high:.0f} MB", f"{part:,} images: {low:.0f} MB", flat, *at_most(flat, 1.1, "×")),
    ]


def make(root: Path, count: int) -> None:
    """PNGs of noise, one picture per thousand; a text chunk in each makes other bytes of the same picture."""
    noise = np.random.default_rng(0).random((SIDE, SIDE, 3), dtype=np.float32)
    for number in range(count):
        folder = root / f"{number // 1000:03}"
        if number % 1000 == 0:
            folder.mkdir()
            noise[0, 0, 0] = number / max(count, 1)
            images.write(folder / "first.png", noise)
            start = (folder / "first.png").read_bytes()
            (folder / "first.png").unlink()
        (folder / f"{number:06}.png").write_bytes(start[:-12] + text_chunk(f"{number:06}") + start[-12:])


def text_chunk(text: str) -> bytes:
    """A tEXt chunk of a PNG."""
    body = b"tEXt" + b"number\0" + text.encode()
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def inspect(root: Path, paths: list[Path]) -> None:
    found = inspection.inspect_all(paths, root, root / "facts.sqlite")
    if wrong := [facts for facts in found if isinstance(facts, str)]:
        raise RuntimeError(f"{len(wrong)} images can't be read: {wrong[0]}")


def know(root: Path, paths: list[Path]) -> None:
    """Keep the facts of all without decoding each: they are the same picture, but for the first of each thousand."""
    facts = inspection.inspect(paths[0], root)
    assert isinstance(facts, inspection.Facts)
    values = (astuple(facts.header), astuple(facts.statistics), astuple(facts.range))
    with inspection._opened(root / "facts.sqlite") as store:
        store.put({digest(root / path): values for path in paths})


def sha256sum(root: Path) -> float:
    """Seconds of coreutils over all of them."""
    command = "find . -name '*.png' -print0 | xargs -0 sha256sum > /dev/null"
    return seconds(lambda: subprocess.run(command, shell=True, cwd=root, check=True))


def peak(root: Path, count: int) -> float:
    """Megabytes of a process that inspects `count` of them."""
    return run([sys.executable, "-c", INSPECT, str(root), str(count)], Path.cwd(), dict(os.environ))[1].peak_mb
