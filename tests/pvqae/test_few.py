"""A class of 1 to 7 good images: a detector that promises no rate and says so, until there are 8."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from fastapi.testclient import TestClient

import pvqae
from pvqae.calibration import thresholds
from pvqae.cli import diagnosis
from pvqae.core import config
from pvqae.core.errors import CalibrationError
from pvqae.core.files import read_folder
from pvqae.core.layout import Layout
from pvqae.datasets import build, validation
from pvqae.drift import drift_report, profile
from pvqae.inference import bundle
from pvqae.report import page
from pvqae.samples import images
from pvqae.serving import app, batch_cli, slot
from pvqae.serving.middleware import Metrics

SMALL: dict[str, Any] = {
    "image": {"size": 64},
    "memory": {"codes": 32},
    "calibration": {"folds": 2, "false_alarm_rate": 0.2},
    "compute": {"device": "cpu", "threads": 1, "parallel": 1},
    "train": {"steps": 0},
}
WORDS = "promises no false-alarm rate: it learnt from {}, too few to know one; train again with 8 or more"


def learnt(raw: Path, count: int, **more: Any) -> pvqae.Detector:
    files = sorted((raw / "cloth" / "train" / "good").iterdir())[:count]
    return pvqae.fit(files, {**SMALL, **more}, name="cloth")


@pytest.fixture(scope="module")
def pair(raw: Path) -> pvqae.Detector:
    return learnt(raw, 2)


@pytest.mark.parametrize(("count", "said"), [(1, "1 good image"), (2, "2 good images"), (7, "7 good images")])
def test_few_images_make_a_detector_that_promises_no_rate(raw: Path, count: int, said: str) -> None:
    detector = learnt(raw, count)
    card, words = detector.card, WORDS.format(said)
    assert card["no_promise"] == words
    assert card["warnings"][0] == words
    assert (card["n"], card["n_groups"], card["interval_95"]) == (count, count, [0.0, 1.0])
    assert card["method"] == ("one_part" if count == 1 else "leave_one_out")
    assert detector.notes == [f"cloth {words}"]
    assert words in detector._repr_html_()
    assert ("1 photograph of 1 good part<" in detector._repr_html_()) == (detector.card["n"] == 1)
    assert detector._repr_html_().count("false-alarm rate") == 1
    assert "no rate promised" in repr(detector)
    assert detector.threshold > max(card["scores"]) - 1e-4
    assert detector.score(raw / "cloth" / "test" / "dent" / "000.png").decision == "defect"
    assert detector.score(raw / "cloth" / "test" / "dent" / "000.png").mask is not None


def test_with_eight_nothing_of_it_is_left(raw: Path) -> None:
    card = learnt(raw, 8).card
    assert "no_promise" not in card
    assert card["method"] == "cross_fit"
    assert not [words for words in card["warnings"] if "promises" in words]
    assert card["interval_95"][1] < 1
    assert card == {**learnt(raw, 8, data={"min_normals": 8}).card}


def test_the_score_may_come_from_trained_networks(raw: Path) -> None:
    train, model = {"steps": 3, "batch": 4}, {"width": 16, "code_dim": 8, "codes": 32}
    more = {"train": train, "model": model, "score": {"recon": "both"}, "prior": {"steps": 3, "width": 16}}
    detector = learnt(raw, 1, **more)
    assert np.isfinite(detector.threshold)
    assert detector.card["no_promise"]


def test_the_threshold_is_above_the_highest_score_by_its_distance_from_the_median() -> None:
    found = thresholds.without_promise(np.array([1.0, 2.0, 5.0]), 0.05, 3, 8)
    assert found.value == 8
    with pytest.raises(CalibrationError, match="no finite scores"):
        thresholds.without_promise(np.array([np.nan]), 0.05, 1, 8)


def test_scoring_says_it_once(
    pair: pvqae.Detector, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: Any
) -> None:
    saved = pair.save(tmp_path / "bundle")
    capsys.readouterr()
    assert tiny.run(batch_cli.score, saved, [raw / "cloth" / "test" / "good"], None, False, False, False) == 0
    assert capsys.readouterr().err.count("cloth promises no false-alarm rate") == 1


def test_the_service_says_it(pair: pvqae.Detector, tmp_path: Path) -> None:
    metrics = Metrics()
    answering = slot.ModelSlot(metrics)
    answering.put(slot.load(read_folder(pair.save(tmp_path / "bundle"), "a bundle", "")))
    with TestClient(app.make(answering, config.Service(rate=0), metrics), base_url="http://127.0.0.1") as client:
        words = WORDS.format("2 good images")
        assert client.get("/ready").json()["no_promise"] == words
        assert client.get("/v1/model").json()["calibration"]["no_promise"] == words


def test_drift_is_not_judged_by_so_few(pair: pvqae.Detector) -> None:
    normals = profile.read(pair.files)
    assert len(normals) == 2
    batch = pd.concat([normals] * 20, ignore_index=True).assign(since="")
    found = drift_report.Report.of(normals, batch, pair.threshold, config.Drift())
    assert found.verdict == "insufficient"
    assert "the profile has normals of 2 parts, at least 8 are needed" in found.sentence


def put(layout: Layout, raw: Path, good: int) -> None:
    """Lay the dataset out with so many good images to train with."""
    shutil.rmtree(layout.raw, ignore_errors=True)
    shutil.copytree(raw / "cloth", layout.raw / "cloth")
    for file in sorted((layout.raw / "cloth" / "train" / "good").iterdir())[good:]:
        file.unlink()


def test_a_class_begins_with_one_image_and_becomes_ordinary_when_others_arrive(
    raw: Path, tmp_path: Path, tiny: Any
) -> None:
    layout = Layout(tmp_path, "tiny")
    params = tiny.params(data={"name": "tiny", "source": "mvtec", "shares": {"gate": 0.0}}, train={"steps": 2})
    layout.raw.parent.mkdir(parents=True)
    layout.classes_file.write_text(yaml.safe_dump(tiny.per_class("cloth")))
    page = layout.reports / "index.html"
    for count in (1, 8):
        put(layout, raw, count)
        build.build(layout.root, params)
        summary = validation.check(layout, params)
        told = [text for text in summary.warnings if "false-alarm rate can be promised" in text]
        tiny.stages(layout, params)
        card = bundle.load(layout.bundle("cloth")).card
        doctor = [check for check in diagnosis._bundles(layout.root) if "promises" in check.found]
        metrics = json.loads((layout.class_report("cloth") / "metrics.json").read_text())
        assert metrics["image_auroc"] is not None
        few = count == 1
        assert bool(told) == bool(doctor) == ("no_promise" in card) == few
        assert ("cloth promises no false-alarm rate" in page.read_text()) == few
        assert ("none promised" in page.read_text()) == few
    assert card["n"] == 8


def test_the_only_image_teaches_whatever_its_hash_says(tmp_path: Path, picture: Callable[..., Any]) -> None:
    for name in "abcdefgh":
        layout = Layout(tmp_path / name, "tiny")
        images.write(layout.raw / "good" / f"{name}.png", picture(1, 64, 64))
        params = config.parse({"data": {"name": "tiny", "source": "folder"}})
        build.build(layout.root, params)
        rows = pd.read_csv(layout.manifest)
        assert set(rows["split"]) <= {"train", "calibrate"}


def test_what_is_exported_says_it_too(pair: pvqae.Detector, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from pvqae.export import export

    saved = pair.save(tmp_path / "bundle")
    assert export._card(bundle.load(saved), "onnx")["no_promise"] == WORDS.format("2 good images")


@pytest.mark.parametrize(
    ("few", "said"),
    [
        (0, ""),
        (1, " c0 promises nothing."),
        (2, " c0 and c1 promise no false-alarm rate: each learnt from too few good images."),
        (6, " c0, c1, c2 and 3 other classes promise no false-alarm rate: each learnt from too few good images."),
    ],
)
def test_a_report_names_the_classes_that_promise_no_rate(few: int, said: str) -> None:
    cards = [{"no_promise": "promises nothing"} if number < few else {} for number in range(8)]
    classes = [SimpleNamespace(name=f"c{number}", card=card) for number, card in enumerate(cards)]
    assert page._promises_nothing(classes) == said
