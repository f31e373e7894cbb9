"""What annotation files say: readers of COCO, LabelMe, Label Studio, CVAT, Datumaro and YOLO, known by their content.

A shape without an area (a line, a point) is an error: half a truth would count defects as false alarms. Boxes are
filled. Nothing is rasterised here.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pvqae.core.errors import DataError
from pvqae.datasets import drawing, layouts
from pvqae.datasets.drawing import Brush, Drawing, Ellipse, Polygon, Runs, Shape, Stamp

ENDS = frozenset({".json", ".xml", ".txt"})
_Values = Mapping[str, Any]
_Labelled = tuple[str, Shape]  # the label of a shape, and the shape


@dataclass(frozen=True)
class Noted:
    """What a file says of one image: its path, as far as the file knows it, its shapes, and the labels of defects."""

    name: str
    drawing: Drawing
    labels: tuple[str, ...]


def _noted(
    name: str, origin: Path, found: Iterable[_Labelled], size: tuple[Any, Any] = (None, None), tags: Iterable[str] = ()
) -> Noted:
    """Return what is noted of an image; `tags`: labels of the image as a whole, of which those of good parts don't
    count.
    """
    shapes = tuple(found)
    stated = (int(size[0]), int(size[1])) if all(size) else None
    labels = {label for label, _ in shapes} | {tag for tag in tags if not layouts.is_good(tag)}
    drawn = Drawing(origin, tuple(shape for _, shape in shapes), stated)
    return Noted(name.replace("\\", "/"), drawn, tuple(sorted(labels)))


def _pairs(values: Sequence[Any]) -> tuple[drawing.Point, ...]:
    """Return points of x, y, x, y, ..."""
    if len(values) % 2:
        raise ValueError(f"expected as many x as y, found {len(values)} coordinates")
    numbers = [float(value) for value in values]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _box(values: Sequence[Any]) -> Shape:
    x, y, width, height = map(float, values)
    return drawing.box(x, y, width, height)


def _no_area(kind: object) -> ValueError:
    return ValueError(f"expected polygons, boxes, ellipses or masks, found a shape {kind!r}, which has no area")


def _coco(found: Any, origin: Path) -> Iterator[Noted]:
    names = {one["id"]: str(one.get("name", one["id"])) for one in found.get("categories", ())}
    of_image: dict[Any, list[_Labelled]] = {one["id"]: [] for one in found["images"]}
    for one in found["annotations"]:
        if one["image_id"] not in of_image:
            raise ValueError(f"expected the image of every annotation, found none with id {one['image_id']!r}")
        label = names.get(one.get("category_id"), "defect")
        of_image[one["image_id"]] += [(label, shape) for shape in _coco_shapes(one)]
    for one in found["images"]:
        yield _noted(one["file_name"], origin, of_image[one["id"]], (one.get("height"), one.get("width")))


def _coco_shapes(one: _Values) -> list[Shape]:
    outline = one.get("segmentation")
    if isinstance(outline, dict):
        return [_runs(outline)]
    if outline:
        return [Polygon(_pairs(points)) for points in outline]
    return [_box(one["bbox"])]


def _runs(found: _Values) -> Runs:
    counts, (height, width) = found["counts"], found["size"]
    runs = drawing.coco_counts(counts) if isinstance(counts, str) else tuple(map(int, counts))
    return Runs(runs, (int(height), int(width)))


def _labelme(found: Any, origin: Path) -> Iterator[Noted]:
    shapes = [(str(one["label"]), _labelme_shape(one)) for one in found["shapes"]]
    yield _noted(_beside(origin, found["imagePath"]), origin, shapes, (found["imageHeight"], found["imageWidth"]))


def _beside(origin: Path, name: str) -> str:
    """Return the path of an image that is given from the folder of `origin`, without `..`."""
    parts: list[str] = []
    for part in (*origin.parent.parts, *PurePosixPath(name.replace("\\", "/")).parts):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("..", "."):
            parts.append(part)
    return "/".join(parts)


def _labelme_shape(one: _Values) -> Shape:
    kind = one.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in one["points"]]
    if kind == "polygon":
        return Polygon(tuple(points))
    if kind not in ("rectangle", "circle", "mask"):
        raise _no_area(kind)
    (x, y), (to_x, to_y) = points
    if kind == "rectangle":
        return drawing.box(x, y, to_x - x, to_y - y)
    if kind == "circle":
        radius = math.hypot(to_x - x, to_y - y)
        return Ellipse(x, y, radius, radius)
    return Stamp(base64.b64decode(one["mask"], validate=True), round(y), round(x))


def _studio(found: Any, origin: Path) -> Iterator[Noted]:
    for task in found:
        kept = [one for one in task["annotations"] if not one.get("was_cancelled")]
        if len(kept) > 1:
            raise ValueError(
                f"expected one annotation of task {task.get('id')}, found {len(kept)}; export the one that counts"
            )
        results = [one for one in (kept[0]["result"] if kept else ()) if "value" in one]  # else a relation of two
        shapes = [shape for one in results for shape in _studio_shape(one)]
        sizes = {(one["original_height"], one["original_width"]) for one in results if one.get("original_width")}
        if len(sizes) > 1:
            raise ValueError(f"expected one image in task {task.get('id')}, found several sizes; export one by one")
        tags = [str(tag) for one in results for tag in one["value"].get("choices", ())]
        yield _noted(_studio_name(task["data"]), origin, shapes, next(iter(sizes), (None, None)), tags)


def _studio_name(data: _Values) -> str:
    """Return the image's path from an address: of local files, of an upload (with 8 digits before it), of a store."""
    texts = [value for value in data.values() if isinstance(value, str)]
    named = [text for text in texts if layouts.is_image(urlsplit(text).path) or "?d=" in text]
    if len(named) != 1:
        raise ValueError(f"expected one image in a task's data, found {', '.join(named) or 'none'}")
    address = urlsplit(named[0])
    path = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    if "/upload/" in path:
        return re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(path).name)
    return path.lstrip("/")


