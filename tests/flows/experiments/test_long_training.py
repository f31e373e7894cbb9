"""A training that is measured on its way: what is kept, what goes on, and what the page says."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.experiments import long_training
from flows.experiments.long_training import Effort, Point
from flows.experiments.subjects import Subject
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.training import loop
from tests.flows.experiments.test_trial import data as _data
from tests.flows.experiments.test_trial import params

data = _data
EFFORT = Effort(4, (0.5, 1.0))


@pytest.fixture(scope="module")
def settings() -> config.Params:
    model = {"backbone": "vqgan", "width": 16, "code_dim": 8, "codes": 32}
    return params(model=model, train={"steps": 4, "batch": 4, "adversarial": True}, score={"recon": "decoder"})


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def points(data: tuple[pd.DataFrame, Path], settings: config.Params, work: Path) -> list[Point]:
    return list(long_training.run([Subject("cloth", *data)], settings, ["linear", "constant"], [0], work, EFFORT))


def test_a_training_is_measured_on_its_way_and_every_budget_at_its_end(points: list[Point]) -> None:
    assert [(point.setting, point.step) for point in points] == [
        ("linear", 2),
        ("linear", 4),
        ("constant", 2),
        ("constant", 4),
    ]
    assert all(0 <= (point.figures["image_auroc"] or 0) <= 1 for point in points)
    assert [bool(point.budgets) for point in points] == [False, True, False, True]
    assert set(points[1].budgets) == {"expected", "actual", "coarse", "medium", "fine"}
    assert points[1].budgets["expected"]["image_auroc"] == points[1].figures["image_auroc"]
    assert points[0].figures != points[1].figures


def test_what_is_measured_is_kept_and_what_is_trained_goes_on(
    points: list[Point],
    data: tuple[pd.DataFrame, Path],
    settings: config.Params,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, steps = loop._step, list[int]()

    def counted(run: Any, examples: Any, step: int) -> dict[str, Any]:
        steps.append(step)
        return real(run, examples, step)

    monkeypatch.setattr(loop, "_step", counted)
    subject = [Subject("cloth", *data)]
    assert list(long_training.run(subject, settings, ["linear", "constant"], [0], work, EFFORT)) == points
    assert not steps
    last = next((work / "long").glob("cloth-linear-0-*/step-000004.json"))
    last.unlink()
    kept = long_training.run(subject, settings, ["linear", "constant"], [0], work, EFFORT, go_on=False)
    assert [str(point) for point in kept] == [
        "linear, cloth, seed 0, step 2",
        "constant, cloth, seed 0, step 2",
        "constant, cloth, seed 0, step 4",
    ]
    (again,) = [p for p in long_training.run(subject, settings, ["linear"], [0], work, EFFORT) if p.step == 4]
    assert not steps, "its weights were still there"
    assert again.figures == points[1].figures | {"seconds": again.figures["seconds"]}


def test_normals_and_defects_are_drawn_below_the_work_folder(points: list[Point], work: Path) -> None:
    drawn = sorted((work / "long").glob("cloth-linear-0-*/step-000004/*.png"))
    assert {file.name.split("-")[0] for file in drawn} == {"normal", "defect"}
    with Image.open(drawn[0]) as strip:
        assert strip.width == 4 * strip.height
        assert np.asarray(strip).std() > 0


def test_the_page_says_what_is_not_finished(points: list[Point], settings: config.Params) -> None:
    text = long_training.page(points[:3], "the command", settings, EFFORT, "plot.svg", "An answer.\n")
    assert "**Not finished:** constant, cloth: step 2." in text
    assert "| constant | cloth | 0 | 2 |" in text
    assert "constant: `train.schedule=constant`, `train.lambda_max=1.0`" in text
    assert text.endswith("## Answer\n\nAn answer.\n")
    assert "**Not finished" not in long_training.page(points, "the command", settings, EFFORT, "plot.svg", "")


def test_the_same_points_give_the_same_plot(points: list[Point]) -> None:
    first = long_training.plot(points)
    assert first == long_training.plot(points)
    assert "cloth: image AUROC" in first


def test_an_unknown_setting_is_a_users_error() -> None:
    assert long_training.chosen([]) == ["linear", "constant", "perceptual"]
    with pytest.raises(ConfigError, match="no setting quick; choose of linear, constant, perceptual"):
        long_training.chosen(["quick"])
