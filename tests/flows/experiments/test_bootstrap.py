"""Bootstrap over groups: whole draws equal the plain figures, dependence widens, intervals cover."""

import numpy as np
import pytest

from flows.experiments import bootstrap
from pvqae.evaluation.metrics import PixelMetrics, count, image_auroc


def scene(images: int = 12, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps and masks; the later half has a defect that the map mostly sees."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for index in range(images):
        mask = np.zeros((32, 32), dtype=np.bool_)
        if index >= images // 2:
            mask[4 : 8 + index, 6:16] = True
            mask[25:28, 25:28] = True
        maps.append((rng.normal(size=mask.shape) + 1.5 * mask).astype(np.float32))
        masks.append(mask)
    return maps, masks


def test_every_image_once_gives_the_plain_figures() -> None:
    maps, masks = scene()
    exact = PixelMetrics()
    for values, mask in zip(maps, masks, strict=True):
        exact.add(values, mask)
    counts = [count(values, mask) for values, mask in zip(maps, masks, strict=True)]
    found = bootstrap.pixel_figures(counts, np.ones((1, len(maps))))
    assert found["pixel_auroc"][0] == pytest.approx(exact.auroc(), abs=1e-4)
    assert found["aupro"][0] == pytest.approx(exact.aupro(), abs=1e-3)
    assert found["aupro_05"][0] == pytest.approx(exact.aupro(0.05), abs=3e-3)
    assert found["pixel_f1"][0] == pytest.approx(exact.f1_max(), abs=1e-3)


def test_a_weight_of_two_is_the_image_twice() -> None:
    maps, masks = scene()
    twice = PixelMetrics()
    for index, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        for _ in range(2 if index in (1, 8) else 1):
            twice.add(values, mask)
    weight = np.ones((1, len(maps)))
    weight[0, [1, 8]] = 2
    found = bootstrap.pixel_figures([count(v, m) for v, m in zip(maps, masks, strict=True)], weight)
    assert found["pixel_auroc"][0] == pytest.approx(twice.auroc(), abs=1e-4)


def test_image_figures_follow_the_weights_and_ties_count_half() -> None:
    defect = np.array([False, False, True, True])
    scores = np.array([0.0, 1.0, 1.0, 2.0])
    draws = np.array([[1.0, 1, 1, 1], [0, 2, 2, 0], [1, 1, 0, 0]])
    found = bootstrap.image_aurocs(defect, scores, draws)
    assert found[0] == pytest.approx(image_auroc(defect, scores))
    assert found[1] == pytest.approx(0.5)
    assert np.isnan(found[2]), "a draw without defects has no AUROC"


def test_images_of_one_group_come_together_and_both_kinds_stay() -> None:
    groups = ["a", "a", "b", "c", "c", "d"]
    defect = np.array([False, False, False, True, False, True])
    drawn = bootstrap.weights(groups, defect, draws=200)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 3] == drawn[:, 4]).all()
    assert (drawn[:, defect].sum(1) > 0).all()
    assert drawn[:, [0, 2]].sum(1) == pytest.approx(2), "as many groups without a defect as there are"


def test_names_separate_classes_and_the_same_name_repeats() -> None:
    groups, defect = [str(i) for i in range(20)], np.arange(20) > 9
    first, again, other = (bootstrap.weights(groups, defect, 5, name=n) for n in ("bottle", "bottle", "tile"))
    assert (first == again).all()
    assert (first != other).any()


def test_dependent_exposures_widen_the_interval() -> None:
    """Five copies of each image are no more evidence than one, if the groups say so."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 20), rng.normal(1, 1, 20)])
    defect = np.arange(40) >= 20
    parts = [f"part{i}" for i in range(40)]

    def width(groups: list[str], scores: np.ndarray, defect: np.ndarray) -> float:
        draws = bootstrap.image_aurocs(defect, scores, bootstrap.weights(groups, defect))
        found = bootstrap.interval(0.0, draws)
        return found.high - found.low

    once = width(parts, scores, defect)
    grouped = width([p for p in parts for _ in range(5)], scores.repeat(5), defect.repeat(5))
    naive = width([str(i) for i in range(200)], scores.repeat(5), defect.repeat(5))
    assert grouped == pytest.approx(once, rel=0.15)
    assert naive < 0.6 * once


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth, covered = 0.7602, 0  # P(N(1, 1) > N(0, 1))
    groups, defect = [str(i) for i in range(120)], np.arange(120) >= 60
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scores = rng.normal(0, 1, 120) + defect
        draws = bootstrap.image_aurocs(defect, scores, bootstrap.weights(groups, defect, 300, seed))
        found = bootstrap.interval(0.0, draws)
        covered += found.low <= truth <= found.high
    assert 87 <= covered <= 100
