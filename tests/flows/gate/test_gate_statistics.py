"""Figures with their uncertainty: against plain definitions, and what grouping has to change."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import binomtest

from flows.gate import statistics
from flows.gate.power import _DEFAULT, _draw, _power
from pvqae.core.config import Gate
from pvqae.evaluation.metrics import PixelCounts, PixelMetrics, count, image_auroc

DEFECT = np.repeat([False, True], 40)
OWN = [str(number) for number in range(80)]


def scores(seed: int, lift: float = 1.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=80) + lift * DEFECT


def test_the_difference_is_that_of_the_areas_and_lies_between_its_bounds() -> None:
    champion, challenger = scores(0), scores(1)
    found = statistics.compare(champion, challenger, DEFECT, OWN, 0.9, 1000)
    assert found is not None
    expected = (image_auroc(DEFECT, challenger) or 0) - (image_auroc(DEFECT, champion) or 0)
    assert found.difference == pytest.approx(expected)
    assert found.low < found.difference < found.high
    again = statistics.compare(champion, challenger, DEFECT, OWN, 0.9, 1000)
    assert again == found


def test_each_resample_is_what_counting_its_images_one_by_one_gives() -> None:
    champion, challenger = np.round(scores(0)), np.round(scores(1))  # with ties
    groups = [str(number // 4) for number in range(80)]
    found = statistics.compare(champion, challenger, DEFECT, groups, 0.9, 200, seed=5)
    times = statistics._resamples(20, 200, 5).astype(int)
    assert (times.sum(1) == 20).all()
    order = {name: index for index, name in enumerate(sorted(set(groups)))}
    drawn = []
    for row in times:
        taken = np.repeat(np.arange(80), [row[order[name]] for name in groups])
        first, second = (image_auroc(DEFECT[taken], values[taken]) for values in (champion, challenger))
        if first is not None and second is not None:
            drawn.append(second - first)
    assert found is not None
    assert found.low == pytest.approx(np.quantile(drawn, 0.1))
    assert found.high == pytest.approx(np.quantile(drawn, 0.9))


def _maps(seed: int, lift: float, n: int = 24) -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps of 20 x 20; every other one has a masked defect, which `lift` makes visible."""
    rng, masks = np.random.default_rng(seed), np.random.default_rng(9)
    found = []
    for number in range(n):
        mask = np.zeros((20, 20), dtype=bool)
        top, left = masks.integers(2, 14, 2)
        mask[top : top + 4, left : left + 4] = number % 2 == 1
        found.append(((rng.normal(size=mask.shape) + lift * mask).astype(np.float32), mask))
    return found


def _counted(maps: list[tuple[np.ndarray, np.ndarray]]) -> list[PixelCounts]:
    return [count(*one).coarser() for one in maps]


def _exact(maps: list[tuple[np.ndarray, np.ndarray]]) -> float:
    pixels = PixelMetrics()
    for one in maps:
        pixels.add(*one)
    return pixels.aupro() or 0.0


