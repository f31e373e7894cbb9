"""Folder layouts that datasets come in: from a category's folder to what each of its images is. Nothing is decoded.

Folders below good/ and below a kind (a day, a lot, a camera) belong to it, unless their name says something else. In
the layouts of folders and of MVTec AD the user may set labelled images aside for the gate: CATEGORY/gate/KIND/* (KIND
good for normals), their masks in CATEGORY/gate_masks/KIND/*. What no layout takes is listed by
`pvqae.datasets.leftover`.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pvqae.core.errors import DataError
from pvqae.core.layout import ARRIVED
from pvqae.datasets import masks
from pvqae.datasets.masks import Parts
from pvqae.samples import images

if TYPE_CHECKING:  # what draws masks changes no training
    from pvqae.datasets.drawing import Drawing


@dataclass(frozen=True)
class Found:
    """One image of a source, before it is decoded."""

    path: Path  # below the source's root
    sample_id: str  # category/<folder>/<stem>: stable, unique
    category: str
    label: str  # normal | defect
    kind: str  # "good" for normals
    mask_path: Path | None
    group_id: str  # one physical part; the image itself where neither the source nor the name says
    official: str | None  # train | test, where the source has a split of its own; gate, where the user set it aside
    flaw: str = ""  # why the image has to be left out although it can be read
    unneeded: tuple[Path, ...] = ()  # the masks of a good part
    drawing: "Drawing | None" = None  # what the mask is drawn from where it is no single file


GATE, GATE_MASKS = "gate", "gate_masks"
_TRAIN = ("train", "validation", "val")  # folders of a split's normals that are not for the test
SEPARATOR = "__"  # PART__VIEW.png
_GOOD = frozenset({"good", "goods", "ok", "okay", "normal", "normals", "gut", "pass", "passed"})
# Words in the name of a folder below good/ or below a kind, by which its images are something else.
_DERIVED = (
    "thumb|thumbs|thumbnail|thumbnails|preview|previews|overlay|overlays|heatmap|heatmaps|xyz|depth|trash|deleted|unused|"
    "excluded|ignore|ignored|doubtful|unsure|unclear|review"
)
_BAD = (
    "bad|ng|nok|ko|nio|defect|defects|defective|anomaly|anomalies|anomalous|abnormal|fault|faults|faulty|reject|rejects|"
    "rejected|scrap|fail|failed|broken"
)
_NOT_GOOD, _NOT_OF_KIND = (
    re.compile(rf"(?<![^\W\d_])(?:{words})(?![^\W\d_])") for words in (f"{_DERIVED}|{_BAD}", _DERIVED)
)


def files(folder: Path) -> Iterator[Parts]:
    """Yield every file below a folder, as the parts of its path, in the order of names. Links to folders are followed;
    one that leads back to where it came from counts as a file. Raises `DataError` for a folder that can't be listed.
    """
    yield from _files(str(folder), (), os.path.realpath(folder), ())


def _files(place: str, above: Parts, real: str, followed: Parts) -> Iterator[Parts]:
    try:
        with os.scandir(place) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{place}: expected a folder that can be listed, found {error.strerror}; repair it") from None
    for entry in entries:
        parts = (*above, entry.name)
        linked = entry.is_symlink() and Path(entry.path).is_dir()  # the entry's own is_dir raises for links in a circle
        target = os.path.realpath(entry.path) if linked else ""
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, parts, f"{real}/{entry.name}", followed)
        elif not linked or target in followed or f"{real}/".startswith(f"{target.rstrip('/')}/"):
            yield parts
        else:
            yield from _files(entry.path, parts, target, (*followed, target))


def is_image(name: str) -> bool:
    """Return whether a file's name ends as an image's does."""
    return name[name.rfind(".") :].lower() in images.SUFFIXES


def _is_picture(parts: Parts) -> bool:
    """Return whether a file has an image's name and neither it nor a folder above is hidden."""
    return is_image(parts[-1]) and not any(part[0] == "." for part in parts)


def folders(folder: Path) -> list[Path]:
    """Return folders directly in a folder, sorted, hidden ones left out; none if it is not there."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) if folder.is_dir() else []


def pictures(folder: Path) -> list[Path]:
    """Return image files directly in a folder, sorted; none if it is not there."""
    return sorted(p for p in folder.iterdir() if _is_picture((p.name,))) if folder.is_dir() else []


def part_of(name: str) -> str:
    """Return the part that a file PART__VIEW.png shows; "" for other names."""
    part, separator, _ = name.partition(SEPARATOR)
    return part if separator else ""


def normal(category: str, folder: Path, path: Path, official: str | None = None) -> Found:
    """Return a good part's image in its category's `folder`, a group of its own unless its name says which part it
    shows.
    """
    sample_id = f"{category}/{path.relative_to(folder).with_suffix('').as_posix()}"
    part = part_of(path.name)
    return Found(
        path, sample_id, category, "normal", "good", None, f"{category}/{part}" if part else sample_id, official
    )


def defect(category: str, folder: Path, path: Path, kind: str, mask: Path | None, official: str | None = None) -> Found:
    """Return a defective part's image in its category's `folder`, grouped as a good one's."""
    return replace(normal(category, folder, path, official), label="defect", kind=kind, mask_path=mask)


