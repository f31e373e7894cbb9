import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pvqae.core import config, files
from pvqae.core.errors import DataError
from pvqae.datasets import build, demo
from pvqae.datasets.anomalies import GATE_KINDS
from pvqae.samples import images, manifest


def params(source: str = "mvtec", **data: object) -> config.Params:
    return config.parse({"data": {"name": "tiny", "source": source} | data})


@pytest.fixture
def root(tmp_path: Path, tiny_mvtec: Path) -> Path:
    """A workspace with the tiny dataset in data/raw/tiny."""
    (tmp_path / "work/data/raw").mkdir(parents=True)
    shutil.move(tiny_mvtec, tmp_path / "work/data/raw/tiny")
    return tmp_path / "work"


def contents(root: Path) -> dict[str, str]:
    """Hashes of all that the build writes."""
    made = [p for p in (root / "data").rglob("*") if p.is_file() and "raw" not in p.parts]
    return {p.relative_to(root).as_posix(): files.digest(p) for p in made}


def rows(root: Path) -> pd.DataFrame:
    return manifest.read(root / "data" / "manifest.csv").set_index("sample_id", drop=False)


def picture(root: Path, name: str) -> Path:
    return root / "data/raw/tiny/part" / name


def test_every_image_is_one_true_row(root: Path) -> None:
    summary = build.build(root, params())
    frame = rows(root)
    raw = frame[frame.path.str.startswith("raw/")]
    assert len(raw) == 47
    assert not frame.sample_id.duplicated().any()
    for row in frame.itertuples():
        path = root / "data" / row.path
        assert files.digest(path) == row.sha256
        assert images.read(path).shape == (row.height, row.width, 3) == (24, 32, 3)
        assert (row.channels, row.bit_depth, row.source, row.captured_at) == (3, 8, "mvtec", "")
    assert frame.loc["part/test/dent/000", ["label", "kind", "split", "mask_path"]].to_list() == [
        *("defect", "dent", "test"),
        "raw/tiny/part/ground_truth/dent/000_mask.png",
    ]
    assert set(frame.loc[frame.path.str.contains("/test/"), "split"]) == {"test"}
    assert summary.counts == {"part": {s: int((raw.split == s).sum()) for s in manifest.SPLITS}}
    assert summary.synthetic == len(frame) - len(raw) > 0
    assert all(table.is_file() and str(table) in str(summary) for table in summary.tables)
    assert min(summary.counts["part"].values()) > 0
    assert (summary.unreadable, summary.duplicates) == (0, 0)


def test_the_same_files_give_the_same_bytes(root: Path) -> None:
    build.build(root, params())
    first = contents(root)
    build.build(root, params())
    assert contents(root) == first
    assert not any(p.name.startswith(".") or p.name.endswith(".part") for p in (root / "data").iterdir())


def test_gate_defects_are_their_normals_with_an_exact_mask(root: Path) -> None:
    build.build(root, params())
    frame = rows(root)
    gate = frame[frame.split == "gate"]
    normals, made = gate[gate.label == "normal"], gate[gate.label == "defect"]
    assert len(normals) > 0
    expected = sorted((group, f"synthetic_{kind}") for group in normals.group_id for kind in GATE_KINDS)
    assert sorted(zip(made.group_id, made.kind, strict=True)) == expected
    for row in made.itertuples():
        (normal,) = normals[normals.group_id == row.group_id].itertuples()
        image, mask = images.read(row.path, root / "data"), images.read_mask(row.mask_path, root / "data")
        changed = np.abs(image - images.read(normal.path, root / "data")).max(axis=2) > 0
        assert mask.any()
        assert not (changed & ~mask).any()
        assert changed.any()


def test_statistics_of_every_image(root: Path) -> None:
    build.build(root, params())
    table = pd.read_csv(root / "data/statistics.csv").set_index("sha256")
    assert sorted(table.index) == sorted(rows(root).sha256)
    assert ((table >= 0) & (table <= 1)).drop(columns="skew").all(axis=None)
    row = rows(root).loc["part/test/dent/000"]
    grey = images.read(row.path, root / "data").mean(axis=2)
    assert table.loc[row.sha256, ["mean", "std"]].to_list() == pytest.approx([grey.mean(), grey.std()], abs=1e-5)


def test_a_new_image_moves_no_old_one(root: Path) -> None:
    build.build(root, params())
    before = rows(root)
    images.write(picture(root, "train/good/aaa.png"), np.full((24, 32, 3), 0.3, dtype=np.float32))
    build.build(root, params())
    after = rows(root)
    pd.testing.assert_frame_equal(after.loc[before.index], before)


def test_unreadable_images_are_quarantined_and_counted(root: Path) -> None:
    """The list is the same on every machine: it names no absolute path."""
    path = picture(root, "train/good/000.png")
    path.write_bytes(path.read_bytes()[:200])
    picture(root, "train/good/001.png").write_bytes(b"text")
    summary = build.build(root, params())
    left = pd.read_csv(root / "data/quarantine.csv")
    assert summary.unreadable == 2
    assert list(left.path) == ["raw/tiny/part/train/good/000.png", "raw/tiny/part/train/good/001.png"]
    assert "truncated" in left.reason[0]
    assert "none of the formats" in left.reason[1]
    assert str(root) not in (root / "data/quarantine.csv").read_text()
    assert "part/train/good/000" not in rows(root).index


