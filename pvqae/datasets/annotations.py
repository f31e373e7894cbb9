"""Masks from annotation files: which image each annotation is of, checked both ways.

An annotation whose image is not there, or that could be of several, is an error, and so is one of a good part: a wrong
mask would spoil the figures without a word.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pvqae.core.errors import DataError
from pvqae.datasets import annotation_formats, layouts
from pvqae.datasets.annotation_formats import Noted
from pvqae.datasets.layouts import Found

_NAMED = 10  # images that an error lists


def _read(root: Path, where: str) -> list[Noted]:
    path = PurePosixPath(where)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"data.annotations: expected a path inside of the dataset, found {where}; copy it to there")
    place = root / path
    if place.is_dir():
        names = [path.joinpath(*parts) for parts in layouts.files(place) if not any(p.startswith(".") for p in parts)]
        found = [
            annotation_formats.read(root, name) for name in names if name.suffix.lower() in annotation_formats.ENDS
        ]
        known = [one for own in found if own is not None for one in own]
    else:
        if not place.is_file() or path.suffix.lower() not in annotation_formats.ENDS:
            raise DataError(
                f"{place}: expected a file (json, xml, txt) or a folder of annotations; see data.annotations"
            )
        known = annotation_formats.read(root, path) or []
    if not known:
        raise DataError(
            f"{place}: expected annotations of COCO, LabelMe, Label Studio, CVAT, Datumaro or YOLO, found none; see "
            "data.annotations in params.yaml"
        )
    return known


def _key(name: str) -> str:
    """Return the last part of a path without an image's ending."""
    path = PurePosixPath(name)
    return path.stem if layouts.is_image(path.name) else path.name


def _parts(path: PurePosixPath) -> tuple[str, ...]:
    return (*path.parts[:-1], _key(path.name))


def _same(noted: PurePosixPath, image: PurePosixPath) -> bool:
    """Return whether one path ends with the other, the endings apart where the annotation has none."""
    if layouts.is_image(noted.name) and noted.name != image.name:
        return False
    shorter, longer = sorted((_parts(noted), _parts(image)), key=len)
    return longer[len(longer) - len(shorter) :] == shorter


def _paths(one: Noted) -> list[PurePosixPath]:
    """Return the image's path as it may be told, the first that fits counts: next to the file of the annotation, or
    anywhere; of YOLO what is below the last folder labels, to which images corresponds.
    """
    path, origin = PurePosixPath(one.name), one.drawing.origin
    if origin.suffix.lower() == ".txt":
        last = max((i for i, part in enumerate(path.parts) if part.casefold() == "labels"), default=-1)
        path = PurePosixPath(*path.parts[last + 1 :])
    return [path, PurePosixPath(path.name)] if path.parent == PurePosixPath(origin.parent) else [path]


def _match(noted: Sequence[Noted], names: Sequence[PurePosixPath], root: Path) -> dict[int, Noted]:
    """Map images, by their place in `names`, to what is noted of them. Raises `DataError` as `apply`."""
    by_key: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        by_key[_key(name.name)].append(number)
    chosen: dict[int, Noted] = {}
    alone: list[Noted] = []
    for one in noted:
        ways = ([number for number in by_key[_key(way.name)] if _same(way, names[number])] for way in _paths(one))
        fitting = next(filter(None, ways), [])
        if len(fitting) > 1:
            told = ", ".join(str(names[number]) for number in fitting[:_NAMED])
            raise DataError(
                f"{root / one.drawing.origin}: expected one image for {one.name}, found {told}; give its path there"
            )
        if not fitting:
            alone += [one] * bool(one.labels)
        elif fitting[0] in chosen:
            raise DataError(
                f"{names[fitting[0]]}: expected one annotation, found those of {chosen[fitting[0]].drawing.origin} and "
                f"{one.drawing.origin}; remove one"
            )
        else:
            chosen[fitting[0]] = one
    if alone:
        _check_images(alone, root)
    return chosen


def _check_images(alone: Sequence[Noted], root: Path) -> None:
    """Raise `DataError` for annotated images that are not there; one that is, but not looked at, is no error here."""
    there: dict[str, list[PurePosixPath]] = defaultdict(list)
    for parts in layouts.files(root):
        there[_key(parts[-1])].append(PurePosixPath(*parts))
    missing = [
        f"{one.name} (of {one.drawing.origin})"
        for one in alone
        if not any(_same(way, path) for way in _paths(one) for path in there[_key(way.name)])
    ]
    if missing:
        told = "\n  ".join([*missing[:_NAMED], *(["..."] * (len(missing) > _NAMED))])
        raise DataError(
            f"{root}: expected the image of every annotation, found none for\n  {told}\n"
            "  repair: add these images, or give them the path that the annotation names"
        )


def apply(found: Sequence[Found], root: Path, where: str, labels: bool = False) -> list[Found]:
    """Return `found` with the drawings that the annotations in `where`, a file or folder below `root`, have of them;
    with `labels` they also say what is a defect: an image with a shape, of the kind of its labels.

    Raises `DataError`, naming file and image, for annotations of no known format, of an image that is not there or
    that could be several, of one that has two or a mask file as well, and of a good part.
    """
    names = [PurePosixPath(f.path.relative_to(root).as_posix()) for f in found]
    result = list(found)
    for number, one in _match(_read(root, where), names, root).items():
        image, origin = found[number], one.drawing.origin
        if labels and one.labels:
            image = replace(image, label="defect", kind=", ".join(one.labels))
        if one.drawing.shapes and image.mask_path:
            raise DataError(f"{image.path}: expected one mask, found {image.mask_path.name} and {origin}; remove one")
        if one.drawing.shapes and image.label == "normal":
            raise DataError(
                f"{root / origin}: expected shapes on defects alone, found {', '.join(one.labels)} on {names[number]}, "
                "a good part; move the image to a defect's folder, or remove the shapes"
            )
        result[number] = replace(image, drawing=one.drawing) if one.drawing.shapes else image
    return result
