"""Published datasets in exactly the trees that they come in, with made images, down to the manifest."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.experiments import subjects
from pvqae.core import config
from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.datasets import build, published, sources
from pvqae.datasets.layouts import Found
from pvqae.samples import images, manifest

SIZE = (24, 32)  # height, width
DENT = np.zeros(SIZE, dtype=np.bool_)
DENT[6:14, 10:20] = True
EMPTY = np.zeros(SIZE, dtype=np.bool_)
RNG = np.random.default_rng(0)


def picture(*paths: Path) -> None:
    """Images that all differ, in the format of their names."""
    for path in paths:
        images.write(path.with_suffix(".png"), RNG.random((*SIZE, 3), dtype=np.float32) * 0.2 + 0.4)
        kept(path)


def mask(path: Path, marked: np.ndarray = DENT, value: int = 255) -> None:
    images.write(path.with_suffix(".png"), (marked * value / 255).astype(np.float32))
    kept(path)


def kept(path: Path) -> None:
    if path.suffix != ".png":
        from PIL import Image

        path.with_suffix(".png").rename(path.with_suffix(".made"))
        with Image.open(path.with_suffix(".made"), formats=["PNG"]) as image:
            image.save(path, {".jpg": "JPEG", ".bmp": "BMP"}.get(path.suffix.lower(), "PNG"))
        path.with_suffix(".made").unlink()


def visa(root: Path) -> None:
    """https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar; pixels of masks are 1, 2, ..."""
    rows, notes = ["object,split,label,image,mask"], ["image,label,mask"]
    for i in range(12):
        name = f"candle/Data/Images/Normal/{i:04}.JPG"
        picture(root / name)
        rows.append(f"candle,{'train' if i < 10 else 'test'},normal,{name},")
        notes.append(f"{name},normal,")
    for i, kind in enumerate(["bent", '"chunk of wax missing,melt"']):
        name, marked = f"candle/Data/Images/Anomaly/{i:03}.JPG", f"candle/Data/Masks/Anomaly/{i:03}.png"
        picture(root / name)
        mask(root / marked, value=i + 1)
        rows.append(f"candle,test,anomaly,{name},{marked}")
        notes.append(f"{name},{kind},{marked}")
    (root / "candle" / "image_anno.csv").write_text("\n".join(notes) + "\n")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")


def mvtec(
    root: Path, name: str, test: str = "test", good: str = "good", ends: tuple[str, str] = (".png", ".png")
) -> None:
    place = root / name
    picture(*(place / "train" / good / f"{i:03}{ends[0]}" for i in range(10)))
    picture(*(place / test / good / f"{i:03}{ends[0]}" for i in range(2)))


def visa_converted(root: Path) -> None:
    """What prepare_data.py of https://github.com/amazon-science/spot-diff writes, below 1cls/: no _mask in names."""
    mvtec(root, "candle", ends=(".JPG", ".png"))
    picture(root / "candle/test/bad/000.JPG")
    mask(root / "candle/ground_truth/bad/000.png")


CONFIG = [
    {"defect_name": "missing_almonds", "pixel_value": 255, "saturation_threshold": 1.0, "relative_saturation": True},
    {"defect_name": "swapped", "pixel_value": 254, "saturation_threshold": 30, "relative_saturation": False},
]


def loco(root: Path) -> None:
    """mvtec_loco_anomaly_detection.tar.xz: a folder of masks per image, whose values are kinds of defects."""
    mvtec(root, "breakfast_box")
    place = root / "breakfast_box"
    picture(place / "validation/good/000.png", place / "test/logical_anomalies/000.png")
    picture(place / "test/structural_anomalies/000.png")
    upper, lower = DENT.copy(), DENT.copy()
    upper[10:], lower[:10] = False, False
    mask(place / "ground_truth/logical_anomalies/000/000.png", upper, 255)
    mask(place / "ground_truth/logical_anomalies/000/001.png", lower, 254)
    mask(place / "ground_truth/structural_anomalies/000/000.png", DENT, 254)
    (place / "defects_config.json").write_text(json.dumps(CONFIG))


