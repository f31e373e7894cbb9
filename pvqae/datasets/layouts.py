"""Folder layouts that datasets come in: from a category's folder to what each of its images is. Nothing is decoded.

Files of other kinds (Thumbs.db, .DS_Store, readme.txt) are skipped. In every layout but MTSD's the user may set
labelled images aside for the gate: CATEGORY/gate/KIND/* (KIND good, or ok in BTAD, for normals), their masks in
CATEGORY/gate_masks/KIND/*.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pvqae.datasets import images


@dataclass(frozen=True)
class Found:
    """One image of a source, before it is decoded."""

    path: Path  # below the source's root
    sample_id: str  # category/<folder>/<stem>: stable, unique
    category: str
    label: str  # normal | defect
    kind: str  # "good" for normals
    mask_path: Path | None
    group_id: str  # one physical part; the image itself where the source does not say
    official: str | None  # train | test, where the source has a split of its own; gate, where the user set it aside
    flaw: str = ""  # why the image has to be left out although it can be read


MASKS = ("masks", "ground_truth")
GATE, GATE_MASKS = "gate", "gate_masks"


def folders(folder: Path) -> list[Path]:
    """Folders directly in a folder, sorted, hidden ones left out; none if it is not there."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) if folder.is_dir() else []


def pictures(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted; none if it is not there."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in files if p.suffix.lower() in images.SUFFIXES and not p.name.startswith("."))


def normal(category: str, folder: Path, path: Path, official: str | None = None) -> Found:
    """A good part's image in its category's `folder`, a group of its own."""
    sample_id = f"{category}/{path.relative_to(folder).with_suffix('').as_posix()}"
    return Found(path, sample_id, category, "normal", "good", None, sample_id, official)


def defect(category: str, folder: Path, path: Path, kind: str, mask: Path | None, official: str | None = None) -> Found:
    """A defective part's image in its category's `folder`, a group of its own."""
    sample_id = normal(category, folder, path).sample_id
    return Found(path, sample_id, category, "defect", kind, mask, sample_id, official)


def _masks(*places: Path) -> dict[str, Path]:
    """Mask files by the stem of their image: 000.png or 000_mask.png."""
    return {p.stem.removesuffix("_mask"): p for place in places for p in pictures(place)}


def _kinds(
    category: str, folder: Path, place: Path, masks: tuple[str, ...], good: str, official: str | None
) -> Iterator[Found]:
    """Images of the folders of `place`, each named after its kind; `masks` name folders of the category."""
    for kind in folders(place):
        found = _masks(*(folder / name / kind.name for name in masks))
        for path in pictures(kind):
            if kind.name == good:
                yield normal(category, folder, path, official)
            else:
                yield defect(category, folder, path, kind.name, found.get(path.stem), official)


def _gate(category: str, folder: Path, good: str) -> list[Found]:
    return list(_kinds(category, folder, folder / GATE, (GATE_MASKS,), good, "gate"))


def split_parts(root: Path, good: str = "good") -> dict[str, Path]:
    """Categories of a layout with an official split; `root` may be the folder of a single one."""
    places = [root] if (root / "train").is_dir() else folders(root)
    return {p.name: p for p in places if pictures(p / "train" / good)}


def split(category: str, folder: Path, good: str = "good") -> list[Found]:
    """train/good, test/KIND, ground_truth/KIND: MVTec AD's layout, BTAD's with `good` = ok."""
    train = [normal(category, folder, p, "train") for p in pictures(folder / "train" / good)]
    return [
        *train,
        *_kinds(category, folder, folder / "test", ("ground_truth",), good, "test"),
        *_gate(category, folder, good),
    ]


def folder_parts(root: Path) -> dict[str, Path]:
    """Categories of the folder layout: `root` itself if it holds images or good/, else its folders with a good/."""
    if pictures(root) or pictures(root / "good"):
        return {root.name: root}
    return {p.name: p for p in folders(root) if pictures(p / "good")}


def kinds(category: str, folder: Path) -> list[Found]:
    """good/ and any defect folders, masks optional in masks/KIND or ground_truth/KIND; or good images only."""
    good = [normal(category, folder, p) for p in pictures(folder)]
    labelled = _kinds(category, folder, folder, MASKS, "good", None)
    aside = {*MASKS, GATE, GATE_MASKS}
    return [*good, *(f for f in labelled if f.path.parent.name not in aside), *_gate(category, folder, "good")]
