"""Reading real defects out in every way: kept results, and a class never judges what it has chosen itself."""

from pathlib import Path

import pandas as pd
import pytest

from flows.experiments import readouts
from flows.experiments.readouts import FOR_IMAGE, FOR_MAP
from flows.experiments.subjects import Subject
from pvqae.core import config
from pvqae.inference import measures
from tests.flows.experiments.test_trial import data as _data
from tests.flows.experiments.test_trial import params

data = _data


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def table(data: tuple[pd.DataFrame, Path], work: Path) -> pd.DataFrame:
    return readouts.run([Subject("cloth", *data)], params(), (0, 1), work)


def test_every_candidate_is_measured_with_every_seed(table: pd.DataFrame) -> None:
    assert len(table) == 2 * (len(FOR_IMAGE) + len(FOR_MAP))
    image, maps = table[table["use"] == "image"], table[table["use"] == "map"]
    assert set(image["readout"]) == set(FOR_IMAGE)
    assert set(maps["readout"]) == set(FOR_MAP)
    assert image["image_auroc"].between(0, 1).all()
    assert maps["pixel_auroc"].max() > 0.8  # dents are plain to see
    assert (maps["aupro_05"] <= maps["aupro"]).all()


def test_the_shipped_readout_is_among_the_candidates() -> None:
    score = config.load(Path(__file__).parents[3] / "params.yaml").score
    assert any((use.weights, use.scale) == (score.image, score.image_scale) for use in FOR_IMAGE.values())
    assert any((use.weights, use.scale) == (score.map, score.map_scale) for use in FOR_MAP.values())


def test_a_finished_class_is_not_measured_again(
    data: tuple[pd.DataFrame, Path], work: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "measure", lambda *_: pytest.fail("measured again"))
    again = readouts.run([Subject("cloth", *data)], params(), (0, 1), work)
    pd.testing.assert_frame_equal(again, table)


def test_a_class_judges_what_the_others_chose() -> None:
    """Each class would choose what nobody else wants: "own a", and so on."""
    values = {"own a": (1.0, 0.2, 0.3), "own b": (0.1, 0.9, 0.3), "own c": (0.2, 0.3, 0.95), "even": (0.7, 0.6, 0.8)}
    rows = [
        {"class": name, "seed": seed, "use": "image", "readout": readout, "image_auroc": value + (seed - 0.5) / 100}
        for readout, own in values.items()
        for name, value in zip("abc", own, strict=True)
        for seed in (0, 1)
    ]
    lines = readouts.page(pd.DataFrame(rows), "facts").splitlines()
    assert lines[7:12] == [
        "|---|---|---|",
        "| a | even | 0.7000 |",
        "| b | even | 0.6000 |",
        "| c | even | 0.8000 |",
        "| mean | | 0.7000 |",
    ]
    assert "| none | even | 0.7000 |" in lines
    assert "| own a | 1.000 | 0.200 | 0.300 | 0.5000 |" in lines
