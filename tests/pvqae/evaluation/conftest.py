"""A stand-in for scored images: textures with a bright blob as the defect, maps and levels that mostly see it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from pvqae.evaluation.stage import _evaluate
from pvqae.inference.measures import Budget
from pvqae.inference.scoring import Scored
from pvqae.samples.geometry import Canvas, View

CARD = {
    "threshold": 1.5,
    "map_threshold": 2.0,
    "map_scale": [0.0, 4.0],
    "rule": "quantile of held-out normals, n + 1",
    "method": "cross_fit",
    "n": 40,
    "n_groups": 38,
    "target_rate": 0.05,
    "smallest_supported_rate": 1 / 41,
    "interval_95": [0.006, 0.17],
    "manifest_sha256": "ab" * 32,
    "scores": [1.0, 1.2],
    "warnings": [],
    "pixel": {
        **{"threshold": 1.75, "rule": "area of held-out normals", "target_area": 0.001, "area": 0.00098},
        **{"interval_95": [0.0004, 0.002], "n": 40, "n_groups": 38, "n_marked": 5, "pixels": 40 * 64 * 64},
    },
}
HEALTH = {
    "level_shares": [0.2, 0.5, 0.3],
    "codebook_usage": 0.71,
    "prior_cross_entropy": 0.61,
    "frequency_cross_entropy": 0.83,
    "warnings": [],
}
HISTORY = [
    {"phase": phase, "fold": fold, "step": step, "loss": 1 / (step + 1), "mode": "x", "shares": [0.5, 0.5]}
    for phase in ("warmup", "budget")
    for fold in (0, 1)
    for step in range(30)
]


@dataclass(frozen=True)
class Made:
    """One class's arguments of `evaluate`."""

    rows: pd.DataFrame
    scored: list[Scored]
    data: Path

    def evaluate(self, out: Path, **changes: Any) -> dict[str, Any]:
        """Evaluate with CARD and HEALTH; `card` and `health` in `changes` replace some of their keys."""
        card, health = CARD | changes.pop("card", {}), HEALTH | changes.pop("health", {})
        scored = iter(changes.pop("scored", self.scored))
        return _evaluate(self.rows, scored, card, health, HISTORY, out, self.data, fusion="gated", **changes)

    def with_scored(self, index: int, **changes: Any) -> list[Scored]:
        """The scored images, one of them changed."""
        return [replace(one, **changes) if place == index else one for place, one in enumerate(self.scored)]


def _mask(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    row, column = rng.integers(side // 5, side - side // 5, 2)
    return (y - row) ** 2 + (x - column) ** 2 <= (side / 10) ** 2


def _scored(sample: str, rng: np.random.Generator, mask: np.ndarray) -> Scored:
    side = len(mask)
    texture = gaussian_filter(rng.normal(size=(side, side)), 1.5) * 120 + 120
    picture = np.clip(np.stack([texture + 70 * mask, texture, texture - 60 * mask], -1), 0, 255).astype(np.uint8)
    strength = rng.uniform(0.5, 4) if mask.any() else 0
    noise = gaussian_filter(rng.normal(size=(side, side)), 3) * 3 + 0.8
    heat = (noise + strength * gaussian_filter(mask.astype(float), 4)).astype(np.float32)
    score = float(np.sort(heat.ravel())[-40:].mean())
    prior = gaussian_filter(heat, 8) + rng.normal(size=heat.shape).astype(np.float32) * 0.1
    maps = {"s_prior": prior, "s_recon": heat, "product": heat * prior}
    parts = {name: float(one.max()) for name, one in maps.items()}
    expected = np.tile(np.array([0, 1, 1, 2, 2, 1, 1, 0]), (8, 1))
    hot = mask.reshape(8, side // 8, 8, side // 8).any(axis=(1, 3))
    levels = np.where(hot, 2, expected)
    canvas = Canvas(side, side, (View(picture.astype(np.float32) / 255, side, 0, 0),))
    spent, normal = (torch.from_numpy(grid)[None] for grid in (levels, expected))
    budget = Budget(torch.ones_like(spent, dtype=torch.bool), torch.zeros(spent.shape), spent, normal)
    return Scored(sample, score, parts.__getitem__, lambda: budget, maps.__getitem__, "s_recon", canvas)


def made(
    folder: Path,
    normals: int = 12,
    defects: int = 10,
    masked: bool = True,
    kind: str = "blob",
    side: int = 64,
    seed: int = 0,
) -> Made:
    """A class with mask files below `folder`/data."""
    rng = np.random.default_rng(seed)
    data, rows, scored = folder / "data", [], []
    (data / "masks").mkdir(parents=True, exist_ok=True)
    for number in range(normals + defects):
        defect = number >= normals
        mask = _mask(rng, side) if defect else np.zeros((side, side), dtype=bool)
        mask_path = f"masks/{seed}-{number:03d}.png" if defect and masked else ""
        if mask_path:
            Image.fromarray(mask.astype(np.uint8) * 255).save(data / mask_path)
        label, kinds = ("defect", kind) if defect else ("normal", "good")
        path = f"raw/{kinds}/{number:03d}.png"
        row = {"sample_id": f"s{number:03d}", "path": path, "label": label, "kind": kinds}
        rows.append(row | {"mask_path": mask_path})
        scored.append(_scored(f"s{number:03d}", rng, mask))
    return Made(pd.DataFrame(rows), scored, data)


@pytest.fixture
def make_class(tmp_path: Path) -> Callable[..., Made]:
    """`make(normals, defects, masked=True, kind=...)`: a class with mask files below tmp_path/data."""
    return partial(made, tmp_path)
