"""One class: figures, files and errors of a whole evaluation, with stand-in scores."""

import dataclasses
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from pvqae.core.errors import DataError

Make = Callable[..., Any]
PARTS = ("s_prior", "s_recon", "product")
THRESHOLD = 1.5  # of the stand-in's card
KEYS = [
    *("image_auroc", "pixel_auroc", "aupro", "aupro_005", "pixel_f1_max", "seg_f1"),
    *("pixel_threshold", "pixel_false_alarm_area"),
    *("f1_max", "threshold", "false_alarm_rate", "miss_rate"),
    *(f"{part}_{where}_auroc" for where in ("image", "pixel") for part in PARTS),
    *("fusion", "kinds", "prior_cross_entropy", "frequency_cross_entropy", "level_shares", "codebook_usage"),
    *("n_normal", "n_defect", "latency_ms", "train_seconds"),
]


def test_metrics_have_the_keys_of_the_schema_and_the_values_of_the_oracle(make_class: Make, tmp_path: Path) -> None:
    made = make_class()
    result = made.evaluate(tmp_path / "out", latency_ms=3.5, train_seconds=9.0)
    assert list(result) == KEYS
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == result
    defect = made.rows["label"] == "defect"
    assert result["image_auroc"] == pytest.approx(roc_auc_score(defect, [one.image_score for one in made.scored]))
    for part in PARTS:
        expected = roc_auc_score(defect, [one.parts[part] for one in made.scored])
        assert result[f"{part}_image_auroc"] == pytest.approx(expected)
    masks = np.stack([_mask_of(made, place) for place in range(len(made.rows))])
    for name, maps in (
        ("pixel_auroc", [one.anomaly_map for one in made.scored]),
        ("s_prior_pixel_auroc", [one.part_maps["s_prior"] for one in made.scored]),
    ):
        assert result[name] == pytest.approx(roc_auc_score(masks.ravel(), np.stack(maps).ravel()), abs=1e-3)
    assert (result["n_normal"], result["n_defect"], result["latency_ms"]) == (12, 10, 3.5)


def _mask_of(made: Any, place: int) -> np.ndarray:
    path = made.rows["mask_path"].iloc[place]
    if not path:
        return np.zeros((64, 64), bool)
    with Image.open(made.data / path) as image:
        return np.asarray(image) > 127


def test_images_csv_has_a_row_per_image_in_order_and_agrees_with_the_rates(make_class: Make, tmp_path: Path) -> None:
    made = make_class()
    result = made.evaluate(tmp_path / "out", scored=made.scored[::-1])
    images = pd.read_csv(tmp_path / "out/images.csv")
    columns = ["sample_id", "path", "label", "kind", "image_score", *PARTS, "decision", "outcome", "marked_area"]
    assert list(images.columns) == columns
    assert list(images["sample_id"]) == list(made.rows["sample_id"])
    counts = images.groupby("label")["outcome"].value_counts()
    assert counts.get(("defect", "miss"), 0) / 10 == result["miss_rate"]
    assert counts.get(("normal", "false_alarm"), 0) / 12 == result["false_alarm_rate"]
    assert ((images["image_score"] > THRESHOLD) == (images["decision"] == "defect")).all()


def test_the_pixel_threshold_is_judged_over_all_test_pixels(make_class: Make, tmp_path: Path) -> None:
    made = make_class()
    result = made.evaluate(tmp_path / "out")
    marked = np.stack([one.anomaly_map for one in made.scored]) > result["pixel_threshold"]
    masks = np.stack([_mask_of(made, place) for place in range(len(made.rows))])
    assert result["seg_f1"] == pytest.approx(f1_score(masks.ravel(), marked.ravel()), abs=1e-12)
    assert result["pixel_threshold"] == 1.75
    assert 0 < result["seg_f1"] <= result["pixel_f1_max"] + 1e-3
    assert result["pixel_false_alarm_area"] == pytest.approx(marked[:12].mean(), abs=1e-6)
    images = pd.read_csv(tmp_path / "out/images.csv")
    assert list(images["marked_area"]) == pytest.approx(list(marked.mean(axis=(1, 2))), abs=1e-6)


def test_a_bundle_without_a_pixel_threshold_is_evaluated_without_it(make_class: Make, tmp_path: Path) -> None:
    result = make_class().evaluate(tmp_path / "out", card={"pixel": None})
    assert (result["seg_f1"], result["pixel_threshold"], result["pixel_false_alarm_area"]) == (None, None, None)
    assert result["aupro"] > 0
    assert pd.read_csv(tmp_path / "out/images.csv")["marked_area"].isna().all()


