"""What the hardware allows: operations of one image over the rate of a large matrix product, and the time it takes."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from flows.experiments.trial import BenchmarkContext
from pvqae.inference.scoring import Scorer, through
from pvqae.samples import geometry, images
from tests.bench.inference import in_turns
from tests.bench.rows import Row, Size, seconds
from tests.bench.subject import BRIEF, WORK, context

SIDE = 1024  # of the matrices


def limits(size: Size) -> list[Row]:
    found = context("bottle", size.quick, *BRIEF)
    ours = found.scorer()
    pixels = images.read(found.subject.root / found.test["path"].iloc[0])
    canvas = geometry.canvas(pixels, ours.image)
    left, right = torch.rand(2, SIDE, SIDE)
    calls = {
        "product": lambda: left @ right,
        "backbone": lambda: through(ours.networks.backbone, canvas),
        "scoring": lambda: ours.one(pixels).anomaly_map,
    }
    took = in_turns(calls, size.of(1, 15))
    rate = 2 * SIDE**3 / took["product"]
    rows = []
    for name in ("backbone", "scoring"):
        with FlopCounterMode(display=False) as counter:
            calls[name]()
        operations = counter.get_total_flops()
        least = operations / rate
        note = f"{operations / 1e9:.2f} GFLOP at {rate / 1e9:.0f} GFLOP/s of a large product"
        against = f"{least * 1e3:.0f} ms were it one large product"
        rows.append(
            Row(f"{name} of one image", f"{took[name] * 1e3:.0f} ms", against, took[name] / least, "", None, note)
        )
    return [*rows, *moved(found, ours, took["scoring"], size)]


def moved(found: BenchmarkContext, ours: Scorer, scoring: float, size: Size) -> list[Row]:
    """Bytes that one image needs over the rates of a plain copy in memory and of reading a file from the disk again."""
    weights = sum(x.numel() * x.element_size() for x in tensors_of(ours))
    image = found.subject.root / found.test["path"].iloc[0]
    block = torch.empty(size.of(8, 256) * 2**20, dtype=torch.uint8)
    copied = in_turns({"copy": lambda: block.clone()}, size.of(1, 9))["copy"]
    memory, disk = 2 * block.numel() / copied, from_disk(size.of(8, 256) * 2**20)
    read = image.stat().st_size
    return [
        row("weights and codes read once from memory", weights, memory, scoring),
        row("an image's file read from the disk", read, disk, scoring),
    ]


def row(what: str, count: float, rate: float, scoring: float) -> Row:
    """`rate`: bytes a second."""
    least = count / rate
    note = f"{count / 1e6:.1f} MB at {rate / 1e9:.1f} GB/s: {least / scoring:.1%} of scoring"
    return Row(f"one image: {what}", f"{least * 1e3:.2f} ms", "", None, "", None, note)


def tensors_of(ours: Scorer) -> Iterator[torch.Tensor]:
    networks = ours.networks
    yield from networks.backbone.parameters()
    yield from networks.trained.autoencoder.parameters()
    for memory in networks.memories.values():
        yield from (memory.codes, memory.scale)


def from_disk(count: int) -> float:
    """Bytes a second of a file that the system does not have in memory."""
    with tempfile.NamedTemporaryFile(dir=WORK) as file:
        file.write(os.urandom(count))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        took = seconds(lambda: Path(file.name).read_bytes())
    return count / took
