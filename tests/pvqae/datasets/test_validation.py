"""A good dataset passes and leaves its rows; each kind of corruption stops it, naming expectation and row."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pvqae.core import config
from pvqae.core.errors import ConfigError, DataError, ValidationFailed
from pvqae.core.layout import Layout
from pvqae.datasets import validation
from pvqae.samples import manifest

PARAMS = config.parse({"data": {"name": "tiny", "min_normals": 8}})
CLASSES = """dataset: tiny
networks:
  both: {classes: [bolt, nut]}
priors:
  both: {classes: [bolt, nut], allocations: models/tiny/networks/both}
classes:
  bolt: {network: both, prior: both}
  nut: {network: both, prior: both}
"""
COUNTS = {"train": 9, "calibrate": 2, "test": 2, "gate": 1}


@dataclass(frozen=True, eq=False)
class Tables:
    """A workspace's tables, to be spoilt before they are written; indexed by sample_id and sha256."""

    rows: pd.DataFrame
    statistics: pd.DataFrame


def _row(category: str, split: str, label: str, number: int) -> dict[str, object]:
    kind = "good" if label == "normal" else "scratch"
    sample = f"{category}-{split}-{kind}-{number}"
    top = "gate" if (split, label) == ("gate", "defect") else "raw"
    values = {
        "sample_id": sample,
        "path": f"{top}/{category}/{sample}.png",
        "sha256": hashlib.sha256(sample.encode()).hexdigest(),
        "category": category,
        "group_id": f"group-{sample}",
        "split": split,
        "label": label,
        "kind": kind,
        "mask_path": "" if label == "normal" else f"{top}/{category}/{sample}_mask.png",
    }
    return {**values, "width": 12, "height": 10, "channels": 3, "bit_depth": 8, "source": "test", "captured_at": ""}


def _good() -> Tables:
    rows = [
        _row(category, split, label, number)
        for category in ("bolt", "nut")
        for split, count in COUNTS.items()
        for label in (["normal"] if split in ("train", "calibrate") else ["normal", "defect"])
        for number in range(count)
    ]
    frame = pd.DataFrame(rows, columns=list(manifest.COLUMNS)).set_index("sample_id", drop=False)
    typical = {"mean": 0.4, "std": 0.1, "sharpness": 0.02, "lowest": 0.1, "highest": 0.9, "skew": 1.0}
    values = np.random.default_rng(0).uniform(0.9, 1.1, (len(frame), len(typical))) * list(typical.values())
    return Tables(frame, pd.DataFrame(values, index=pd.Index(frame["sha256"], name="sha256"), columns=list(typical)))


def _write_mask(path: Path, marked: bool = True, size: tuple[int, int] = (10, 12)) -> None:
    mask = np.zeros(size, np.uint8)
    mask[2:4, 3:5] = 255 * marked
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def _write_text(path: Path) -> None:
    path.write_text("not a picture")


def _save(root: Path, tables: Tables, classes: str = CLASSES, quarantine: str = "path,reason\n") -> Layout:
    layout = Layout(root, "tiny")
    for path in tables.rows.get("mask_path", pd.Series(dtype=str)):
        if path and ".." not in path:
            _write_mask(layout.data / path)
    layout.data.mkdir(exist_ok=True)
    layout.classes_file.write_text(classes)
    layout.quarantine.write_text(quarantine)
    layout.ignored.write_text("path,kind,reason\n")
    tables.rows.to_csv(layout.manifest, index=False, lineterminator="\n")
    tables.statistics.to_csv(layout.statistics, lineterminator="\n")
    return layout


def _report(layout: Layout) -> dict[str, object]:
    report: dict[str, object] = json.loads((layout.reports / "validation.json").read_text("utf-8"))
    return report


def _failures(layout: Layout) -> set[str]:
    found = _report(layout)["expectations"]
    assert isinstance(found, list)
    return {item["name"] for item in found if not item["success"]}


def _written(layout: Layout) -> dict[str, bytes]:
    folders = (layout.data / "rows", layout.reports)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(layout.root).as_posix(): path.read_bytes() for path in files}