def mvtec_ad_2(root: Path) -> None:
    """mvtec_ad_2.tar.gz: four lights of a part, two unlabelled test sets."""
    place = root / "can"
    picture(*(place / "train/good" / f"{i:03}_regular.png" for i in range(10)))
    picture(place / "validation/good/010_regular.png")
    for light in ("regular", "overexposed"):
        picture(place / f"test_public/good/000_{light}.png", place / f"test_public/bad/000_{light}.png")
        mask(place / f"test_public/ground_truth/bad/000_{light}_mask.png")
    picture(place / "test_private/000_regular.png", place / "test_private_mixed/000_shift_1.png")


def mpdd(root: Path) -> None:
    """https://github.com/stepanje/MPDD: as MVTec AD."""
    mvtec(root, "bracket_black")
    picture(root / "bracket_black/test/hole/000.png")
    mask(root / "bracket_black/ground_truth/hole/000_mask.png")


def kolektor(root: Path) -> None:
    """https://data.vicos.si/datasets/KSDD/KolektorSDD.zip: 50 items of 8 surfaces, each item with a defect."""
    for item in range(1, 13):
        for part in range(4):
            picture(root / f"kos{item:02}" / f"Part{part}.jpg")
            mask(root / f"kos{item:02}" / f"Part{part}_label.bmp", DENT if part == 0 else EMPTY)


def kolektor2(root: Path) -> None:
    """https://data.vicos.si/datasets/KSDD/KolektorSDD2.zip: a mask for each image, of good ones an empty one."""
    for i in range(10):
        picture(root / f"train/1{i:04}.png")
        mask(root / f"train/1{i:04}_GT.png", DENT if i == 9 else EMPTY)
    for i in range(3):
        picture(root / f"test/2{i:04}.png")
        mask(root / f"test/2{i:04}_GT.png", DENT if i == 2 else EMPTY)


def dagm(root: Path) -> None:
    """DAGM 2007: names in capitals, masks of defects alone, those of train, too."""
    for head, count in (("Train", 10), ("Test", 3)):
        picture(*(root / "Class1" / head / f"{i:04}.PNG" for i in range(1, count + 1)))
        mask(root / "Class1" / head / "Label" / f"{count:04}_label.PNG")
        (root / "Class1" / head / "Label" / "Labels.txt").write_text("1\n")


def btad(root: Path) -> None:
    """btad.zip, BTech_Dataset_transformed: classes 01, 02, 03 in bmp and png, masks in other formats than images."""
    for name, shown, marked in (("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")):
        mvtec(root, name, good="ok", ends=(shown, marked))
        picture(root / name / "test/ko" / f"0000{shown}")
        mask(root / name / "ground_truth/ko" / f"0000{marked}")


