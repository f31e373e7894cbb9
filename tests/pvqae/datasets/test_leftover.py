"""Every file of a dataset is used, in quarantine with a reason, or listed as not looked at; nothing vanishes."""

import os
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.datasets import build, sources
from pvqae.datasets.layouts import Found
from pvqae.datasets.leftover import Left, told
from tests.pvqae.datasets.test_sources import touch


def survey(root: Path, *names: str, source: str = "folder") -> tuple[dict[str, Found], dict[str, Left]]:
    """Images by their path below `root`, other files by theirs."""
    found, left = sources.survey(source, touch(root, *names))
    assert len(found) + len(left) + sum(f.mask_path is not None for f in found) == len(names)
    return {f.path.relative_to(root).as_posix(): f for f in found}, {item.path: item for item in left}


@pytest.mark.parametrize("day", ["2026-11-03", "day2/cam1", "lot A"])
@pytest.mark.parametrize(("good", "kind"), [("nut/good", "nut/bent"), ("nut/ok", "nut/dent")])
def test_folders_below_good_and_below_a_kind_belong_to_it(tmp_path: Path, day: str, good: str, kind: str) -> None:
    found, left = survey(tmp_path, f"{good}/a.png", f"{good}/{day}/a.png", f"{kind}/{day}/b.png", f"{kind}/c.png")
    assert {name: f.kind for name, f in found.items()} == {
        f"{good}/a.png": "good",
        f"{good}/{day}/a.png": "good",
        f"{kind}/{day}/b.png": kind[4:],
        f"{kind}/c.png": kind[4:],
    }
    assert not left


@pytest.mark.parametrize("place", ["good/NG", "good/day2/rejected", "good/thumbs", "bent/good", "bent/preview_small"])
def test_folders_that_say_something_else_are_listed(tmp_path: Path, place: str) -> None:
    found, left = survey(tmp_path, "nut/good/a.png", "nut/bent/b.png", f"nut/{place}/c.png")
    assert len(found) == 2
    assert left[f"nut/{place}/c.png"].kind == "image"
    assert f"1 image not looked at (in no folder that data.source looks into): nut/{place}/c.png" in told(left.values())


@pytest.mark.parametrize("name", ["OK", "Good", "normal", "gut", "GOOD"])
@pytest.mark.parametrize(("source", "place"), [("folder", "nut"), ("mvtec", "nut/train"), ("btad", "nut/train")])
def test_other_names_for_good(tmp_path: Path, name: str, source: str, place: str) -> None:
    found, _ = survey(tmp_path, f"{place}/{name}/a.png", source=source)
    assert [f.label for f in found.values()] == ["normal"]
    with pytest.raises(DataError, match=rf"one folder of good parts, found (?=.*{name})(?=.*ok_|.*okay)"):
        survey(tmp_path, f"{place}/{name}/a.png", f"{place}/okay/b.png", source=source)


@pytest.mark.parametrize(
    "names", [["lid/fine/a.png"], ["lid/good", "lid/bent/a.png"], ["lid/a.png", "lid/bent/b.heic"]]
)
def test_a_class_without_good_parts_is_an_error_that_shows_it(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match=r"expected: \[CATEGORY/\]good(?s:.*)found: lid/: (?s:.*)rename"):
        survey(tmp_path, "nut/good/a.png", *names)
    found, left = sources.survey("folder", tmp_path, ["nut"])  # the repair that the message prints
    assert (len(found), len(left)) == (1, len(names))
    for name in names:
        (tmp_path / name).unlink()
    touch(tmp_path, "lid/ok/a.png")
    assert len(sources.survey("folder", tmp_path)[0]) == 2