def test_aupro_is_compared_on_resamples_of_the_same_parts() -> None:
    champion, challenger = _maps(0, 2.0), _maps(1, 1.5)
    groups, limits = [str(number // 2) for number in range(24)], Gate(draws=150, confidence=0.9)
    found = statistics.compare_maps(_counted(champion), _counted(challenger), groups, limits)
    assert found is not None
    assert (found.groups, found.defects) == (12, 12)
    assert found.champion == pytest.approx(_exact(champion), abs=2e-3)
    assert found.challenger == pytest.approx(_exact(challenger), abs=2e-3)
    assert statistics.aupro(_counted(challenger)) == pytest.approx(found.challenger, abs=1e-12)
    order = {name: index for index, name in enumerate(sorted(set(groups)))}
    drawn = []
    for row in statistics._resamples(12, 150, 0).astype(int):
        taken = np.repeat(np.arange(24), [row[order[name]] for name in groups])
        drawn.append(_exact([challenger[i] for i in taken]) - _exact([champion[i] for i in taken]))
    assert found.low == pytest.approx(np.quantile(drawn, 0.1), abs=3e-3)
    assert found.high == pytest.approx(np.quantile(drawn, 0.9), abs=3e-3)
    assert found.high < 0  # the challenger is worse


def test_aupro_is_unknown_without_a_mask() -> None:
    good = _counted(_maps(0, 0.0)[::2])
    assert statistics.compare_maps(good, good, [str(i) for i in range(12)], Gate(draws=100)) is None
    assert statistics.aupro(good) is statistics.aupro([]) is None


def test_exposures_of_one_part_are_not_independent_evidence() -> None:
    champion, challenger = (np.tile(scores(seed)[::4], 4) for seed in (0, 1))
    defect = np.tile(DEFECT[::4], 4)
    parts = [str(number) for number in range(20)] * 4
    grouped = statistics.compare(champion, challenger, defect, parts, 0.9, 1000)
    single = statistics.compare(champion, challenger, defect, OWN, 0.9, 1000)
    assert grouped is not None
    assert single is not None
    assert grouped.error > 1.5 * single.error


def test_no_normal_or_no_defect_is_no_comparison() -> None:
    every = np.ones(80, dtype=bool)
    assert statistics.compare(scores(0), scores(1), every, OWN, 0.9, 100) is None
    assert statistics.compare(scores(0), scores(1), ~every, OWN, 0.9, 100) is None


def test_kinds_are_compared_with_all_normals() -> None:
    kinds = np.array(["good"] * 40 + ["dent"] * 20 + ["rust"] * 20)
    worse = np.where(kinds == "rust", scores(0) - 3, scores(0))
    found = statistics.compared(scores(0), worse, kinds, DEFECT, OWN, Gate(confidence=0.9, draws=200))["kinds"]
    assert set(found) == {"dent", "rust"}
    assert found["dent"].difference == 0
    assert found["rust"].high < 0
    assert found["rust"].defects == 20


def test_alarms_are_bounded_as_the_exact_binomial_bound_says() -> None:
    found = statistics.Alarms.of(np.arange(40.0), OWN[:40], 29.5, 0.95)
    assert (found.rate, found.n, found.groups) == (0.25, 40, 40)
    expected = binomtest(10, 40, alternative="greater").proportion_ci(0.95, method="exact").low
    assert found.low == pytest.approx(expected)
    few = statistics.Alarms.of(np.arange(40.0), [str(number // 4) for number in range(40)], 29.5, 0.95)
    assert few.low < found.low
    assert statistics.Alarms.of(np.zeros(5), OWN[:5], 1.0, 0.95).low == 0


def test_a_simulated_gate_has_the_quality_it_was_asked_for() -> None:
    limits = Gate(draws=100)
    found = [_draw(300, 0.9, 0.05, 0.98, seed, limits).auroc for seed in range(10)]
    seen = [item for item in found if item]
    assert np.mean([item.champion for item in seen]) == pytest.approx(0.9, abs=0.01)
    assert np.mean([item.challenger for item in seen]) == pytest.approx(0.85, abs=0.01)


def test_at_the_default_size_equals_pass_and_worse_ones_are_refused() -> None:
    limits = Gate(draws=300)
    equal, worse = _power(_DEFAULT, 0.0, limits, 500), _power(_DEFAULT, 0.05, limits, 500)
    assert equal["pass"] >= 0.95
    assert worse["refused"] >= 0.95
    assert worse["pass"] == 0


def test_below_it_the_gate_says_that_it_cannot_tell_rather_than_pass() -> None:
    few = _power(10, 0.05, Gate(draws=200), 50)
    assert few["pass"] == 0


@pytest.mark.parametrize(("images", "parts", "step"), [(60, 7, 0.5), (300, 300, 1e-6), (200, 3, 1.0)])
def test_wins_are_counted_as_pair_by_pair(images: int, parts: int, step: float) -> None:
    rng = np.random.default_rng(images)
    defect, groups = rng.random(images) < 0.6, [str(part) for part in rng.integers(parts, size=images)]
    first, second = (np.round((rng.normal(size=images) + defect) / step) * step for _ in range(2))
    found = statistics.compare(first, second, defect, groups, 0.9, 200)
    assert found is not None
    names, numbers = np.unique(groups, return_inverse=True)
    signs = [np.sign(scores[defect][:, None] - scores[~defect]) for scores in (first, second)]
    gain = (signs[1] - signs[0]) / 2  # of a pair: won is 1, a tie ½, lost 0
    weights = statistics._resamples(len(names), 200, 0)[:, numbers]
    pairs = weights[:, defect].sum(1) * weights[:, ~defect].sum(1)
    won = np.einsum("rd,dn,rn->r", weights[:, defect], gain, weights[:, ~defect])
    assert (found.low, found.high) == tuple(np.quantile((won / np.maximum(pairs, 1))[pairs > 0], [1 - 0.9, 0.9]))


def test_many_gate_images_need_no_table_of_all_pairs() -> None:
    """40,000 images: a number for each pair of a defect and a normal would be 3 GB."""
    rng, count = np.random.default_rng(0), 40_000
    defect = np.arange(count) % 2 == 0
    champion = rng.normal(size=count) + defect
    tracemalloc.start()
    found = statistics.compare(
        champion, champion + rng.normal(size=count), defect, [str(n // 8) for n in range(count)], 0.9, 100
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert found.low < found.difference < found.high
    assert peak < 500e6