def real_iad(root: Path) -> None:
    """Real-IAD: a list per category, five views of a part, of a defective part some views without the defect."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}

    def view(official: str, folder: str, camera: int, kind: str, masked: bool) -> None:
        name = f"{folder}/audiojack_0001_{folder.split('/')[0]}_C{camera}_2023091{camera}.jpg"
        marked = name.replace(".jpg", ".png") if masked else None
        picture(root / "realiad_1024/audiojack" / name)
        if marked:
            mask(root / "realiad_1024/audiojack" / marked)
        row = {"category": "audiojack", "anomaly_class": kind, "image_path": name, "mask_path": marked}
        rows[official].append(row)

    for part in range(8):
        for camera in range(1, 6):
            view("train", f"OK/S{part:04}", camera, "OK", False)
    for camera in range(1, 6):
        view("test", "OK/S0100", camera, "OK", False)
        view("test", "NG/BX/S0001", camera, "BX", camera < 3)
    picture(root / "realiad_256/audiojack/OK/S0000/audiojack_0001_OK_C1_20230911.jpg")
    place = root / "realiad_jsons/realiad_jsons"
    place.mkdir(parents=True)
    meta = {"normal_class": "OK", "pre_transform": [], "prefix": "audiojack/"}
    (place / "audiojack.json").write_text(json.dumps({"meta": meta, **rows}))


def mvtec_3d(root: Path) -> None:
    """mvtec_3d_anomaly_detection.tar.xz: rgb, xyz and gt below each kind; good parts have an empty gt."""
    place = root / "bagel"
    for kind, count in (("train/good", 10), ("validation/good", 1), ("test/good", 2), ("test/crack", 2)):
        for i in range(count):
            picture(place / kind / "rgb" / f"{i:03}.png")
            (place / kind / "xyz").mkdir(exist_ok=True)
            (place / kind / "xyz" / f"{i:03}.tiff").write_bytes(b"II*\0")
            if kind.startswith("test"):
                mask(place / kind / "gt" / f"{i:03}.png", DENT if kind.endswith("crack") else EMPTY)
    (place / "calibration").mkdir()
    (place / "calibration" / "camera_parameters.json").write_text("{}")


# source → the tree, normals to learn from, images of the official test (normal, defective), flawed; masks are DENT
TREES: dict[str, tuple[Any, int, tuple[int, int], int]] = {
    "visa": (visa, 10, (2, 2), 0),
    "visa, converted": (visa_converted, 10, (2, 1), 0),
    "loco": (loco, 11, (2, 2), 0),
    "mvtec_ad_2": (mvtec_ad_2, 11, (2, 2), 0),
    "mpdd": (mpdd, 10, (2, 1), 0),
    "kolektor2": (kolektor2, 9, (2, 1), 1),
    "dagm": (dagm, 9, (2, 1), 1),
    "btad": (btad, 30, (6, 3), 0),
    "real_iad": (real_iad, 40, (5, 2), 3),
    "mvtec_3d": (mvtec_3d, 11, (2, 2), 0),
}


@pytest.mark.parametrize("name", TREES)
def test_a_published_tree_becomes_a_manifest(name: str, tmp_path: Path) -> None:
    make, normals, tested, flawed = TREES[name]
    layout = Layout(tmp_path, "set")
    make(layout.raw)
    params = config.parse({"data": {"name": "set", "source": name.partition(",")[0]}})
    said = build.build(tmp_path, params)
    assert (said.unreadable, said.duplicates, said.flawed) == (0, 0, flawed)
    assert "warning" not in str(said)
    frame = manifest.read(layout.manifest)
    shown = frame[~frame["path"].str.startswith("gate/")]
    learnt = shown[shown["split"].isin(["train", "calibrate", "gate"])]
    assert (set(learnt["label"]), len(learnt)) == ({"normal"}, normals)
    labels = shown[shown["split"] == "test"]["label"].value_counts()
    assert (labels["normal"], labels["defect"]) == tested
    defects = shown[shown["label"] == "defect"]
    assert set(defects["split"]) == {"test"}
    for path in defects["mask_path"]:
        np.testing.assert_array_equal(images.read_mask(path, layout.data), DENT)
    assert {item.kind for item in said.left} <= {"other"}
    used = {path for column in ("path", "mask_path") for path in frame[column] if path.startswith("raw/")}
    lists = [pd.read_csv(file) for file in (layout.quarantine, layout.ignored)]
    assert len(used) + sum(map(len, lists)) == sum(file.is_file() for file in layout.raw.rglob("*"))


def scan(source: str, root: Path) -> dict[str, Found]:
    return {f.sample_id: f for f in sources.scan(source, root)}


def test_visa_names_kinds_and_needs_no_split_file(tmp_path: Path) -> None:
    visa(tmp_path)
    kinds = {f.kind for f in scan("visa", tmp_path).values()}
    assert kinds == {"good", "bent", "chunk of wax missing, melt"}
    (tmp_path / "split_csv" / "1cls.csv").write_text("object,image\n")
    with pytest.raises(DataError, match=r"1cls\.csv: expected the column split, found object, image"):
        scan("visa", tmp_path)
    (tmp_path / "split_csv" / "1cls.csv").unlink()
    assert {f.official for f in scan("visa", tmp_path).values()} == {None}


def test_the_laboratory_brings_visas_split_along(tmp_path: Path) -> None:
    visa(tmp_path / "visa")
    (place,) = subjects.choose(subjects.find_places([tmp_path]), ["candle"])
    (found,) = subjects.load([place], tmp_path / "built", config.Params())
    tested = found.rows[(found.rows["split"] == "test") & (found.rows["label"] == "normal")]
    assert {Path(path).stem for path in tested["path"]} == {"0010", "0011"}


def test_locos_regions_have_their_saturation(tmp_path: Path) -> None:
    loco(tmp_path)
    found = published.regions(tmp_path / "breakfast_box", "logical_anomalies", "000")
    assert [(one.name, int(one.mask.sum()), one.saturation) for one in found] == [
        ("missing_almonds", 40, 40),  # all of it
        ("swapped", 40, 30),
    ]
    (whole,) = published.regions(tmp_path / "breakfast_box", "structural_anomalies", "000")
    assert (int(whole.mask.sum()), whole.saturation) == (80, 30)
    mask(tmp_path / "breakfast_box/ground_truth/logical_anomalies/000/002.png", DENT, 99)
    with pytest.raises(
        DataError, match=r"002\.png: expected pixels of a value that .*defects_config\.json names, found 99"
    ):
        published.regions(tmp_path / "breakfast_box", "logical_anomalies", "000")
    (tmp_path / "breakfast_box" / "defects_config.json").unlink()
    with pytest.raises(DataError, match=r"defects_config\.json: expected JSON"):
        published.regions(tmp_path / "breakfast_box", "logical_anomalies", "000")


def test_a_saturation_is_never_larger_than_the_defect(tmp_path: Path) -> None:
    loco(tmp_path)
    text = json.dumps([{**CONFIG[1], "saturation_threshold": 10000}, CONFIG[0]])
    (tmp_path / "breakfast_box" / "defects_config.json").write_text(text)
    (whole,) = published.regions(tmp_path / "breakfast_box", "structural_anomalies", "000")
    assert whole.saturation == 80


def test_lights_of_a_part_of_ad_2_stay_together_and_private_images_are_explained(tmp_path: Path) -> None:
    mvtec_ad_2(tmp_path)
    groups = Counter(f.group_id for f in scan("mvtec_ad_2", tmp_path).values())
    assert groups["can/test_public/bad/000"] == groups["can/test_public/good/000"] == 2
    assert groups["can/train/good/000"] == 1
    _, left = sources.survey("mvtec_ad_2", tmp_path)
    assert {item.path: item.kind for item in left} == {
        "can/test_private/000_regular.png": "other",
        "can/test_private_mixed/000_shift_1.png": "other",
    }


def test_an_item_of_kolektor_is_tested_whole_or_learnt_from(tmp_path: Path) -> None:
    kolektor(tmp_path)
    found = list(scan("kolektor", tmp_path).values())
    of_item = {f.path.parent.name: set() for f in found}
    for f in found:
        of_item[f.path.parent.name].add(f.official)
    assert {len(splits) for splits in of_item.values()} == {1}
    tested = [f for f in found if f.official == "test"]
    assert 0 < len(tested) < len(found)
    assert Counter(f.label for f in tested) == {"normal": len(tested) * 3 // 4, "defect": len(tested) // 4}
    learnt = [f for f in found if f.official == "train"]
    assert all(bool(f.flaw) == (f.label == "defect") for f in learnt)


def test_a_missing_mask_of_kolektor_is_named(tmp_path: Path) -> None:
    kolektor2(tmp_path)
    (tmp_path / "train" / "10003_GT.png").unlink()
    with pytest.raises(DataError, match=r"10003_GT\.png: expected an image, found no file"):
        scan("kolektor2", tmp_path)


def test_views_of_a_part_of_real_iad_stay_together(tmp_path: Path) -> None:
    real_iad(tmp_path)
    found = scan("real_iad", tmp_path)
    groups = Counter(f.group_id for f in found.values())
    assert set(groups.values()) == {5}
    assert groups["audiojack/NG/BX/S0001"] == 5
    assert {f.kind for f in found.values() if f.flaw} == {"BX"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"train": []}', "expected Real-IAD's list of images, found none of 'test'"),
        ("[]", "expected Real-IAD's list"),
        ("{", "expected JSON"),
        (
            '{"train": [{"image_path": "../../x.jpg", "anomaly_class": "OK"}], "test": []}',
            r"expected paths inside of .*audiojack, found \.\./\.\./x\.jpg",
        ),
    ],
)
def test_another_list_of_real_iad_is_refused(text: str, said: str, tmp_path: Path) -> None:
    real_iad(tmp_path)
    (tmp_path / "realiad_jsons/realiad_jsons/audiojack.json").write_text(text)
    with pytest.raises(DataError, match=rf"audiojack\.json: {said}"):
        scan("real_iad", tmp_path)