def _studio_shape(one: _Values) -> list[_Labelled]:
    kind, value = str(one["type"]).removesuffix("labels"), one["value"]
    if kind not in _STUDIO:
        if {"x", "points", "vertices"} & set(value):
            raise _no_area(one["type"])
        return []  # a choice, a rating, a text
    if one.get("image_rotation"):
        raise ValueError("expected images that are not rotated in Label Studio, found one; turn it back")
    width, height = float(one["original_width"]), float(one["original_height"])
    label = str((value.get(f"{kind}labels") or ["defect"])[0])
    return [(label, _STUDIO[kind](value, width / 100, height / 100))]


def _studio_polygon(value: _Values, x: float, y: float) -> Shape:
    return Polygon(tuple((float(right) * x, float(down) * y) for right, down in value["points"]))


def _studio_box(value: _Values, x: float, y: float) -> Shape:
    left, top = float(value["x"]) * x, float(value["y"]) * y
    size = float(value["width"]) * x, float(value["height"]) * y
    return drawing.box(left, top, *size, float(value.get("rotation") or 0), (left, top))


def _studio_ellipse(value: _Values, x: float, y: float) -> Shape:
    half = float(value["radiusX"]) * x, float(value["radiusY"]) * y
    return Ellipse(float(value["x"]) * x, float(value["y"]) * y, *half, float(value.get("rotation") or 0))


def _studio_brush(value: _Values, x: float, y: float) -> Shape:
    if value.get("format") != "rle":
        raise ValueError(f"expected a brush in the format rle, found {value.get('format')!r}")
    return Brush(bytes(value["rle"]), (round(100 * y), round(100 * x)))


_STUDIO: dict[str, Callable[[_Values, float, float], Shape]] = {
    "polygon": _studio_polygon,
    "rectangle": _studio_box,
    "ellipse": _studio_ellipse,
    "brush": _studio_brush,
}


def _datumaro(found: Any, origin: Path) -> Iterator[Noted]:
    labels = [str(one["name"]) for one in found["categories"].get("label", {}).get("labels", ())]
    for item in found["items"]:
        media = item.get("image") or item.get("media") or {}
        shapes = [
            (_named(labels, one.get("label_id")), _datumaro_shape(one))
            for one in item["annotations"]
            if one["type"] not in ("label", "caption")
        ]
        tags = [_named(labels, one.get("label_id")) for one in item["annotations"] if one["type"] == "label"]
        height, width = media.get("size") or (None, None)
        yield _noted(media.get("path") or item["id"], origin, shapes, (height, width), tags)


def _named(labels: Sequence[str], number: Any) -> str:
    return "defect" if number is None else labels[int(number)]


