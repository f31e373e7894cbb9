"""Datasets that a table describes, in every format, and what is wrong with tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pvqae.core import config
from pvqae.core.config import Data
from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.datasets import build, sources, table
from pvqae.datasets.layouts import Found
from pvqae.samples import images, manifest

ROWS: list[dict[str, Any]] = [
    {"path": "cam/1.png", "label": "OK", "split": "train", "part": "p1", "class": "nut"},
    {"path": "cam/2.png", "label": "OK", "split": "val", "part": "p1", "class": "nut"},
    {"path": "cam/3.png", "label": "ok", "split": "test", "class": "nut"},
    {"path": "cam/4.png", "label": "NG", "split": "test", "mask": "m/4.png", "kind": "bent", "class": "nut"},
    {"path": "cam/5.png", "label": "NG", "split": "train", "mask": "m/5.png", "kind": "bent", "class": "nut"},
    {"path": "cam/6.png", "label": "good", "class": "01"},
]


def fill(root: Path, rows: list[dict[str, Any]], path: str = "path", mask: str = "mask") -> Path:
    for row in rows:
        for name in (row.get(path), row.get(mask)):
            if name:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).touch()
    return root


def as_csv(rows: list[dict[str, Any]], comma: str = ",") -> bytes:
    return pd.DataFrame(rows).to_csv(index=False, sep=comma).encode("utf-8-sig")


def as_parquet(rows: list[dict[str, Any]], place: Path) -> bytes:
    pytest.importorskip("pyarrow")
    pd.DataFrame(rows).to_parquet(place)
    data = place.read_bytes()
    place.unlink()
    return data


def scan(root: Path, **data: Any) -> list[Found]:
    return sources.scan("table", root, data=Data(**data))


@pytest.mark.parametrize("kind", ["csv", "csv with semicolons", "json", "jsonl", "parquet"])
def test_every_format_says_the_same(kind: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "parts", ROWS)
    contents = {
        "csv": as_csv(ROWS),
        "csv with semicolons": as_csv(ROWS, ";"),
        "json": json.dumps(ROWS).encode(),
        "jsonl": "\n".join(map(json.dumps, [*ROWS, *[]])).encode() + b"\n\n",
        "parquet": as_parquet(ROWS, tmp_path / "t.parquet"),
    }
    (root / f"rows.{kind.split()[0]}").write_bytes(contents[kind])
    assert sources.categories("table", root) == ["01", "nut"]
    found = {f.sample_id: f for f in scan(root)}
    assert {name: (f.label, f.kind, f.official, f.group_id) for name, f in found.items()} == {
        "nut/cam/1": ("normal", "good", "train", "nut/p1"),
        "nut/cam/2": ("normal", "good", "train", "nut/p1"),
        "nut/cam/3": ("normal", "good", "test", "nut/cam/3"),
        "nut/cam/4": ("defect", "bent", "test", "nut/cam/4"),
        "nut/cam/5": ("defect", "bent", "train", "nut/cam/5"),
        "01/cam/6": ("normal", "good", None, "01/cam/6"),
    }
    assert found["nut/cam/4"].mask_path == root / "m/4.png"
    assert found["nut/cam/5"].flaw == "a defect of the official train split: nothing is trained on defects"
    assert [f.sample_id for f in found.values() if f.flaw] == ["nut/cam/5"]


def test_columns_and_labels_have_the_names_that_params_say(tmp_path: Path) -> None:
    rows = [{"file": "a.png", "state": 0}, {"file": "b.png", "state": 1}, {"file": "c.png", "state": None}]
    root = fill(tmp_path / "parts", rows, "file")
    (root / "rows.json").write_text(json.dumps(rows[:2]))
    named = {"path": "file", "label": "state"}
    found = scan(root, columns=named, good=["0"])
    assert [(f.category, f.label, f.kind) for f in found] == [
        ("parts", "normal", "good"),
        ("parts", "defect", "defect"),
    ]
    assert [f.label for f in scan(root, columns=named, good=["1"])] == ["defect", "normal"]
    with pytest.raises(
        DataError, match=r'row 1: expected a label of known meaning .*found 0; say in data\.good .*\["0"\]'
    ):
        scan(root, columns=named)
    (root / "rows.json").write_text(json.dumps(rows))  # a number is no longer whole where others are missing
    with pytest.raises(DataError, match="row 3: expected a label, found none"):
        scan(root, columns=named, good=["0"])


def test_a_kind_alone_says_what_is_good(tmp_path: Path) -> None:
    rows = [{"path": "a.png", "kind": "good"}, {"path": "b.png", "kind": "scratch"}]
    root = fill(tmp_path / "parts", rows)
    (root / "t.csv").write_bytes(as_csv(rows))
    assert [(f.label, f.kind) for f in scan(root, good=["good"])] == [("normal", "good"), ("defect", "scratch")]


def test_the_case_of_columns_and_labels_does_not_matter(tmp_path: Path) -> None:
    rows = [{"Path": "a.png", "LABEL": True, "Split": "test"}, {"Path": "b.png", "LABEL": False, "Split": ""}]
    root = fill(tmp_path / "parts", rows, "Path")
    (root / "t.json").write_text(json.dumps(rows))
    for good in ("true", "True"):
        found = [(f.label, f.kind, f.official) for f in scan(root, good=[good])]
        assert found == [("normal", "good", "test"), ("defect", "defect", None)]


def test_params_yaml_can_say_it(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text('data: {source: table, columns: {path: file, label: ok}, good: ["1"]}\n')
    data = config.load(tmp_path / "params.yaml", ["data.table=rows/all.csv"]).data
    assert (data.columns, data.good, data.table) == ({"path": "file", "label": "ok"}, ("1",), "rows/all.csv")


GOOD = {"path": "a.png", "label": "good"}
WRONG: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    (
        [{"file": "a.png", "label": "good"}],
        {},
        r"expected the column path, found the columns file, label; say in data\.columns",
    ),
    ([{"path": "a.png"}], {}, "expected the column label, found the columns path"),
    (
        [GOOD],
        {"columns": {"split": "fold"}},
        r"expected the column fold \(data\.columns\.split\), found the columns path, label",
    ),
    ([GOOD, GOOD], {}, r"row 2: expected each image once, found a\.png"),
    ([GOOD, {**GOOD, "path": "./a.png"}], {}, r"row 2: expected each image once, found \./a\.png"),
    ([GOOD], {"good": ["yes"]}, r"expected rows with a label of data\.good \(yes\), found good"),
    (
        [{**GOOD, "split": "dev"}],
        {},
        "row 1: expected a split of train, val, validation, test, gate or none, found dev",
    ),
    ([{**GOOD, "path": "../a.png"}], {}, r"row 1: expected a path inside of the dataset with /, found '\.\./a\.png'"),
    ([{**GOOD, "path": "/etc/passwd"}], {}, "row 1: expected a path inside"),
    ([{**GOOD, "path": "cam\\a.png"}], {}, "row 1: expected a path inside of the dataset with /"),
    ([{**GOOD, "mask": "/etc/a.png"}], {}, "row 1: expected a path inside"),
    ([{"path": "a.heic", "label": "good"}], {}, r"row 1: expected an image, found a\.heic; export it as PNG"),
    ([{**GOOD, "class": ""}], {}, "row 1: expected a class, found none"),
    ([{"path": "", "label": "good"}, GOOD], {}, "row 1: expected a path inside"),
]


@pytest.mark.parametrize(("rows", "data", "said"), WRONG)
def test_what_is_wrong_is_named(rows: list[dict[str, Any]], data: dict[str, Any], said: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "parts", [{"path": "a.png"}, {"path": "a.heic"}])
    (root / "t.csv").write_bytes(as_csv(rows))
    with pytest.raises(DataError, match=rf"t\.csv.*{said}"):
        scan(root, **data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", "{}"),
        ("t.json", "[1]"),
        ("t.json", "["),
        ("t.csv", ""),
        ("t.csv", "path,label\na.png,good,1\n"),
        ("t.csv", "path,label,mask\na.png,good,\na.png,good\n"),
        ("t.csv", "path,path\na,b\n"),
    ],
)
def test_what_is_no_table_is_refused(name: str, content: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "parts", [GOOD])
    (root / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}: expected"):
        scan(root)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "parts", [GOOD])
    (root / "t.csv").write_bytes(as_csv([GOOD, {"path": "b.png", "label": "bad", "mask": "m.png"}]))
    with pytest.raises(DataError, match=r"(?s)none of\n  row 2: b\.png\n  row 2: m\.png"):
        scan(root)


def test_several_tables_need_a_choice(tmp_path: Path) -> None:
    root = fill(tmp_path / "parts", [GOOD])
    for name in ("a.csv", "b.csv"):
        (root / name).write_bytes(as_csv([GOOD]))
    with pytest.raises(
        DataError, match=r"expected one table, found a\.csv, b\.csv; name the one to use in data\.table"
    ):
        scan(root)
    assert len(scan(root, table="b.csv")) == 1
    (root / "rows").mkdir()
    (root / "a.csv").rename(root / "rows" / "a.csv")
    assert [f.category for f in scan(root, table="rows/a.csv")] == ["parts"]
    with pytest.raises(DataError, match=r"c\.csv: expected the table of data\.table, found no file"):
        scan(root, table="c.csv")
    with pytest.raises(DataError, match=r"data\.table: expected a path inside"):
        scan(root, table="../c.csv")


def test_a_changed_table_is_read_again(tmp_path: Path) -> None:
    root = fill(tmp_path / "parts", [GOOD, {"path": "b.png"}])
    (root / "t.csv").write_bytes(as_csv([GOOD]))
    assert len(scan(root)) == 1
    (root / "t.csv").write_bytes(as_csv([GOOD, {"path": "b.png", "label": "good"}]))
    assert len(scan(root)) == 2


def test_a_table_becomes_a_manifest_with_palettes_polygons_and_what_nothing_uses(tmp_path: Path) -> None:
    """Masks of any non-zero value, of a palette, and drawn: one table, one annotation file, one manifest."""
    layout, rng = Layout(tmp_path, "parts"), np.random.default_rng(0)
    marked = np.zeros((24, 32), dtype=np.uint8)
    marked[6:14, 10:20] = 1
    rows = [{"path": f"cam/{i}.png", "label": "ok"} for i in range(30)]
    rows += [{"path": f"cam/b{i}.png", "label": "bad", "mask": f"m/b{i}.png", "class": ""} for i in range(2)]
    rows += [{"path": "cam/drawn.png", "label": "bad"}]
    for row in [*rows, {"path": "cam/extra.png"}]:
        images.write(layout.raw / row["path"], rng.random((24, 32, 3), dtype=np.float32) * 0.2 + 0.4)
    (layout.raw / "m").mkdir()
    Image.fromarray(marked * 3).save(layout.raw / "m/b0.png")
    palette = Image.fromarray(marked).convert("P")
    palette.putpalette([0, 0, 0, 200, 0, 0] + [9, 9, 9] * 254)
    palette.save(layout.raw / "m/b1.png")
    coco = {
        "images": [{"id": 1, "file_name": "cam/drawn.png", "width": 32, "height": 24}],
        "annotations": [{"image_id": 1, "segmentation": [[10, 6, 20, 6, 20, 14, 10, 14]]}],
    }
    (layout.raw / "coco.json").write_text(json.dumps(coco))  # no second table: params say what it is
    (layout.raw / "t.csv").write_bytes(as_csv([{k: v for k, v in row.items() if k != "class"} for row in rows]))
    params = config.parse({"data": {"name": "parts", "source": "table", "annotations": "coco.json"}})
    said = str(build.build(tmp_path, params))
    assert "1 image not looked at (in no folder that data.source looks into): cam/extra.png" in said
    frame = manifest.read(layout.manifest).set_index("sample_id")
    defects = frame[(frame["label"] == "defect") & ~frame["path"].str.startswith("gate/")]
    assert list(defects["mask_path"]) == ["raw/parts/m/b0.png", "raw/parts/m/b1.png", "masks/parts/cam/drawn.png"]
    for path in defects["mask_path"]:
        np.testing.assert_array_equal(images.read_mask(path, layout.data), marked > 0)
    before = layout.manifest.read_bytes()
    build.build(tmp_path, params)
    assert layout.manifest.read_bytes() == before


def test_reading_parquet_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> pd.DataFrame:
        raise ImportError("pyarrow")

    monkeypatch.setitem(table._READERS, ".parquet", missing)
    root = fill(tmp_path / "parts", [GOOD])
    (root / "t.parquet").touch()
    with pytest.raises(DataError, match="needs the package pyarrow"):
        scan(root)
