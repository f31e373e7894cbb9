"""The same dent in every format, read from real files, and what is wrong with annotations."""

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pvqae.core.config import Data
from pvqae.core.errors import DataError
from pvqae.datasets import sources
from pvqae.datasets.layouts import Found
from pvqae.samples import images
from tests.pvqae.datasets.test_drawing import compressed, painted, runs_of

SIZE = (24, 32)  # height, width
DENT = np.zeros(SIZE, dtype=np.bool_)
DENT[6:14, 10:20] = True
CORNERS = [(10, 6), (20, 6), (20, 14), (10, 14)]
FLAT = [number for corner in CORNERS for number in corner]


def coco(name: str, shape: dict[str, Any]) -> str:
    pictures = [{"id": 7, "file_name": name, "height": 24, "width": 32}]
    marks = [{"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, "bbox": [10, 6, 10, 8], **shape}]
    return json.dumps({"images": pictures, "annotations": marks, "categories": [{"id": 3, "name": "dent"}]})


def labelme(name: str, **shape: Any) -> str:
    shapes = [{"label": "dent", "points": CORNERS, "shape_type": "polygon", "group_id": None, "flags": {}} | shape]
    return json.dumps({"version": "5.5", "shapes": shapes, "imagePath": name, "imageHeight": 24, "imageWidth": 32})


def studio(name: str, kind: str, value: dict[str, Any]) -> str:
    result = {"original_width": 32, "original_height": 24, "image_rotation": 0, "type": kind, "value": value}
    choice = {"type": "choices", "value": {"choices": ["dent"]}, "original_width": 32, "original_height": 24}
    one = {"id": 1, "was_cancelled": False, "result": [result, choice, {"type": "relation"}]}
    return json.dumps([{"id": 5, "data": {"image": name}, "annotations": [one, {"was_cancelled": True, "result": []}]}])


def cvat(name: str, shape: str) -> str:
    return (
        f'<?xml version="1.0"?>\n<annotations><version>1.1</version><meta/><image id="0" name="{name}" '
        f'width="32" height="24">{shape}</image></annotations>'
    )


def datumaro(name: str, **shape: Any) -> str:
    item = {"id": name.rpartition(".")[0], "annotations": [{"id": 0, "label_id": 1, "group": 0, **shape}]}
    labels = {"label": {"labels": [{"name": "scratch"}, {"name": "dent"}]}}
    return json.dumps(
        {"info": {}, "categories": labels, "items": [{**item, "image": {"path": name, "size": [24, 32]}}]}
    )


def stamped() -> str:
    buffer = BytesIO()
    Image.fromarray(np.ones((8, 10), dtype=np.uint8) * 255).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def percents(points: list[tuple[float, float]]) -> list[list[float]]:
    return [[100 * x / 32, 100 * y / 24] for x, y in points]


BOX = {
    "x": 1000 / 32,
    "y": 600 / 24,
    "width": 1000 / 32,
    "height": 800 / 24,
    "rotation": 0,
    "rectanglelabels": ["dent"],
}
TEXT = ";".join(f"{x},{y}" for x, y in CORNERS)
COUNTS = runs_of(DENT, "F")
# name → the file, its content for an image called dent/1.png; all mean the same pixels
FORMATS: dict[str, tuple[str, str]] = {
    "coco, polygon": ("a.json", coco("dent/1.png", {"segmentation": [FLAT]})),
    "coco, two polygons": (
        "a.json",
        coco("1.png", {"segmentation": [[10, 6, 15, 6, 15, 14, 10, 14], [15, 6, 20, 6, 20, 14, 15, 14]]}),
    ),
    "coco, runs": ("a.json", coco("1.png", {"segmentation": {"counts": COUNTS, "size": [24, 32]}, "iscrowd": 1})),
    "coco, compressed": ("a.json", coco("1.png", {"segmentation": {"counts": compressed(COUNTS), "size": [24, 32]}})),
    "coco, box alone": ("a.json", coco("C:\\data\\dent\\1.png", {"segmentation": []})),
    "labelme, polygon": ("dent/1.json", labelme("1.png")),
    "labelme, rectangle": (
        "json/1.json",
        labelme("..\\dent\\1.png", shape_type="rectangle", points=[(20, 14), (10, 6)]),
    ),
    "labelme, mask": ("dent/1.json", labelme("1.png", shape_type="mask", points=[(10, 6), (19, 13)], mask=stamped())),
    "label studio, polygon": (
        "a.json",
        studio(
            "/data/local-files/?d=dent/1.png", "polygonlabels", {"points": percents(CORNERS), "polygonlabels": ["dent"]}
        ),
    ),
    "label studio, box": ("a.json", studio("/data/upload/3/0a1b2c3d-1.png", "rectanglelabels", BOX)),
    "label studio, brush": (
        "a.json",
        studio(
            "s3://bucket/dent/1.png",
            "brushlabels",
            {"format": "rle", "rle": list(painted(DENT)), "brushlabels": ["dent"]},
        ),
    ),
    "cvat, polygon": ("annotations.xml", cvat("dent/1.png", f'<polygon label="dent" points="{TEXT}"/>')),
    "cvat, box": ("a.xml", cvat("1.png", '<box label="dent" xtl="10.0" ytl="6.0" xbr="20.0" ybr="14.0"/>')),
    "cvat, mask": ("a.xml", cvat("1.png", '<mask label="dent" rle="0, 80" left="10" top="6" width="10" height="8"/>')),
    "datumaro, polygon": ("a.json", datumaro("dent/1.png", type="polygon", points=FLAT)),
    "datumaro, box": ("a.json", datumaro("1.png", type="bbox", bbox=[10, 6, 10, 8])),
    "datumaro, mask": ("a.json", datumaro("1.png", type="mask", rle={"counts": compressed(COUNTS), "size": [24, 32]})),
    "yolo, segments": (
        "labels/dent/1.txt",
        "0 " + " ".join(f"{x / 32} {y / 24}" for x, y in CORNERS) + "\n",
    ),
    "yolo, box": ("labels/1.txt", f"0 {15 / 32} {10 / 24} {10 / 32} {8 / 24}\n"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("good/0.png", "good/2.png", "dent/1.png"):
        images.write(tmp_path / "parts" / name, rng.random((*SIZE, 3), dtype=np.float32))
    return tmp_path / "parts"


def put(root: Path, name: str, text: str) -> None:
    file = root / "notes" / name if not name.startswith("dent/") else root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


def defect(root: Path, where: str = "notes", source: str = "folder") -> Found:
    found = sources.scan(source, root, data=Data(annotations=where))
    (one,) = (f for f in found if f.label == "defect")
    return one


def mask_of(found: Found) -> np.ndarray:
    assert found.drawing
    return found.drawing.mask(found.path, *SIZE)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_mask(name: str, root: Path) -> None:
    file, text = FORMATS[name]
    file = file.replace("json/1.json", "1.json")
    put(root, file, text)
    found = defect(root, "." if file.startswith("dent/") else "notes")
    assert found.path == root / "dent" / "1.png"
    np.testing.assert_array_equal(mask_of(found), DENT)


def test_round_shapes(root: Path) -> None:
    x, y = np.arange(32)[None] + 0.5, np.arange(24)[:, None] + 0.5
    circle = np.hypot(x - 15, y - 10) < 4
    wide = ((x - 15) / 6) ** 2 + ((y - 10) / 3) ** 2 < 1
    texts = {
        "c.json": (labelme("1.png", shape_type="circle", points=[(15, 10), (15, 14)]), circle),
        "d.json": (datumaro("1.png", type="ellipse", points=[9, 7, 21, 13]), wide),
        "v.xml": (cvat("1.png", '<ellipse label="dent" cx="15" cy="10" rx="6" ry="3"/>'), wide),
        "s.json": (
            studio(
                "1.png", "ellipselabels", {"x": 1500 / 32, "y": 1000 / 24, "radiusX": 600 / 32, "radiusY": 300 / 24}
            ),
            wide,
        ),
    }
    for name, (text, expected) in texts.items():
        put(root, name, text)
        np.testing.assert_array_equal(mask_of(defect(root, f"notes/{name}")), expected, err_msg=name)


def test_the_annotations_alone_may_say_what_is_a_defect(root: Path) -> None:
    put(root, "a.json", FORMATS["coco, polygon"][1])
    found = sources.scan("annotated", root, data=Data(annotations="notes"))
    assert {f.sample_id: (f.label, f.kind) for f in found} == {
        "parts/dent/1": ("defect", "dent"),
        "parts/good/0": ("normal", "good"),
        "parts/good/2": ("normal", "good"),
    }
    np.testing.assert_array_equal(mask_of(next(f for f in found if f.label == "defect")), DENT)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", datumaro("dent/1.png", type="label")),
        ("a.xml", cvat("dent/1.png", '<tag label="dent"/>')),
        (
            "a.json",
            json.dumps(
                [
                    {
                        "id": 1,
                        "data": {"image": "dent/1.png"},
                        "annotations": [{"result": [{"type": "choices", "value": {"choices": ["dent"]}}]}],
                    }
                ]
            ),
        ),
    ],
)
def test_labels_of_whole_images_make_defects_without_masks(name: str, text: str, root: Path) -> None:
    put(root, name, text)
    found = defect(root, "notes", "annotated")
    assert (found.kind, found.mask_path, found.drawing) == ("dent", None, None)
    put(root, name, text.replace('"dent"', '"OK"'))
    assert {f.label for f in sources.scan("annotated", root, data=Data(annotations="notes"))} == {"normal"}


def test_a_hostile_xml_file_is_refused(root: Path) -> None:
    put(root, "a.xml", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotations>&b;</annotations>')
    with pytest.raises(DataError, match=r"notes/a\.xml: expected annotations of a known format"):
        defect(root)


WRONG: list[tuple[str, str, str]] = [
    (
        "a.json",
        coco("other.png", {"segmentation": [FLAT]}),
        r"expected the image of every annotation(?s:.*)other\.png \(of notes/a\.json\)",
    ),
    ("a.json", coco("cut/1.png", {"segmentation": [FLAT]}), r"(?s)cut/1\.png"),
    (
        "a.json",
        coco("good/0.png", {"segmentation": [FLAT]}),
        r"notes/a\.json: expected shapes on defects alone, found dent on good/0\.png",
    ),
    (
        "a.json",
        coco("1.png", {"segmentation": [FLAT], "image_id": 9}),
        r"a\.json: expected the image of every annotation, found none with id 9",
    ),
    ("a.json", coco("1.png", {"segmentation": [FLAT[:-1]]}), "as many x as y, found 7"),
    ("a.json", "{", r"notes/a\.json: expected annotations of a known format, found Expecting"),
    ("a.json", '{"images": [{}], "annotations": []}', r"a\.json: expected whole annotations, found none of 'id'"),
    ("a.json", labelme("../dent/1.png", shape_type="line"), r"found a shape 'line', which has no area"),
    ("a.json", datumaro("1.png", type="polyline", points=FLAT), "found a shape 'polyline'"),
    ("a.xml", cvat("1.png", '<points label="dent" points="1,2"/>'), "found a shape 'points'"),
    ("a.xml", "<annotations><track/></annotations>", "found CVAT for video; export the task as CVAT for images"),
    ("a.json", studio("1.png", "keypointlabels", {"x": 1, "y": 2, "width": 1}), "found a shape 'keypointlabels'"),
    (
        "a.json",
        studio("1.png", "polygonlabels", {"points": []}).replace('"was_cancelled": true', '"was_cancelled": false'),
        "expected one annotation of task 5, found 2",
    ),
    ("readme.txt", "what these are", "expected annotations of COCO"),
]


@pytest.mark.parametrize(("name", "text", "said"), WRONG)
def test_what_is_wrong_is_named(name: str, text: str, said: str, root: Path) -> None:
    put(root, name, text)
    with pytest.raises(DataError, match=said):
        defect(root)


@pytest.mark.parametrize(
    ("where", "said"), [("../notes", "inside of the dataset"), ("none.json", "a file .json, xml, txt.")]
)
def test_a_place_that_cannot_be_is_refused(where: str, said: str, root: Path) -> None:
    with pytest.raises(DataError, match=said):
        defect(root, where)


def test_an_annotation_that_could_be_of_two_images_names_both(root: Path) -> None:
    images.write(root / "cut" / "1.png", np.zeros(SIZE))
    put(root, "a.json", coco("1.png", {"segmentation": [FLAT]}))
    with pytest.raises(DataError, match=r"a\.json: expected one image for 1\.png, found cut/1\.png, dent/1\.png"):
        defect(root)


def test_two_annotations_of_one_image_and_a_mask_file_as_well(root: Path) -> None:
    for name in ("a.json", "b.json"):
        put(root, name, coco("1.png", {"segmentation": [FLAT]}))
    with pytest.raises(
        DataError, match=r"dent/1\.png: expected one annotation, found those of notes/a\.json and notes/b\.json"
    ):
        defect(root)
    images.write(root / "masks" / "dent" / "1.png", DENT)
    with pytest.raises(DataError, match=r"1\.png: expected one mask, found 1\.png and notes/a\.json"):
        defect(root, "notes/a.json")


def test_another_size_names_both_files(root: Path) -> None:
    put(root, "a.json", coco("1.png", {"segmentation": [FLAT]}).replace('"height": 24', '"height": 20'))
    with pytest.raises(
        DataError, match=r"notes/a\.json, .*dent/1\.png: expected marks on 32 x 24 pixels, found 32 x 20"
    ):
        mask_of(defect(root))


def test_a_defect_without_annotation_is_missed(root: Path) -> None:
    images.write(root / "dent" / "3.png", np.zeros(SIZE))
    put(root, "a.json", coco("1.png", {"segmentation": [FLAT]}))
    with pytest.raises(DataError, match=r"1 defective images have no mask(?s:.*)dent/3\.png"):
        defect(root)


def test_other_images_of_the_file_do_no_harm(root: Path, touched: Callable[[str], None]) -> None:
    """Those of a class that is not wanted, and those without shapes."""
    text = json.loads(coco("1.png", {"segmentation": [FLAT]}))
    text["images"] += [{"id": 8, "file_name": "gone.png"}, {"id": 9, "file_name": "later/5.png"}]
    text["annotations"].append({"image_id": 9, "bbox": [1, 1, 2, 2]})
    touched("arrived/later/5.png")
    put(root, "a.json", json.dumps(text))
    np.testing.assert_array_equal(mask_of(defect(root)), DENT)


@pytest.fixture
def touched(root: Path) -> Callable[[str], None]:
    def touch(name: str) -> None:
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()

    return touch


@pytest.mark.parametrize("source", ["folder", "annotated"])
def test_annotations_that_are_not_there_are_named(source: str, root: Path) -> None:
    with pytest.raises(DataError, match=r"export\.json: expected a file \(json, xml, txt\) or a folder of annotations"):
        sources.scan(source, root, data=Data(annotations="export.json"))
