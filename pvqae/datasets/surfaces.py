"""A made class with parts enough for the gate: smooth grey surfaces, one image a part. No quality claim."""

from pathlib import Path

import numpy as np
from PIL import Image

from pvqae.core.files import whole_folder
from pvqae.samples import images

SIDE = 64  # pixels


def make(out: Path, count: int) -> None:
    """Write `count` good images to `out`/part/good whole, replacing what is there; the same bytes each time."""
    rng = np.random.default_rng(0)
    with whole_folder(out) as part:
        for number in range(count):
            coarse = Image.fromarray(rng.uniform(-1, 1, (5, 5)).astype(np.float32))
            waves = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            light = 0.5 + rng.uniform(-0.03, 0.03) + 0.05 * waves + rng.normal(0, 0.01, (SIDE, SIDE))
            picture = np.repeat(light[..., None], 3, axis=2).astype(np.float32)
            images.write(part / "part" / "good" / f"{number:03}.png", np.clip(picture, 0, 1), channels=1)
