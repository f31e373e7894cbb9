"""Fixtures that several packages share: real images where they are, and a tiny dataset made on the spot."""

import os
from pathlib import Path

import numpy as np
import pytest

from pvqae.datasets import images


@pytest.fixture(scope="session")
def datasets_root() -> Path:
    """The folder with real images (mtsd, mvtec); tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("PVQAE_DATASETS", Path(__file__).parents[2] / "shared" / "datasets"))
    if not root.is_dir():
        pytest.skip(f"no real images at {root}: set PVQAE_DATASETS")
    return root


@pytest.fixture
def tiny_mvtec(tmp_path: Path) -> Path:
    """A dataset in MVTec's layout: class `part`, 40 good, 4 + 3 test images; 24 x 32 px, all different."""
    root, rng = tmp_path / "tiny", np.random.default_rng(0)
    folders = [("train/good", 40), ("test/good", 4), ("test/dent", 3)]
    for folder, count in folders:
        for index in range(count):
            picture = rng.random((24, 32, 3), dtype=np.float32) * 0.2 + 0.4
            mask = np.zeros((24, 32), dtype=np.bool_)
            if folder == "test/dent":
                mask[4:10, 5 : 12 + index] = True
                images.write(root / "part" / "ground_truth" / "dent" / f"{index:03}_mask.png", mask)
            picture[mask] = 0.0
            images.write(root / "part" / folder / f"{index:03}.png", picture)
    return root
