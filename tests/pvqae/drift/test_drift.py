import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp

from pvqae.drift import drift, profile
from pvqae.samples import images

SETTINGS = {"rate": 0.02, "draws": 300}


def normals(seed: int, groups: int = 20, each: int = 3, within: float = 0.3) -> pd.DataFrame:
    """Groups of photographs that resemble each other: `within` is their spread against that of groups."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(groups), each)

    def feature(middle: float, spread: float) -> np.ndarray:
        part = rng.standard_normal(groups)[owner] + within * rng.standard_normal(len(owner))
        return middle + spread * part / np.hypot(1, within)

    columns = {"brightness": feature(0.5, 0.05), "sharpness": feature(0.2, 0.01), profile.SCORE: feature(0, 1)}
    return pd.DataFrame(columns | {"megapixels": 1.0, profile.GROUP: owner})


def batch(seed: int, n: int = 60, **added: float) -> pd.DataFrame:
    found = normals(seed + 1000, groups=n, each=1).drop(columns=profile.GROUP)
    return found.assign(**{name: found[name] + value for name, value in added.items()})


def judged(found: pd.DataFrame, seed: int = 0) -> drift.Comparison:
    return drift.compare(normals(seed), found, threshold=2.0, **SETTINGS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of scipy's p-value for tiny samples, which is not used
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_distance_is_scipys(a: list[int], b: list[int]) -> None:
    x, y = np.array(a, dtype=float), np.array(b, dtype=float)
    assert drift._ks("brightness", x, y) == pytest.approx(ks_2samp(x, y, method="asymp").statistic)
    assert drift._ks(profile.SCORE, x, y) == pytest.approx(
        max(0, ks_2samp(x, y, alternative="greater", method="asymp").statistic)
    )


def test_undrifted_batches_raise_few_alarms() -> None:
    alarms = [bool(judged(batch(seed), seed).drifted) for seed in range(150)]
    assert np.mean(alarms) <= 0.05


def test_batches_grouped_like_the_normals_raise_few_alarms() -> None:
    found = [normals(seed + 5000).drop(columns=profile.GROUP) for seed in range(150)]
    assert np.mean([bool(judged(one, seed).drifted) for seed, one in enumerate(found)]) <= 0.05


def test_a_shift_is_found_and_named() -> None:
    found = judged(batch(3, brightness=0.1))
    assert found.drifted == ("brightness",)
    figure = next(one for one in found.figures if one.name == "brightness")
    assert figure.shift == pytest.approx(2, abs=0.7)
    assert figure.ks > figure.limit
    assert figure.p_value < 0.02
    assert figure.psi > figure.psi_limit


def test_only_higher_scores_are_drift() -> None:
    assert profile.SCORE in judged(batch(4, image_score=2.5)).drifted
    assert judged(batch(4, image_score=-2.5)).drifted == ()


def test_many_images_above_the_threshold_are_drift_with_their_interval() -> None:
    found = batch(5)
    found.loc[:19, profile.SCORE] = 30.0
    share = judged(found).share
    assert share.drifted
    assert share.above >= 20
    assert share.interval_95[0] < share.above / share.n < share.interval_95[1]


def test_a_feature_that_normals_never_vary_may_not_vary() -> None:
    assert "megapixels" in judged(batch(6, megapixels=1.0)).drifted
    few = batch(6)
    few.loc[:1, "megapixels"] = 2.0
    assert judged(few).drifted == ()


def test_more_images_show_smaller_shifts() -> None:
    assert judged(batch(7, n=200)).detectable_shift < judged(batch(7, n=20)).detectable_shift


def test_photographs_of_one_part_are_not_independent() -> None:
    alike, apart = (drift.compare(normals(8, 10, 6, within), batch(8), 2.0, **SETTINGS) for within in (0.01, 100.0))
    assert alike.figures[0].limit > 1.1 * apart.figures[0].limit


def test_the_same_seed_gives_the_same_limits() -> None:
    assert judged(batch(9)) == judged(batch(9))


def test_measures_of_known_pictures() -> None:
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.random((40, 50, 1), dtype=np.float32), 3, axis=2) * 0.5 + 0.2
    plain = profile.measure(grey)
    assert plain["colour"] == 0
    assert plain["megapixels"] == 0.002
    brighter = profile.measure(grey + np.float32(0.1))
    assert brighter["brightness"] == pytest.approx(plain["brightness"] + 0.1, abs=1e-5)
    assert brighter["sharpness"] == pytest.approx(plain["sharpness"], abs=1e-4)
    exposed = profile.measure((grey * 1.2).astype(np.float32))
    assert exposed["sharpness"] == pytest.approx(plain["sharpness"], abs=1e-4)
    assert exposed["contrast"] == pytest.approx(1.2 * plain["contrast"], abs=1e-4)
    blurred = profile.measure(gaussian_filter(grey, (1, 1, 0)).astype(np.float32))
    assert blurred["sharpness"] < 0.8 * plain["sharpness"]
    assert profile.measure(np.zeros((4, 4, 3), dtype=np.float32))["sharpness"] == 0.0
    assert tuple(plain) == profile.STATISTICS


def test_statistics_are_those_of_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    images.write(tmp_path / "a.png", rng.random((20, 30, 3), dtype=np.float32))
    assert profile.measure(images.read(tmp_path / "a.png"))["colour"] > 0.1