def test_loco_has_normals_for_validation(tmp_path: Path) -> None:
    names = ["nut/train/good/a.png", "nut/validation/good/b.png", "nut/test/good/c.png", "nut/train/bad/d.png"]
    found, left = survey(tmp_path, *names, source="mvtec")
    assert [f.official for f in found.values()] == ["test", "train", "train"]
    assert list(left) == ["nut/train/bad/d.png"]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("bent/0.png", "masks/bent/0.png"),
        ("bent/0.jpg", "Masks/bent/0.png"),
        ("bent/day1/0.png", "masks/bent/day1/0_mask.png"),
        ("bent/day1/0.png", "masks/bent/0.png"),
        ("bent/0.png", "gt/bent/0/mask.png"),
        ("bent/0.png", "ground_truth/bent/0/0.png"),
        ("bent/0.png", "ground-truth/0.png"),
        ("bent/0.png", "mask/0_seg.bmp"),
        ("bent/0.png", "masks/all/mask_0.png"),
        ("bent/0.jpg", "masks/bent/0.jpg.png"),
        ("bent/0.png", "bent/masks/0.png"),
        ("bent/0.png", "bent_mask/0.png"),
        ("bent/0.png", "bent/0_GT.png"),
        ("bent/0.png", "labels/bent/0_label.png"),
        ("bent/IMG.PNG", "masks/bent/img.png"),
        (f"bent/{unicodedata.normalize('NFD', 'für')}.png", "masks/bent/für.png"),
    ],
)
def test_masks_are_found_where_one_image_alone_is_meant(tmp_path: Path, image: str, mask: str) -> None:
    touch(tmp_path, "nut/good/0.png", f"nut/{image}", f"nut/{mask}")
    found, left = sources.survey("folder", tmp_path)
    masks = {f.path.relative_to(tmp_path / "nut").as_posix(): f.mask_path for f in found}
    assert masks == {image: tmp_path / "nut" / mask, "good/0.png": None}
    assert not left


@pytest.mark.parametrize(
    "masks",
    [
        ["masks/bent/1.png"],
        ["masks/0.png"],  # bent/0 and cut/0
        ["masks/bent/0_mask.png", "masks/bent/0_gt.png"],
        ["ground_truth/bent/0/0.png", "ground_truth/bent/0/1.png"],
        ["masks/good/0.png", "masks/kind/0/x.png"],
    ],
)
def test_masks_of_no_single_image_are_an_error_that_names_them(tmp_path: Path, masks: list[str]) -> None:
    names = ["good/0.png", "bent/0.png", "cut/0.png", *masks]
    with pytest.raises(
        DataError, match=r"2 defective images have no mask(?s:.*)belong to no image(?s:.*)repair"
    ) as caught:
        survey(tmp_path, *(f"nut/{name}" for name in names))
    assert masks[-1] in str(caught.value)
    for mask in masks:
        (tmp_path / "nut" / mask).unlink()
    assert len(sources.survey("folder", tmp_path)[0]) == 3


def test_other_masks_are_listed(tmp_path: Path) -> None:
    names = ["good/a.png", "bent/b.png", "masks/bent/b.png", "masks/good/a.png", "masks/bent/gone.png"]
    _, left = survey(tmp_path, *(f"nut/{name}" for name in names))
    assert {name: item.kind for name, item in left.items()} == {
        "nut/masks/good/a.png": "other",
        "nut/masks/bent/gone.png": "mask",
    }


def test_what_is_not_read_is_listed_by_kind(tmp_path: Path) -> None:
    names = [
        "a.heic",
        "b.JP2",
        "c.NEF",
        "old.zip",
        "notes.txt",
        "a.json",
        "Thumbs.db",
        ".DS_Store",
        "._a.png",
        "noname",
    ]
    _, left = survey(tmp_path, "nut/good/a.png", "nut/extra.png", *(f"nut/good/{name}" for name in names))
    assert Counter(item.kind for item in left.values()) == {"image": 4, "archive": 1, "other": 6}
    said = "\n".join(told(left.values()))
    assert "3 images not looked at (a format that is not read: export it as PNG): nut/good/a.heic" in said
    assert "1 archive not looked at" in said
    assert "notes" not in said


def test_many_names_are_counted_and_few_are_shown(tmp_path: Path) -> None:
    _, left = survey(tmp_path, "nut/good/a.png", *(f"nut/good/{n:02}.gif" for n in range(30)))
    assert told(left.values()) == [
        "30 images not looked at (a format that is not read: export it as PNG): "
        "nut/good/00.gif, nut/good/01.gif, nut/good/02.gif, nut/good/03.gif, nut/good/04.gif and 25 more"
    ]


