import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer

from flows.cli import training
from pvqae.core.errors import DataError
from pvqae.datasets import demo, mtsd, sources
from pvqae.datasets.layouts import Found
from pvqae.datasets.sources import SOURCES
from pvqae.samples import images

PICTURE = np.full((12, 16, 3), 0.5, dtype=np.float32)


def touch(root: Path, *names: str) -> Path:
    """Empty files: a scan goes by names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def by_id(found: list[Found]) -> dict[str, Found]:
    return {f.sample_id: f for f in found}


def test_mvtec(tiny_mvtec: Path) -> None:
    touch(tiny_mvtec / "part", "train/good/Thumbs.db", "test/.DS_Store", "readme.txt", "test/dent/._000.png")
    found = sources.scan("mvtec", tiny_mvtec)
    assert Counter((f.official, f.label, f.kind) for f in found) == {
        ("train", "normal", "good"): 40,
        ("test", "normal", "good"): 4,
        ("test", "defect", "dent"): 3,
    }
    dent = by_id(found)["part/test/dent/000"]
    assert dent.mask_path == tiny_mvtec / "part/ground_truth/dent/000_mask.png"
    assert dent.group_id == dent.sample_id
    assert sources.categories("mvtec", tiny_mvtec) == ["part"]
    assert sources.scan("mvtec", tiny_mvtec / "part") == found


def test_btad_with_bmp_and_png(tmp_path: Path) -> None:
    touch(tmp_path, "01/train/ok/0.bmp", "01/test/ok/1.bmp", "01/test/ko/2.bmp", "01/ground_truth/ko/2.png")
    touch(tmp_path, "03/train/ok/0.png", "03/test/ko/2.png", "03/ground_truth/ko/2.bmp")
    found = by_id(sources.scan("btad", tmp_path))
    assert {name: (f.label, f.official) for name, f in found.items()} == {
        "01/train/ok/0": ("normal", "train"),
        "01/test/ok/1": ("normal", "test"),
        "01/test/ko/2": ("defect", "test"),
        "03/train/ok/0": ("normal", "train"),
        "03/test/ko/2": ("defect", "test"),
    }
    assert found["03/test/ko/2"].mask_path == tmp_path / "03/ground_truth/ko/2.bmp"


@pytest.mark.parametrize("names", [("a.png", "b.JPG"), ("good/a.png", "good/b.JPG")])
def test_folder_of_good_images_only(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = touch(tmp_path / "nuts", *names)
    found = sources.scan("folder", root)
    assert [(f.category, f.label, f.official) for f in found] == [("nuts", "normal", None)] * 2


def test_folder_with_defects_and_masks(tmp_path: Path) -> None:
    for category in ("nut", "bolt"):
        touch(tmp_path / category, "good/a.png", "bent/b.jpg", "cut/c.png", "masks/bent/b.png")
        touch(tmp_path / category, "ground_truth/cut/c_mask.png")
    found = by_id(sources.scan("folder", tmp_path))
    assert sources.categories("folder", tmp_path) == ["bolt", "nut"]
    assert list(found) == [f"{c}/{n}" for c in ("bolt", "nut") for n in ("bent/b", "cut/c", "good/a")]
    assert found["nut/bent/b"].mask_path == tmp_path / "nut/masks/bent/b.png"
    assert found["nut/cut/c"].mask_path == tmp_path / "nut/ground_truth/cut/c_mask.png"
    assert sources.scan("folder", tmp_path, ["nut"]) == [f for f in found.values() if f.category == "nut"]


@pytest.mark.parametrize(("source", "folder"), [("folder", ""), ("mvtec", "part/")])
def test_images_set_aside_for_the_gate(tmp_path: Path, source: str, folder: str) -> None:
    touch(tmp_path / folder, "good/a.png", "train/good/a.png")
    touch(tmp_path / folder, "gate/good/n.png", "gate/dent/d.png", "gate_masks/dent/d.png")
    if source == "folder":
        shutil.rmtree(tmp_path / "train")
    gate = [f for f in sources.scan(source, tmp_path) if f.official == "gate"]
    assert [(f.path.name, f.label, f.kind) for f in gate] == [("d.png", "defect", "dent"), ("n.png", "normal", "good")]
    assert gate[0].mask_path == tmp_path / folder / "gate_masks/dent/d.png"


def test_a_category_without_masks_is_image_level(tmp_path: Path) -> None:
    touch(tmp_path / "nut", "good/a.png", "bent/b.png")
    touch(tmp_path / "bolt", "good/a.png", "bent/b.png", "masks/bent/b.png")
    found = by_id(sources.scan("folder", tmp_path))
    assert found["nut/bent/b"].mask_path is None
    assert found["bolt/bent/b"].mask_path is not None


def test_some_masks_missing_is_an_error_that_names_them(tmp_path: Path) -> None:
    touch(tmp_path, "good/a.png", "bent/b.png", "bent/c.png", "masks/bent/b.png")
    with pytest.raises(DataError, match=r"1 defective images have no mask(?s:.*)bent/c\.png(?s:.*)add these masks"):
        sources.scan("folder", tmp_path)


MASKS = {
    "mvtec": ["nut/train/good/a.png", "nut/test/bent/b.png", "nut/test/bent/c.png", "nut/ground_truth/bent/b_mask.png"],
    "btad": ["nut/train/ok/a.png", "nut/test/ko/b.bmp", "nut/test/ko/c.bmp", "nut/ground_truth/ko/b.png"],
    "folder": ["nut/good/a.png", "nut/bent/b.png", "nut/bent/c.png", "nut/masks/bent/b.png"],
}


@pytest.mark.parametrize("source", MASKS)
def test_a_missing_mask_is_expected_where_the_layout_has_it(source: str, tmp_path: Path) -> None:
    touch(tmp_path, *MASKS[source])
    with pytest.raises(DataError) as caught:
        sources.scan(source, tmp_path)
    assert f"expected: {SOURCES[source].tree}" in str(caught.value)
    others = {other.tree for other in SOURCES.values()} - {SOURCES[source].tree}
    assert not [tree for tree in others if tree in str(caught.value)]


def test_a_mask_of_mtsd_without_its_photograph_is_called_a_mask(tmp_path: Path) -> None:
    touch(tmp_path, "MT_Free/Imgs/exp1_num_1.jpg", "MT_Free/Imgs/exp1_num_2.png", "dataset.png")
    _, left = sources.survey("mtsd", tmp_path)
    assert {item.path: item.kind for item in left} == {"MT_Free/Imgs/exp1_num_2.png": "mask", "dataset.png": "image"}


def test_every_layout_is_named_where_a_person_chooses_one() -> None:
    root = Path(__file__).parents[3]
    comment = re.search(r"^  source: \w+ +# (.*)$", (root / "params.yaml").read_text("utf-8"), re.MULTILINE)
    assert comment
    assert set(comment[1].split(" | ")) == set(SOURCES)
    shown = typer.main.get_command(training.data)
    option = next(one for one in shown.params if one.name == "source")  # of its only command, `data add`
    assert set(option.help.rpartition(": ")[2].split(" | ")) == set(SOURCES) - {"demo"}


@pytest.mark.parametrize("source", list(SOURCES))
class TestEverySource:
    def test_another_layout_is_shown_beside_the_expected_one(self, source: str, tmp_path: Path) -> None:
        touch(tmp_path, "pictures/x/a.png", "readme.txt")
        for door in (sources.scan, sources.categories):
            with pytest.raises(DataError) as caught:
                door(source, tmp_path)
            text = str(caught.value)
            assert SOURCES[source].tree in text
            assert "found: pictures/  pictures/x/  readme.txt" in text

    def test_a_missing_folder_is_named(self, source: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such folder"):
            sources.scan(source, tmp_path / "nowhere")


def test_unknown_names_list_the_known_ones(tiny_mvtec: Path) -> None:
    with pytest.raises(DataError, match=f"{', '.join(sources.SOURCES)}; found coco"):
        sources.scan("coco", tiny_mvtec)
    with pytest.raises(DataError, match="expected some of part; found nut"):
        sources.scan("mvtec", tiny_mvtec, ["part", "nut"])


def test_names_that_cannot_become_models_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "my nut/good/a.png")
    with pytest.raises(DataError, match=r"my nut.*rename the folder"):
        sources.categories("folder", tmp_path)


def test_one_name_with_two_endings_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "good/a.png", "good/a.jpg", "good/b.png")
    with pytest.raises(DataError, match=r"a\.jpg, .*a\.png; rename"):
        sources.scan("folder", tmp_path)


def test_demo_groups_the_images_of_a_cell(tmp_path: Path) -> None:
    demo.make(tmp_path / "demo")
    groups = Counter(f.group_id for f in sources.scan("demo", tmp_path / "demo"))
    assert len(groups) == 3 * 16
    assert set(groups.values()) == {demo._VARIANTS, demo._VARIANTS + len(demo._KINDS)}


TILE = (1810, 1836)  # two photographs of one tile


def test_mtsd_reads_names_masks_and_unreadable_files(tmp_path: Path) -> None:
    images.write(tmp_path / f"MT_Free/Imgs/exp1_num_{TILE[0]}.jpg", PICTURE)
    images.write(tmp_path / f"MT_Free/Imgs/exp1_num_{TILE[0]}.png", PICTURE * 0)
    images.write(tmp_path / f"MT_Crack/Imgs/exp2_num_{TILE[1]}.jpg", PICTURE)
    images.write(tmp_path / f"MT_Crack/Imgs/exp2_num_{TILE[1]}.png", PICTURE)
    touch(tmp_path, "MT_Free/Imgs/exp1_num_99.jpg")
    found = by_id(sources.scan("mtsd", tmp_path))
    names = (f"crack/exp2_num_{TILE[1]}", f"good/exp1_num_{TILE[0]}", "good/exp1_num_99")
    assert list(found) == [f"magnetic_tile/{name}" for name in names]
    crack, good, broken = found.values()
    assert (crack.kind, crack.label, good.kind, good.label) == ("crack", "defect", "good", "normal")
    assert crack.mask_path is not None
    assert good.mask_path is None
    assert crack.group_id == good.group_id == f"magnetic_tile/tile_{TILE[0]}"
    assert broken.group_id == "magnetic_tile/tile_99"  # a number that the publisher has not: alone
    images.write(tmp_path / "MT_Free/Imgs/tile.jpg", PICTURE)
    with pytest.raises(DataError, match=r"tile\.jpg: expected a name like"):
        sources.scan("mtsd", tmp_path)


def test_every_photograph_of_mtsd_has_one_tile() -> None:
    sizes = Counter(mtsd._tiles().values())
    assert (sum(sizes.values()), len(sizes), max(sizes.values())) == (1344, 219, 15)
    assert sum(size in (6, 7) for size in sizes.values()) > 200


def test_real_mtsd(real_dataset: Callable[[str, str], Path]) -> None:
    found = sources.scan("mtsd", real_dataset("mtsd", "magnetic_tile"))
    kinds = {"good": 952, "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103}
    assert Counter(f.kind for f in found) == kinds
    groups = Counter(f.group_id for f in found)
    assert len(groups) == 219
    # The publisher's "about 2 % of neighbours differ in class": a tile is Free in one exposure, defective in the next.
    defective = {f.group_id for f in found if f.label == "defect"}
    assert any(f.label == "normal" and f.group_id in defective for f in found)


def test_real_mvtec(real_dataset: Callable[[str, str], Path]) -> None:
    found = sources.scan("mvtec", real_dataset("mvtec", "bottle"))
    assert Counter((f.category, f.official, f.label) for f in found) == {
        ("bottle", "train", "normal"): 209,
        ("bottle", "test", "normal"): 20,
        ("bottle", "test", "defect"): 63,
        ("toothbrush", "train", "normal"): 48,
        ("toothbrush", "test", "normal"): 12,
        ("toothbrush", "test", "defect"): 30,
    }
    assert all(f.mask_path for f in found if f.label == "defect")
