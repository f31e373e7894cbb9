"""What the hardware allows: operations of one image over the rate of a large matrix product, beside what it takes."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from pvqae.datasets import images
from pvqae.inference.scoring import through
from tests.bench.inference import in_turns
from tests.bench.rows import Row, Size
from tests.bench.subject import BRIEF, ring, scorer

SIDE = 1024  # of the matrices


def limits(size: Size) -> list[Row]:
    found = ring("bottle", size.quick, *BRIEF)
    ours = scorer(found)
    pixels = images.read(found.subject.root / found.test["path"].iloc[0])
    canvas = images.canvas(pixels, ours.image)
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
    return rows