def test_kinds_are_judged_against_all_normals(make_class: Make, tmp_path: Path) -> None:
    made = make_class()
    made.rows.loc[[12, 13], "kind"] = "dent"
    scores = [one.image_score for one in made.scored[:14]]
    result = made.evaluate(tmp_path / "out")
    assert {kind: row["n"] for kind, row in result["kinds"].items()} == {"blob": 8, "dent": 2}
    dent = result["kinds"]["dent"]
    assert dent["image_auroc"] == pytest.approx(roc_auc_score([0] * 12 + [1, 1], scores))
    assert dent["miss_rate"] == np.mean([score <= THRESHOLD for score in scores[12:]])


def test_without_masks_pixel_figures_are_null_and_images_are_judged(make_class: Make, tmp_path: Path) -> None:
    result = make_class(masked=False).evaluate(tmp_path / "out")
    pixel_keys = [key for key in KEYS if "pixel" in key or "aupro" in key]
    assert {key: result[key] for key in pixel_keys if result[key] is not None}.keys() == {
        "pixel_threshold",
        "pixel_false_alarm_area",
    }
    assert result["seg_f1"] is None
    assert result["image_auroc"] > 0.5
    entries = json.loads((tmp_path / "out/pictures.json").read_text())
    assert not any("mask" in entry["files"] for entry in entries)


def test_good_images_alone_give_a_false_alarm_rate(make_class: Make, tmp_path: Path) -> None:
    result = make_class(defects=0).evaluate(tmp_path / "out")
    assert result["image_auroc"] is result["miss_rate"] is result["f1_max"] is result["pixel_auroc"] is None
    assert 0 <= result["false_alarm_rate"] <= 1
    assert result["kinds"] == {}


def test_pictures_are_bounded_small_and_named_by_number(make_class: Make, tmp_path: Path) -> None:
    made = make_class(normals=9, kind="../<b>", side=320)
    made.evaluate(tmp_path / "out", pictures=2)
    entries = json.loads((tmp_path / "out/pictures.json").read_text())
    groups = [entry["group"] for entry in entries]
    assert {group: groups.count(group) for group in groups} == dict.fromkeys(
        ("normal_high", "defect_low", "defect_high", "normal_low"), 2
    )
    files = [name for entry in entries for name in entry["files"].values()]
    assert sorted(files) == sorted(f"pictures/{path.name}" for path in (tmp_path / "out/pictures").iterdir())
    for name in files:
        with Image.open(tmp_path / "out" / name) as image:
            assert max(image.size) <= 256
    assert all(("mask" in entry["files"]) == (entry["label"] == "defect") for entry in entries)


def test_the_same_input_gives_the_same_bytes(make_class: Make, tmp_path: Path) -> None:
    made = make_class()
    for name in ("one", "two"):
        made.evaluate(tmp_path / name)
    one, two = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    )
    assert one == two


def test_maps_of_passed_images_are_not_kept(make_class: Make, tmp_path: Path) -> None:
    made, passed, alive = make_class(), [], []

    def stream() -> Iterator[Any]:
        for one in made.scored:
            fresh = dataclasses.replace(one)
            passed.append(weakref.ref(fresh))
            yield fresh
            del fresh
            alive.append(sum(ref() is not None for ref in passed))

    made.evaluate(tmp_path / "out", scored=stream(), pictures=5)
    assert len(passed) == len(made.rows)
    assert max(alive) <= 1  # the one in hand


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda made: made.scored[1:], "s000"),
        (lambda made: [*made.scored, made.scored[3]], "s003: scored twice"),
        (lambda made: made.with_scored(2, sample_id="stranger"), "stranger"),
        (lambda made: made.with_scored(2, image_score=float("nan")), "raw/good/002.png: a score is not finite"),
        (lambda made: made.with_scored(2, draw=lambda name: np.full((64, 64), np.nan, np.float32)), "raw/good/002.png"),
    ],
)
def test_wrong_scores_are_an_error_and_the_old_result_stays(
    make_class: Make, tmp_path: Path, spoil: Callable[[Any], list[Any]], text: str
) -> None:
    made, out = make_class(), tmp_path / "out"
    made.evaluate(out)
    before = (out / "metrics.json").read_bytes()
    with pytest.raises(DataError, match=text):
        made.evaluate(out, scored=spoil(made))
    assert (out / "metrics.json").read_bytes() == before


def test_masks_of_only_some_defects_are_an_error(make_class: Make, tmp_path: Path) -> None:
    made = make_class()
    made.rows.loc[15, "mask_path"] = ""
    with pytest.raises(DataError, match=r"raw/blob/015.png: 1 of 10 defects have no mask"):
        made.evaluate(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failing_write_leaves_the_old_folder_and_no_part(
    make_class: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = make_class(), tmp_path / "reports" / "out"
    made.evaluate(out)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(ValueError, match="JSON compliant"):
        made.evaluate(out, latency_ms=float("nan"))
    assert sorted(path.name for path in out.iterdir()) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]
