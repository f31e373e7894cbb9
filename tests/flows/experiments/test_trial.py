"""A trial on one small class: what it reports, what it keeps, and that kept work changes nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.experiments import trained, trial
from flows.experiments.subjects import Subject
from flows.experiments.trial import BenchmarkContext
from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.datasets import build
from pvqae.samples import images, manifest


def picture(seed: int) -> np.ndarray:
    """Soft waves with a little noise, like a woven sheet; 64 x 64 px."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.mgrid[:64, :64] * 0.4 + rng.random((2, 1, 1)) * 0.5).sum(0)
    grey = 0.5 + 0.12 * waves + 0.02 * rng.standard_normal((64, 64))
    return np.repeat(grey[..., None], 3, axis=2).clip(0, 1).astype(np.float32)


def params(**sections: object) -> config.Params:
    values: dict[str, object] = {
        "data": {"name": "tiny", "source": "mvtec", "min_normals": 4},
        "image": {"size": 64},
        "model": {"width": 16, "code_dim": 8, "codes": 32},
        "memory": {"codes": 64},
        "train": {"steps": 4, "batch": 4},
        "prior": {"steps": 3, "width": 16},
        "compute": {"device": "cpu", "precision": "float32"},
    }
    return config.parse(values | sections)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """Manifest rows of one class, 12 good ones to train with, 5 good and 5 dented ones to test; and the data root."""
    layout = Layout(tmp_path_factory.mktemp("workspace"), "tiny")
    place = layout.raw / "cloth"
    for folder, count in (("train/good", 12), ("test/good", 5), ("test/dent", 5)):
        for index in range(count):
            image, mask = picture(100 * len(folder) + index), np.zeros((64, 64), dtype=np.bool_)
            if folder.endswith("dent"):
                mask[10:24, 12 : 30 + index] = True
                image[mask] = 0.02
                images.write(place / "ground_truth/dent" / f"{index:03}_mask.png", mask)
            images.write(place / folder / f"{index:03}.png", image)
    build.build(layout.root, params())
    return manifest.read(layout.manifest), layout.data


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def context(data: tuple[pd.DataFrame, Path], work: Path, given: config.Params | None = None) -> BenchmarkContext:
    return BenchmarkContext(Subject("cloth", *data), given or params(), work)


@pytest.fixture(scope="module")
def outcome(data: tuple[pd.DataFrame, Path], work: Path) -> trial.TrialResult:
    return context(data, work).outcome()


def test_it_finds_plain_dents_and_reports_as_metrics_json_does(outcome: trial.TrialResult) -> None:
    assert outcome.figures["image_auroc"] > 0.9
    assert outcome.figures["pixel_auroc"] > 0.8
    assert outcome.figures["threshold"] is None, "nothing was calibrated"
    assert outcome.figures["kinds"]["dent"]["n"] == 5
    assert sum(outcome.figures["level_shares"]) == pytest.approx(1, abs=1e-5)
    assert outcome.figures["prior_cross_entropy"] is not None
    assert outcome.figures["frequency_cross_entropy"] is not None
    assert outcome.megabytes > 0
    assert outcome.milliseconds > 0


def test_scores_name_every_test_image_with_its_group(
    outcome: trial.TrialResult, data: tuple[pd.DataFrame, Path]
) -> None:
    test = data[0][data[0]["split"] == "test"]
    assert list(outcome.scores["sample_id"]) == list(test["sample_id"])
    assert {"group_id", "label", "kind", "image_score", "s_prior", "s_recon", "product"} <= set(outcome.scores)


def test_finished_weights_are_found_again_and_give_the_same_scores(
    outcome: trial.TrialResult, data: tuple[pd.DataFrame, Path], work: Path
) -> None:
    files = {p: p.stat().st_mtime_ns for p in work.rglob("*.safetensors")}
    again = context(data, work).outcome()
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*.safetensors")} == files
    pd.testing.assert_frame_equal(again.scores, outcome.scores)


def test_another_training_is_another_network_but_the_same_views(
    outcome: trial.TrialResult, data: tuple[pd.DataFrame, Path], work: Path
) -> None:
    before = {p.name for p in (work / "views").iterdir()}, len(list((work / "networks").iterdir()))
    other = params(train={"steps": 5, "batch": 4})
    context(data, work, other).scorer()
    after = {p.name for p in (work / "views").iterdir()}, len(list((work / "networks").iterdir()))
    assert after == (before[0], before[1] + 1)


def test_kept_views_score_as_the_files_do(data: tuple[pd.DataFrame, Path], work: Path) -> None:
    """Up to the half precision that they are kept in."""
    found = trained.train(params(), Subject("cloth", *data), work)
    for (_, ours), (_, files) in zip(found.scored(), found.scored(from_files=True), strict=True):
        assert ours.sample_id == files.sample_id
        assert ours.image_score == pytest.approx(files.image_score, rel=0.02, abs=0.02)
        np.testing.assert_allclose(ours.anomaly_map, files.anomaly_map, rtol=0.05, atol=0.05)


def test_a_trained_backbone_is_judged_from_the_files(data: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    model = {"backbone": "vqgan", "width": 8, "code_dim": 4, "codes": 16}
    found = context(data, tmp_path, params(model=model)).outcome()
    assert len(found.scores) == 10


def test_rows_of_two_classes_are_refused(data: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    two = pd.concat([data[0], data[0].assign(category="plate")])
    with pytest.raises(DataError, match=r"one class .* found \['cloth', 'plate'\]"):
        context((two, data[1]), tmp_path).outcome()


def test_rows_without_test_images_are_refused(data: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows of split test"):
        context((data[0][data[0]["split"] != "test"], data[1]), tmp_path).outcome()
