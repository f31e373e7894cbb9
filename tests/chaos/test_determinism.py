"""How far the scores of a bundle move with the number of threads: sums in another order round differently."""

from pathlib import Path

import numpy as np
import torch

from pvqae.core import config
from pvqae.inference import bundle
from tests.chaos.conftest import PARAMS, make
from tests.chaos.figures import size

# Of max(1, |score|): single precision keeps seven digits, a few are lost in long sums. Printed, what is measured.
TOLERANCE = 1e-4


def scores(folder: Path, pictures: list[np.ndarray], threads: int) -> np.ndarray:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        detector = bundle.load(folder)
        found = [detector.score(picture) for picture in pictures]
    finally:
        torch.set_num_threads(before)
    return np.array([[one.image_score, *one.parts.values(), float(one.anomaly_map.max())] for one in found])


def test_thread_counts_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    sides = [(64, 64), (200, 300), (90, 40), (512, 512)]
    pictures = [rng.random((*sides[n % 4], 3), dtype=np.float32) for n in range(size(4, 12))]
    # Large enough that there is work for two threads.
    folder = make(tmp_path / "bundle", tmp_path, PARAMS.model_copy(update={"image": config.Image(size=192)}))
    one, two = scores(folder, pictures, 1), scores(folder, pictures, 2)
    again = scores(folder, pictures, 1)
    assert (one == again).all()  # the same number of threads: the same bits
    away = np.abs(one - two) / np.maximum(1, np.abs(one))
    print(f"thread counts 1 and 2: scores differ by at most {away.max():.1e} of max(1, |score|)")
    assert away.max() <= TOLERANCE
