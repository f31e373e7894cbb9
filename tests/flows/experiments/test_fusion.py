"""Fusing the memory with the mechanism: what is measured, what is kept, and what a class may not choose itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.experiments import fusion
from flows.experiments.fusion import ALONE
from flows.experiments.subjects import Subject
from flows.experiments.trial import BenchmarkContext
from pvqae.core.errors import DataError
from pvqae.evaluation.metrics import image_auroc
from pvqae.inference import measures
from tests.flows.experiments.test_trial import data as _data
from tests.flows.experiments.test_trial import params

data = _data
PARAMS = params(score={"image": {"stride16": 1, "joint": 2}, "map": {"joint": 1}})


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def cloth(data: tuple[pd.DataFrame, Path]) -> list[Subject]:
    return [Subject("cloth", *data)]


@pytest.fixture(scope="module")
def results(cloth: list[Subject], work: Path) -> list[dict[str, Any]]:
    return fusion.run(cloth, PARAMS, (0,), work, fusion.QUICK)


def test_every_signal_is_fused_in_every_way(results: list[dict[str, Any]]) -> None:
    network, codes = results
    assert len(network["image"]) == 1 + 3 * 9
    assert len(codes["image"]) == 1 + 6 * 9
    assert len(network["map"]) == 1 + 3 * 4
    assert network["image"][ALONE] == codes["image"][ALONE]
    for scores in (*network["image"].values(), *codes["image"].values()):
        assert np.isfinite(scores).all()
        assert len(scores) == 10
    assert all(0 <= x <= 1 for one in results for figures in one["map"].values() for x in figures.values())


def test_the_memory_alone_is_the_shipped_score(
    results: list[dict[str, Any]], data: tuple[pd.DataFrame, Path], work: Path
) -> None:
    """Not the number, whose unit is another, but the order of the images and the figures of the maps."""
    judged = BenchmarkContext(Subject("cloth", *data), PARAMS, work).outcome()
    ours, shipped = np.array(results[0]["image"][ALONE]), judged.scores["image_score"].to_numpy()
    np.testing.assert_allclose((ours - ours.mean()) / ours.std(), (shipped - shipped.mean()) / shipped.std(), atol=1e-3)
    for figure in ("pixel_auroc", "aupro"):
        assert results[0]["map"][ALONE][figure] == pytest.approx(judged.figures[figure], abs=1e-4)


def test_finished_classes_are_not_measured_again(
    results: list[dict[str, Any]], cloth: list[Subject], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(fusion, "measure", lambda *_: pytest.fail("measured again"))
    assert fusion.run(cloth, PARAMS, (0,), work, fusion.QUICK) == results


def test_tiled_images_are_refused(cloth: list[Subject], work: Path) -> None:
    with pytest.raises(DataError, match=r"image.aspect: expected one view per image, found tile"):
        fusion.run(cloth, params(image={"size": 64, "aspect": "tile"}), (0,), work, fusion.QUICK)


def test_a_page_has_the_class_left_out_and_the_differences(cloth: list[Subject]) -> None:
    """The memory ranks 3 of 4 pairs rightly; one signal repairs class a, the other class b."""
    rows = pd.DataFrame({"split": "test", "label": ["normal", "normal", "defect", "defect"], "group_id": list("1234")})
    alone, right, wrong = [0.0, 2.0, 1.0, 3.0], [0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]
    found = [Subject(name, rows, Path()) for name in ("a", "b")]
    results = [
        {
            "class": name,
            "seed": 0,
            "group": "60 steps",
            "image": {
                ALONE: alone,
                "one alone": wrong,
                "memory + 1 one, cells": right if name == "a" else wrong,
                "other alone": wrong,
                "memory + 1 other, cells": right if name == "b" else wrong,
            },
            "map": {},
            "facts": {"class codes, stride8": {"perplexity": 31.0, "nats": 2.5, "frequencies": 3.0}},
        }
        for name in ("a", "b")
    ]
    lines = fusion.page(results, found, PARAMS, fusion.QUICK).splitlines()
    assert "| a | memory + 1 other, cells | 0.0000 |" in lines
    assert "| none | memory alone | 0.7500 |" in lines
    assert "| class codes, stride8 | 31; 3.00 → 2.50 | 31; 3.00 → 2.50 |" in lines
    differences = [line for line in lines if line.startswith(("| chosen by", "| memory + 1 one, cells, by"))]
    assert [[cell.split(" (")[0] for cell in line.split(" | ")[1:]] for line in differences] == [
        ["-0.750", "-0.750", "-0.750"],
        ["+0.250", "-0.750", "-0.250"],
    ]
    assert image_auroc(np.array([False, False, True, True]), np.array(alone)) == 0.75