def test_a_good_dataset_leaves_its_rows_and_reports(tmp_path: Path) -> None:
    layout = _save(tmp_path, _good())
    summary = validation.check(layout, PARAMS)

    assert summary.rows == 2 * (9 + 2 + 4 + 2)
    assert summary.warnings == ()
    assert summary.quarantined == 0
    assert summary.classes["bolt"] == {"calibrate": 2, "gate": 1, "test": 4, "train": 9}
    assert "32 images and 2 synthetic defects of the gate hold every expectation" in str(summary)
    assert set(_written(layout)) == {
        *("data/rows/SHA256SUMS", "data/rows/networks/both.csv"),
        *(f"data/rows/classes/{name}/{part}.csv" for name in ("bolt", "nut") for part in ("normals", "test", "gate")),
        "reports/tiny/data_docs/index.html",
        "reports/tiny/validation.json",
    }
    network = manifest.read(layout.network_rows("both"))
    assert len(network) == 22
    assert set(network["split"]) == {"train", "calibrate"}
    assert set(network["label"]) == {"normal"}
    gate = manifest.read(layout.class_rows("nut", "gate"))
    assert list(gate["sample_id"]) == ["nut-gate-good-0", "nut-gate-scratch-0"]
    assert _report(layout)["success"] is True
    assert _failures(layout) == set()


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    layout = _save(tmp_path, _good())
    validation.check(layout, PARAMS)
    first = _written(layout)
    validation.check(layout, PARAMS)
    assert _written(layout) == first


def test_importing_the_module_does_not_import_great_expectations() -> None:
    code = "import sys, pvqae.datasets.validation; sys.exit('great_expectations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


Spoil = Callable[[Tables], Tables]
ROW = "bolt-train-good-1"
DEFECT = "bolt-test-scratch-1"


def _set(column: str, value: int | str, row: str = ROW) -> Spoil:
    def spoil(tables: Tables) -> Tables:
        values = tables.rows[column].astype(object).mask(tables.rows.index == row, value)
        return replace(tables, rows=tables.rows.assign(**{column: values}))

    return spoil


def _copy(column: str, source: str) -> Spoil:
    return lambda tables: _set(column, tables.rows[column][source])(tables)


def _measure(name: str, value: float, row: str = ROW) -> Spoil:
    def spoil(tables: Tables) -> Tables:
        wrong = tables.statistics.index == tables.rows["sha256"][row]
        return replace(
            tables, statistics=tables.statistics.assign(**{name: tables.statistics[name].mask(wrong, value)})
        )

    return spoil


def _measures(row: str = "nut-gate-good-0", **values: float) -> Spoil:
    return lambda tables: reduce(lambda spoilt, pair: _measure(*pair, row)(spoilt), values.items(), tables)


def _all_of(category: str, **values: float) -> Spoil:
    def spoil(tables: Tables) -> Tables:
        mine = tables.statistics.index.isin(tables.rows.loc[tables.rows["category"] == category, "sha256"])
        changed = {name: tables.statistics[name].mask(mine, value) for name, value in values.items()}
        return replace(tables, statistics=tables.statistics.assign(**changed))

    return spoil


def _without(**values: str) -> Spoil:
    """Drop the rows that have all these values."""

    def spoil(tables: Tables) -> Tables:
        dropped = (tables.rows[list(values)] == pd.Series(values)).all(axis=1)
        return replace(tables, rows=tables.rows[~dropped])

    return spoil


def _unmeasured(tables: Tables) -> Tables:
    return replace(tables, statistics=tables.statistics.drop(index=tables.rows["sha256"][ROW]))


def _reordered(tables: Tables) -> Tables:
    return replace(tables, rows=tables.rows[["path", *tables.rows.columns.drop("path")]])


def _twelve_bits(tables: Tables) -> Tables:
    bolts = tables.rows["category"] == "bolt"
    rows = tables.rows.assign(bit_depth=tables.rows["bit_depth"].mask(bolts, 16))
    dark = tables.statistics.index.isin(rows.loc[bolts, "sha256"])
    return Tables(rows, tables.statistics.assign(highest=tables.statistics["highest"].mask(dark, 4095 / 65535)))


