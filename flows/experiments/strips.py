"""Pictures of allocations, of images that are free to show."""

from pathlib import Path
from typing import Any

import numpy as np

from flows.experiments.pieces import Trained
from pvqae.inference.scoring import Scored
from pvqae.report import pictures
from pvqae.samples import geometry, images

WIDEST = 512  # pixels of a strip
BRIGHT = 6.0  # deviations of S_prior that are drawn brightest


def draw(row: dict[str, Any], scored: Scored, found: Trained, folder: Path) -> None:
    """A strip: picture, expected and actual resolutions (dark coarse, light fine), S_prior."""
    shape, levels = scored.anomaly_map.shape, found.params.model.levels
    mask = geometry.mask_of(row["mask_path"], shape, found.subject.root)
    prior_map = np.clip(scored.part_maps["s_prior"] / BRIGHT, 0, 1)
    strip = [
        pictures.outline(scored.picture, mask),
        pictures.level_map(scored.expected_levels, levels, (shape[0], shape[1])),
        pictures.level_map(scored.levels, levels, (shape[0], shape[1])),
        pictures.colours(prior_map),
    ]
    gap = np.full((shape[0], 6, 3), 255, dtype=np.uint8)
    parts = [piece for picture in strip for piece in (picture, gap)][:-1]
    small = pictures.thumbnail(np.concatenate(parts, axis=1), WIDEST)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{found.subject.name}-{row['kind'] or 'good'}.png"
    if not (folder / name).exists():
        images.write(folder / name, (small / 255).astype(np.float32))