def test_too_many_unreadable_images_stop_the_build(root: Path) -> None:
    for number in range(4):
        picture(root, f"train/good/{number:03}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"4 of 47 images(?s:.*)000\.png(?s:.*)max_quarantine"):
        build.build(root, params())
    assert contents(root) == {}


def test_a_class_of_too_many_unreadable_images_is_left_out_alone(root: Path) -> None:
    """The other class goes on, and every file of the first is listed with the reason."""
    shutil.copytree(root / "data/raw/tiny/part", root / "data/raw/tiny/other")
    for number, path in enumerate(sorted((root / "data/raw/tiny/other").rglob("*.png"))):
        if "ground_truth" not in path.parts:
            mirrored = images.read(path.relative_to(root), root)[::-1]
            images.write(path, np.clip(mirrored + number / 1000, 0, 1))  # no copies of the first class
    for number in range(9):
        picture(root, f"train/good/{number:03}.png").write_bytes(b"")
    summary = build.build(root, params())
    assert list(summary.counts) == ["other"]
    left = pd.read_csv(root / "data/quarantine.csv")
    good = left[left.reason.str.startswith("class part: 9 of 47 images can't be read")]
    assert len(good) == 38


def test_an_image_behind_a_link_out_of_the_dataset_is_not_read(root: Path, tmp_path: Path) -> None:
    path = picture(root, "train/good/000.png")
    shutil.move(path, tmp_path / "outside.png")
    path.symlink_to(tmp_path / "outside.png")
    build.build(root, params())
    assert "leaves" in pd.read_csv(root / "data/quarantine.csv").reason[0]


def test_a_second_copy_is_left_out(root: Path) -> None:
    shutil.copy(picture(root, "train/good/000.png"), picture(root, "train/good/zzz.png"))
    summary = build.build(root, params())
    assert (summary.unreadable, summary.duplicates) == (0, 1)
    left = pd.read_csv(root / "data/quarantine.csv")
    assert list(left.path) == ["raw/tiny/part/train/good/zzz.png"]
    assert left.reason[0] == "duplicate of raw/tiny/part/train/good/000.png"


@pytest.mark.parametrize(("copy", "conflict"), [("test/dent/000.png", "kinds"), ("test/good/000.png", "splits")])
def test_copies_that_contradict_each_other_are_both_named(root: Path, copy: str, conflict: str) -> None:
    shutil.copy(picture(root, "train/good/000.png"), picture(root, copy))
    with pytest.raises(DataError, match=rf"(?=.*train/good/000)(?=.*{copy}).*{conflict}.*remove"):
        build.build(root, params())


def test_sixteen_bit_grey_stays_so_in_the_gate(root: Path) -> None:
    shutil.rmtree(picture(root, ""))
    for number in range(60):
        noise = np.random.default_rng(number).random((24, 32, 1), dtype=np.float32)
        images.write(picture(root, f"good/{number}.png"), np.repeat(noise, 3, axis=2), channels=1, bit_depth=16)
    build.build(root, params("folder"))
    made = rows(root)[lambda frame: frame.label == "defect"]
    assert len(made) > 0
    assert set(made.bit_depth) == {16}
    assert set(made.channels) == {1}
    assert images.header(root / "data" / made.path.iloc[0]).bit_depth == 16


def test_a_folder_of_good_images_has_normals_to_test(root: Path) -> None:
    shutil.rmtree(picture(root, "test"))
    shutil.move(picture(root, "train/good"), picture(root, "good"))
    assert build.build(root, params("folder")).counts["part"]["test"] > 0


def test_images_set_aside_are_gate(root: Path) -> None:
    shutil.move(picture(root, "test/dent"), picture(root, "gate/dent"))
    shutil.move(picture(root, "ground_truth"), picture(root, "gate_masks"))
    build.build(root, params())
    aside = rows(root)[lambda frame: frame.kind == "dent"]
    assert len(aside) == 3
    assert set(aside.split) == {"gate"}
    assert (aside.mask_path != "").all()


def test_mtsd_leaves_out_defects_whose_mask_is_empty(tmp_path: Path) -> None:
    """The other exposures of that tile stay defective: none of them is learnt from."""
    imgs = tmp_path / "data/raw/tiny/MT_{}/Imgs"
    for exposure, number in enumerate((1810, 1836, 1855, 1877, 1903, 1965), start=1):
        kind = "Uneven" if exposure == 3 else "Free"
        noise = np.random.default_rng(0).random((40, 30, 1), dtype=np.float32) * (0.5 + exposure / 20)
        for suffix, picture in {"jpg": noise, "png": noise * 0}.items():
            images.write(Path(str(imgs).format(kind)) / f"exp{exposure}_num_{number}.{suffix}", picture, channels=1)
    assert build.build(tmp_path, params("mtsd")).flawed == 1
    assert pd.read_csv(tmp_path / "data/quarantine.csv").reason.to_list() == ["its mask is empty"]
    frame = rows(tmp_path)
    assert len(frame) == 5
    assert set(frame.split) == {"test"}
    assert set(frame.label) == {"normal"}


@pytest.mark.parametrize("protocol", ["grouped", "random"])
def test_protocols(tmp_path: Path, protocol: str) -> None:
    demo.make(tmp_path / "data/raw/demo")
    build.build(tmp_path, config.parse({"data": {"protocol": protocol}}))
    raw = rows(tmp_path)[lambda frame: frame.path.str.startswith("raw/")]
    assert raw.group_id.duplicated().any() == (protocol == "grouped")
    assert (raw.groupby("group_id").split.nunique() == 1).all()