def _datumaro_shape(one: _Values) -> Shape:
    kind = one["type"]
    if kind == "polygon":
        return Polygon(_pairs(one["points"]))
    if kind == "bbox":
        return _box(one["bbox"])
    if kind == "mask":
        return _runs(one["rle"])
    if kind == "ellipse":
        x, y, to_x, to_y = map(float, one["points"])
        return Ellipse((x + to_x) / 2, (y + to_y) / 2, (to_x - x) / 2, (to_y - y) / 2)
    raise _no_area(kind)


def _cvat(root: Any, origin: Path) -> Iterator[Noted]:
    if root.find("track") is not None:
        raise ValueError("expected CVAT for images, found CVAT for video; export the task as CVAT for images 1.1")
    for image in root.findall("image"):
        shapes = [(str(one.get("label")), _cvat_shape(one)) for one in image if one.tag != "tag"]
        tags = [str(one.get("label")) for one in image if one.tag == "tag"]
        yield _noted(image.attrib["name"], origin, shapes, (image.get("height"), image.get("width")), tags)


def _cvat_shape(one: Any) -> Shape:
    def number(name: str) -> float:
        return float(one.attrib[name])

    degrees = float(one.get("rotation", 0))
    if one.tag == "polygon":
        return Polygon(tuple((float(x), float(y)) for x, y in (p.split(",") for p in one.attrib["points"].split(";"))))
    if one.tag == "box":
        x, y = number("xtl"), number("ytl")
        return drawing.box(x, y, number("xbr") - x, number("ybr") - y, degrees)
    if one.tag == "ellipse":
        return Ellipse(number("cx"), number("cy"), number("rx"), number("ry"), degrees)
    if one.tag == "mask":
        runs = tuple(int(count) for count in one.attrib["rle"].split(","))
        left, top, width, height = (int(one.attrib[name]) for name in ("left", "top", "width", "height"))
        return Runs(runs, (height, width), True, top, left)
    raise _no_area(one.tag)


def _yolo(lines: Sequence[Sequence[str]], origin: Path) -> Iterator[Noted]:
    shapes: list[_Labelled] = []
    for number, *values in lines:
        if len(values) == 4:
            x, y, width, height = map(float, values)
            outline = drawing.box(x - width / 2, y - height / 2, width, height).points
        else:
            outline = _pairs(values)
        shapes.append((f"class {int(number)}", Polygon(outline, relative=True)))
    yield _noted(origin.with_suffix("").as_posix(), origin, shapes)


def _yolo_lines(text: str) -> list[list[str]] | None:
    """Return the lines of a YOLO file, none of an empty one; None for other texts."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    numbers = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
    fits = all(len(one) >= 5 and one[0].isdigit() and all(map(numbers.fullmatch, one)) for one in lines)
    return lines if fits else None


def _of_json(text: str, origin: Path) -> Iterator[Noted] | None:
    found = json.loads(text)
    if isinstance(found, list) and found and all(isinstance(one, dict) and "data" in one for one in found):
        return _studio(found, origin)
    keys = set(found) if isinstance(found, dict) else set()
    of_keys = (
        ({"images", "annotations"}, _coco),
        ({"shapes", "imagePath"}, _labelme),
        ({"items", "categories"}, _datumaro),
    )
    return next((read(found, origin) for needed, read in of_keys if needed <= keys), None)


def _of_xml(text: str, origin: Path) -> Iterator[Noted] | None:
    from defusedxml import ElementTree  # entities could grow without end, or name other files

    root = ElementTree.fromstring(text)
    return _cvat(root, origin) if root.tag == "annotations" else None


def _of_text(text: str, origin: Path) -> Iterator[Noted] | None:
    lines = _yolo_lines(text)
    return None if lines is None else _yolo(lines, origin)


_READERS = {".json": _of_json, ".xml": _of_xml, ".txt": _of_text}


def read(root: Path, name: PurePosixPath) -> list[Noted] | None:
    """Return what a file says, None where it is of no known format. Raises `DataError` for one that is damaged."""
    try:
        text = root.joinpath(name).read_text("utf-8-sig")
        found = _READERS[name.suffix.lower()](text, Path(name))
        return None if found is None else list(found)
    except (KeyError, IndexError) as error:
        raise DataError(f"{root / name}: expected whole annotations, found none of {error}; export it again") from None
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError, RecursionError, binascii.Error) as error:
        raise DataError(f"{root / name}: {_said(error)}; export it again") from None


def _said(error: Exception) -> str:
    text = str(error)
    return text if text.startswith("expected") else f"expected annotations of a known format, found {text}"