def test_classes_that_are_left_out_are_expected(tmp_path: Path) -> None:
    touch(tmp_path, "nut/good/a.png", "lid/good/a.png", "lid/bent/b.png", "arrived/lid/good/c.png")
    _, left = sources.survey("folder", tmp_path, ["nut"])
    assert [item.kind for item in left] == ["other"] * 3


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "nut/shots/a.png", "nut/shots/day/b.png")
    (tmp_path / "nut/good").symlink_to("shots")
    (tmp_path / "nut/shots/again").symlink_to("..")
    (tmp_path / "nut/shots/circle.txt").symlink_to("circle.txt")
    (tmp_path / "nut/shots/gone.txt").symlink_to("nowhere")
    found, left = sources.survey("folder", tmp_path)
    assert Counter(f.kind for f in found) == {"good": 2, "shots": 2}
    assert {item.path for item in left} >= {f"nut/shots/{name}" for name in ("again", "circle.txt", "gone.txt")}


@pytest.mark.parametrize(
    ("source", "names", "group"),
    [
        ("folder", ["nut/good/p1__a.png", "nut/good/day2/p1__b.png", "nut/bent/p1__c.png"], "nut/p1"),
        ("mvtec", ["nut/train/good/p1__a.png", "nut/test/good/p1__b.png", "nut/test/bent/p1__c.png"], "nut/p1"),
        ("btad", ["nut/train/ok/x y__1__2.png", "nut/test/ko/x y__3.png"], "nut/x y"),
    ],
)
def test_views_of_a_part_are_one_group(tmp_path: Path, source: str, names: list[str], group: str) -> None:
    more = [f"{Path(names[0]).parent.as_posix()}/{name}" for name in ("q.png", "r_1.png", "__s.png")]
    found, _ = survey(tmp_path, *names, *more, source=source)
    assert {found[name].group_id for name in names} == {group}
    assert all(found[name].group_id == found[name].sample_id for name in more)


def test_a_camera_that_begins_all_names_alike_names_no_part(tmp_path: Path) -> None:
    found, _ = survey(tmp_path, *(f"nut/good/Image__2026-01-31__{n}.png" for n in range(5)))
    assert len({f.group_id for f in found.values()}) == 5


FOLDERS = ("nut", "lid", "good", "OK", "bent", "masks", "day 2", "NG", "gate", "arrived", ".cache", "train", "test")
FILES = ("a.png", "b.PNG", "a_mask.png", "p__1.png", "p__2.jpg", "c.jfif", "d.zip", "e.txt", ".f.png", "g", "ü.png")
trees = st.sets(
    st.tuples(st.lists(st.sampled_from(FOLDERS), max_size=4), st.sampled_from(FILES)).map(
        lambda t: "/".join([*t[0], t[1]])
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(trees, st.sampled_from(["folder", "mvtec"]), st.booleans())
def test_used_and_quarantined_and_ignored_are_all_files(names: set[str], source: str, named: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work, base = Path(folder), Path(folder, "data/raw/tiny")
        start = "nut/good/first.png" if source == "folder" else "nut/train/good/first.png"
        for number, name in enumerate(sorted({start, *names})):
            path = base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), (number * 7) % 250, np.uint8)
            if number % 4:
                Image.fromarray(pixels).save(path, format="PNG")
            else:
                path.write_bytes(b"no picture")
        data = {"name": "tiny", "source": source, "max_quarantine": 1.0, "categories": ["nut"] * named}
        try:
            build.build(work, config.parse({"data": data}))
        except DataError:  # stopped: nothing vanished either
            assert not (work / "data/manifest.csv").exists()
            return
        rows = pd.read_csv(work / "data/manifest.csv", dtype=str, keep_default_na=False)
        rows = rows[rows.path.str.startswith("raw/")]
        lists = [pd.read_csv(work / f"data/{name}.csv").path for name in ("quarantine", "ignored")]
        parts = [rows.path, rows.mask_path[rows.mask_path != ""], *lists]
        disk = [Path(place, name) for place, _, files in os.walk(base) for name in files]
        assert sorted(pd.concat(parts)) == sorted(path.relative_to(work / "data").as_posix() for path in disk)