CORRUPTIONS: dict[str, tuple[Spoil, str]] = {
    "columns": (_reordered, "path"),
    "rows": (_without(source="test"), "found 0"),
    "sample_id_unique": (_copy("sample_id", "bolt-train-good-2"), "bolt-train-good-2"),
    "path_unique": (_copy("path", "bolt-train-good-2"), ROW),
    "sample_id_present": (_set("sample_id", " "), "raw/bolt/bolt-train-good-1.png"),
    "group_id_present": (_set("group_id", ""), ROW),
    "kind_present": (_set("kind", ""), ROW),
    "path_relative": (_set("path", "raw/../../secret.png"), "raw/../../secret.png"),
    "mask_path_relative": (_set("mask_path", "/etc/passwd_mask/..", DEFECT), DEFECT),
    "sha256_format": (_set("sha256", "A" * 64), ROW),
    "category_name": (_set("category", "../up"), ROW),
    "width_is_number": (_set("width", "12.5"), ROW),
    "height_is_number": (_set("height", "-10"), ROW),
    "channels_is_number": (_set("channels", ""), ROW),
    "bit_depth_is_number": (_set("bit_depth", "eight"), ROW),
    "split_known": (_set("split", "validation"), ROW),
    "label_known": (_set("label", "bad"), ROW),
    "width_in_range": (_set("width", 1), ROW),
    "height_in_range": (_set("height", 70000), ROW),
    "channels_in_range": (_set("channels", 0), ROW),
    "bit_depth_in_range": (_set("bit_depth", 32), ROW),
    "group_in_one_split": (_copy("group_id", "nut-test-good-1"), "nut-test-good-1"),
    "image_in_one_split": (_copy("sha256", "bolt-test-good-0"), "bolt-test-good-0"),
    "trains_on_normal_group": (_set("split", "train", DEFECT), DEFECT),
    "kind_fits_label": (_set("kind", "good", DEFECT), DEFECT),
    "mask_present": (_set("mask_path", "", DEFECT), DEFECT),
    "has_statistics": (_unmeasured, ROW),
    "shows_something": (_measure("std", 0.0, "nut-gate-good-0"), "nut-gate-good-0"),
    "mean_deviation_in_range": (_measure("mean", 0.01), ROW),
    "sharpness_deviation_in_range": (_measure("sharpness", 0.2), ROW),
    "std_deviation_in_range": (_measure("std", 0.5, "nut-calibrate-good-1"), "nut-calibrate-good-1"),
    "range_used": (_twelve_bits, "nothing above 4095 of 65535 in 16 files of 16 bit: set image.bits to 12"),
    "in_classes_file": (_set("category", "screw"), "screw"),
    "in_manifest": (_without(category="nut"), "nut"),
    "training_normals_in_range": (_without(category="nut", split="train"), "nut"),
    "test_images_in_range": (_without(category="nut", split="test"), "nut"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_stops_the_run_and_names_the_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    spoil, named = CORRUPTIONS[name]
    layout = _save(tmp_path, spoil(_good()))
    stale = layout.network_rows("both")
    stale.parent.mkdir(parents=True)
    stale.touch()

    with pytest.raises(ValidationFailed) as failure:
        validation.check(layout, PARAMS)

    assert name in _failures(layout)
    assert _report(layout)["success"] is False
    line = next(line for line in str(failure.value).splitlines() if line.startswith(f"  {name}: "))
    assert named in line
    assert "repair: " in str(failure.value)
    assert not (layout.data / "rows").exists(), "an earlier check's rows must not outlive a failed one"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == [], "a part of the page is missing"
    assert "nothing is trained" in (layout.reports / "data_docs" / "index.html").read_text("utf-8")


MASKS: dict[str, Callable[[Path], None]] = {
    "mask_readable": _write_text,
    "mask_of_image_size": lambda path: _write_mask(path, size=(12, 10)),
    "mask_marks_something": lambda path: _write_mask(path, marked=False),
}


SAID = {
    "mask_readable": ".*_mask.png: expected a readable image, found none of the formats",
    "mask_of_image_size": ".*_mask.png is 10 x 12, its image 12 x 10",
    "mask_marks_something": ".*_mask.png has values 0 to 0, expected 0 where there is no defect and other values",
}


@pytest.mark.parametrize("name", MASKS)
def test_a_wrong_mask_stops_the_run(tmp_path: Path, name: str) -> None:
    layout = _save(tmp_path, _good())
    MASKS[name](layout.data / "raw/bolt" / f"{DEFECT}_mask.png")
    with pytest.raises(ValidationFailed, match=rf"{name}: .*1 not: {DEFECT} \(raw/bolt/{DEFECT}.png\): {SAID[name]}"):
        validation.check(layout, PARAMS)
    assert _failures(layout) == {name}


OWN = """dataset: tiny
networks:
  bolt: {classes: [bolt]}
  nut: {classes: [nut]}
priors:
  bolt: {classes: [bolt], allocations: models/tiny/networks/bolt}
  nut: {classes: [nut], allocations: models/tiny/networks/nut}
classes:
  bolt: {network: bolt, prior: bolt}
  nut: {network: nut, prior: nut}
"""
OF_ONE_CLASS = {
    "bolt": ("group_in_one_split", "width_in_range", "shows_nothing", "mask_present", "range_used", "has_statistics"),
    "nut": ("in_manifest", "training_normals_in_range", "test_images_in_range"),
}


@pytest.mark.parametrize(("held", "name"), [(held, name) for held, names in OF_ONE_CLASS.items() for name in names])
def test_a_class_that_fails_is_held_back_alone(tmp_path: Path, held: str, name: str) -> None:
    spoil = _measure("std", 0.0) if name == "shows_nothing" else CORRUPTIONS[name][0]
    if name == "group_in_one_split":
        spoil = _copy("group_id", "bolt-test-good-1")
    layout = _save(tmp_path, spoil(_good()), OWN)
    summary = validation.check(layout, PARAMS)

    other = {"bolt": "nut", "nut": "bolt"}[held]
    assert list(summary.held_back) == [held]
    assert "repair: " in summary.held_back[held]
    assert f"class {held} is held back" in str(summary)
    assert _report(layout)["success"] is False
    assert list(_report(layout)["held_back"]) == [held]  # type: ignore[call-overload]
    assert len(manifest.read_rows(layout, layout.network_rows(other))) == 11
    for file in (layout.network_rows(held), layout.class_rows(held, "normals"), layout.class_rows(held, "test")):
        with pytest.raises(DataError, match="held_back"):
            manifest.read_rows(layout, file)


def test_classes_that_share_a_prior_are_held_back_together(tmp_path: Path) -> None:
    shared = (
        OWN.replace("priors:", "  cog: {classes: [cog]}\npriors:")
        .replace(
            "  bolt: {classes: [bolt], allocations: models/tiny/networks/bolt}\n  nut: {classes: [nut], allocations: "
            "models/tiny/networks/nut}\n",
            "  two: {classes: [bolt, cog], allocations: models/tiny/networks}\n"
            "  nut: {classes: [nut], allocations: models/tiny/networks/nut}\n",
        )
        .replace("{network: bolt, prior: bolt}", "{network: bolt, prior: two}\n  cog: {network: cog, prior: two}")
    )
    summary = validation.check(_save(tmp_path, _good(), shared), PARAMS)  # there are no images of cog
    assert list(summary.held_back) == ["bolt", "cog"]
    assert "shares" in summary.held_back["bolt"]


def test_every_expectation_that_can_stop_a_run_is_tested(tmp_path: Path) -> None:
    validation.check(layout := _save(tmp_path, _good()), PARAMS)
    found = _report(layout)["expectations"]
    assert isinstance(found, list)
    assert {item["name"] for item in found if not item["warning"]} == {*CORRUPTIONS, *MASKS}


def test_a_class_without_any_mask_is_valid(tmp_path: Path) -> None:
    tables = _good()
    photographed = tables.rows["path"].str.startswith("raw/bolt/")
    tables.rows.loc[photographed, "mask_path"] = ""
    assert validation.check(_save(tmp_path, tables), PARAMS).warnings == ()


@pytest.mark.parametrize(
    ("spoil", "warned"),
    [
        (_measure("mean", 0.01, "bolt-test-good-0"), "mean_deviation_held_out_in_range"),
        (_without(kind="scratch"), "test_defects_in_range"),
        (_measures(mean=0.6, skew=-1.0), "not_inverted"),
        (_set("bit_depth", 16), "one_bit_depth"),
        (_set("channels", 1), "one_channel_count"),
        (_all_of("nut", highest=0.05), "shade"),
        (_all_of("nut", lowest=0.95), "shade"),
    ],
)
def test_an_odd_test_set_is_a_warning(tmp_path: Path, spoil: Spoil, warned: str) -> None:
    layout = _save(tmp_path, spoil(_good()))
    summary = validation.check(layout, PARAMS)
    assert len(summary.warnings) == 1
    assert summary.warnings[0].startswith(warned)
    assert _report(layout)["success"] is True
    assert layout.class_rows("bolt", "test").exists()


def test_a_mask_of_everything_is_a_warning_that_names_its_values(tmp_path: Path) -> None:
    layout = _save(tmp_path, _good())
    Image.new("L", (12, 10), 7).save(layout.data / "raw/bolt" / f"{DEFECT}_mask.png")
    (told,) = validation.check(layout, PARAMS).warnings
    assert told.startswith("mask_leaves_something")
    assert "values 7 to 7" in told


@pytest.mark.parametrize(("bits", "highest"), [(16, 4095), ("auto", 16383), ("auto", 65535), (12, 900)])
def test_a_range_that_the_settings_say_stops_nothing(tmp_path: Path, bits: int | str, highest: int) -> None:
    top = 65535 if bits == "auto" else 2 ** int(bits) - 1
    tables = _all_of("bolt", highest=round(highest / top, 6), lowest=0.0)(_good())
    tables.rows["bit_depth"] = 16 if bits == "auto" else bits
    params = config.parse({"data": {"name": "tiny", "min_normals": 8}, "image": {"bits": bits}})
    told = validation.check(_save(tmp_path, tables), params).warnings
    assert [text.partition(":")[0] for text in told] == ["range_mostly_used"] * (highest == 16383) + ["shade"] * (
        highest / top < 1 / 16
    )


def test_defects_may_look_like_anything(tmp_path: Path) -> None:
    tables = _measure("std", 0.0, DEFECT)(_good())
    assert validation.check(_save(tmp_path, tables), PARAMS).warnings == ()


def test_quarantined_images_are_counted_and_told(tmp_path: Path) -> None:
    layout = _save(tmp_path, _good(), quarantine="path,reason\nraw/bolt/x.png,truncated\n")
    summary = validation.check(layout, PARAMS)
    assert summary.quarantined == _report(layout)["quarantined"] == 1
    assert "1 files were left out" in summary.warnings[0]


def test_files_that_nothing_uses_are_counted_and_told(tmp_path: Path) -> None:
    layout = _save(tmp_path, _good(), quarantine="path,reason\nraw/bolt/x.png,truncated\n")
    rows = ["raw/tiny/a.gif,image,no format", "raw/tiny/b.gif,image,no format", "raw/tiny/c.txt,other,no image"]
    layout.ignored.write_text("\n".join(["path,kind,reason", *rows]) + "\n")
    summary = validation.check(layout, PARAMS)
    assert summary.warnings[1:] == ("2 images not looked at (no format): raw/tiny/a.gif, raw/tiny/b.gif",)
    raw = pd.concat([_good().rows["path"], _good().rows["mask_path"]])
    assert _report(layout)["files"] == {
        "used": int(raw.str.startswith("raw/").sum()),
        "in quarantine": 1,
        "ignored": 3,
    }
    assert "2 images not looked at" in (layout.reports / "data_docs/index.html").read_text("utf-8")
    layout.ignored.write_text("path,reason\n")
    with pytest.raises(DataError, match="expected the columns path, kind, reason"):
        validation.check(layout, PARAMS)


def test_many_rows_are_cut_to_ten_and_counted(tmp_path: Path) -> None:
    tables = _good()
    tables.rows["width"] = 1
    with pytest.raises(ValidationFailed, match=r"34 not: .* and 24 more"):
        validation.check(_save(tmp_path, tables), PARAMS)


class _Active(HTMLParser):
    """Collects what would run or load something when the page is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "link", "iframe") or any(name.startswith("on") for name in names):
            self.found.append(self.get_starttag_text() or tag)


def test_names_with_markup_do_no_harm_in_the_page(tmp_path: Path) -> None:
    tables = _good()
    harm = "<script>alert(1)</script><img src=x onerror=alert(2)>${name}"
    for column in ("category", "split", "path"):
        tables = _set(column, harm + column)(tables)
    tables = _set("width", harm)(tables)
    tables = _set("sample_id", harm)(tables)
    renamed = replace(tables, rows=tables.rows.rename(columns={"source": harm}))
    layout = _save(tmp_path, renamed)
    with pytest.raises(ValidationFailed):
        validation.check(layout, PARAMS)
    page = (layout.reports / "data_docs" / "index.html").read_text("utf-8")
    parser = _Active()
    parser.feed(page)
    assert parser.found == []
    assert "alert(2)" in page
    assert "Content-Security-Policy" in page


@pytest.mark.parametrize("name", ["manifest", "statistics", "quarantine", "ignored", "classes_file"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    layout = _save(tmp_path, _good())
    path: Path = getattr(layout, name)
    path.unlink()
    with pytest.raises((DataError, ConfigError), match=path.name):
        validation.check(layout, PARAMS)
    assert not (layout.data / "rows").exists()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("dataset: tiny", "dataset: other", "found other"),
        ("networks:", "network:", "expected dataset, networks, priors, classes"),
        ("both: {classes: [bolt, nut]}", "both: {classes: [bolt]}", "each class in exactly one network"),
        ("both: {classes", "../up: {classes", "letters, digits"),
        ("dataset: tiny", "dataset: [", "expected dataset, networks"),
    ],
)
def test_an_unusable_classes_file_is_explained(tmp_path: Path, old: str, new: str, expected: str) -> None:
    layout = _save(tmp_path, _good(), classes=CLASSES.replace(old, new))
    with pytest.raises(ConfigError, match=expected):
        validation.check(layout, PARAMS)