def is_good(word: str) -> bool:
    """Return whether a folder or a label of that name means good parts."""
    return word.casefold() in _GOOD


def is_bad(word: str) -> bool:
    """Return whether a label of that name means defects of any kind."""
    return word.casefold() in _BAD.split("|")


def _odd(folder: str, good: bool) -> bool:
    """Return whether a folder below good/, or below a kind, says by its name that its images are something else."""
    return bool((_NOT_GOOD if good else _NOT_OF_KIND).search(folder.casefold())) or (is_good(folder) and not good)


def untrained(found: Found) -> Found:
    """Return `found`, with a flaw where it is a defect of the source's own train split: nothing is trained on one, and
    to test with it would change the official test.
    """
    if found.label == "normal" or found.official != "train":
        return found
    return replace(found, flaw="a defect of the official train split: nothing is trained on defects")


def has_good(folder: Path) -> bool:
    """Return whether a folder of good parts is in a folder, with an image in it."""
    return any(is_good(p.name) and any(map(_is_picture, files(p))) for p in folders(folder))


def _good_folder(folder: Path, kinds: Iterable[str]) -> str:
    """Return the one of `kinds` that means good parts, "" for none. Raises `DataError` for several."""
    names = sorted(filter(is_good, kinds))
    if len(names) > 1:
        raise DataError(
            f"{folder}: expected one folder of good parts, found {', '.join(names)}; move their images into one of them"
        )
    return names[0] if names else ""


def _labelled(category: str, folder: Path, own: Iterable[tuple[Parts, Parts]], official: str | None) -> list[Found]:
    """Return images in folders named after their kinds, with their masks. `own`: the parts of a file from the kind on,
    and from `folder` on.

    Where no folder means good parts, images in none are good. Raises `DataError` where several do.
    """
    shown, marks = masks.divide(own)
    good = _good_folder(folder, {kind for (kind, *rest), _ in shown if rest})
    found: list[tuple[Parts, Found]] = []
    for name, whole in shown:
        kind, between, path = name[0], name[1:-1], folder.joinpath(*whole)
        if (not good) if len(name) == 1 else kind == good and not any(_odd(part, True) for part in between):
            found.append((name, normal(category, folder, path, official)))
        elif len(name) > 1 and kind != good and not any(_odd(part, False) for part in between):
            found.append((name, defect(category, folder, path, kind, None, official)))
    return _with_masks(folder, found, marks)


def _with_masks(folder: Path, found: list[tuple[Parts, Found]], marks: list[tuple[Parts, Parts]]) -> list[Found]:
    result = [f for _, f in found]
    defects = [i for i, f in enumerate(result) if f.label == "defect"]
    normals = [i for i, f in enumerate(result) if f.label == "normal"]
    names, kinds = [name for name, _ in marks], {name[0] for name, _ in found if len(name) > 1}
    chosen, rest = masks.match([found[i][0] for i in defects], names, kinds)
    for image, mask in chosen.items():
        result[defects[image]] = replace(result[defects[image]], mask_path=folder.joinpath(*marks[mask][1]))
    chosen, _ = masks.match([found[i][0] for i in normals], [names[i] for i in rest], kinds)
    for image, mask in chosen.items():
        unneeded = folder.joinpath(*marks[rest[mask]][1])
        result[normals[image]] = replace(result[normals[image]], unneeded=(unneeded,))
    return result


def _one_by_one(found: list[Found]) -> list[Found]:
    """Make each image its own group where all names begin alike (Image__2026-01-31__1.png of a camera): that names no
    part.
    """
    alone = len({f.group_id for f in found}) == 1
    return [replace(f, group_id=f.sample_id) for f in found] if alone else found


def _gate(category: str, folder: Path, every: list[Parts]) -> list[Found]:
    own = [((masks.FOLDER, *parts[1:]), parts) for parts in every if parts[0] == GATE_MASKS]
    own += [(parts[1:], parts) for parts in every if parts[0] == GATE and len(parts) > 2]
    return _labelled(category, folder, own, "gate")


def split(category: str, folder: Path, test: str = "test") -> list[Found]:
    """Scan train/good, test/KIND, ground_truth/KIND: MVTec AD's layout, BTAD's with good called ok. `test`: the name of
    the folder with the test images.
    """
    every = [parts for parts in files(folder) if _is_picture(parts)]
    found = _gate(category, folder, every)
    for head in _TRAIN:
        own = [(parts[1:], parts) for parts in every if parts[0] == head and len(parts) > 2]
        found += [f for f in _labelled(category, folder, own, "train") if f.label == "normal"]
    tested = [(parts[1:], parts) for parts in every if parts[0] == test and len(parts) > 2]
    truth = [(parts, parts) for parts in every if len(parts) > 1 and masks.is_folder(parts[0])]
    return _one_by_one(found + _labelled(category, folder, tested + truth, "test"))


def kinds(category: str, folder: Path) -> list[Found]:
    """Scan good/ and any defect folders, masks optional in masks/KIND or ground_truth/KIND; or good images only."""
    every = [parts for parts in files(folder) if _is_picture(parts)]
    own = [(parts, parts) for parts in every if parts[0] not in (GATE, GATE_MASKS, ARRIVED) or len(parts) == 1]
    return _one_by_one([*_labelled(category, folder, own, None), *_gate(category, folder, every)])
