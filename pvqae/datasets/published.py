"""Layouts of published datasets, as they come: VisA, MVTec LOCO, MVTec AD 2, KolektorSDD and SDD2, DAGM and Real-IAD.

Defects of an official train split are left out with that reason: nothing is trained on them.
"""

import csv
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pvqae.core.errors import DataError
from pvqae.datasets import drawing, layouts, splits
from pvqae.datasets.layouts import Found, defect, folders, normal, pictures, untrained
from pvqae.datasets.masks import Parts
from pvqae.samples import images
from pvqae.samples.images import Mask

_TESTED = 1 / 3  # of KolektorSDD's items, as in its paper's three folds


def split_parts(root: Path) -> dict[str, Path]:
    """Return categories of a layout with an official split; `root` may be the folder of a single one."""
    places = [root] if (root / "train").is_dir() else folders(root)
    return {p.name: p for p in places if layouts.has_good(p / "train")}


def visa_parts(root: Path) -> dict[str, Path]:
    """Return VisA's categories, of the original files or converted to MVTec AD's layout by its authors' script."""
    return split_parts(root) or {p.name: p for p in folders(root) if pictures(p / "Data" / "Images" / "Normal")}


def visa(category: str, folder: Path) -> list[Found]:
    """Scan CATEGORY/Data/Images/{Normal,Anomaly} with the split of split_csv/1cls.csv next to the categories; without
    that file normals are divided by hash. A kind is the label of image_anno.csv, which may name several.
    """
    if (folder / "train").is_dir():
        return layouts.split(category, folder)
    split = {row["image"]: row["split"] for row in _table(folder.parent / "split_csv" / "1cls.csv", "image", "split")}
    kinds = {row["image"]: row["label"] for row in _table(folder / "image_anno.csv", "image", "label")}
    found = []
    for path in pictures(folder / "Data" / "Images" / "Normal"):
        found.append(normal(category, folder, path, split.get(_name(path, folder))))
    for path in pictures(folder / "Data" / "Images" / "Anomaly"):
        kind = ", ".join(part.strip() for part in kinds.get(_name(path, folder), "anomaly").split(","))
        mask = folder / "Data" / "Masks" / "Anomaly" / f"{path.stem}.png"
        own = defect(category, folder, path, kind, mask if mask.is_file() else None, split.get(_name(path, folder)))
        found.append(untrained(own))
    return found


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder.parent).as_posix()


def _table(file: Path, *columns: str) -> list[dict[str, str]]:
    """Return the rows of a published CSV, none where there is no file. Raises `DataError` for other columns."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        rows, names = list(table), table.fieldnames or []
    if missing := [name for name in columns if name not in names]:
        raise DataError(f"{file}: expected the column {', '.join(missing)}, found {', '.join(names)}; restore the file")
    return rows


def loco(category: str, folder: Path) -> list[Found]:
    """Scan MVTec AD's layout with a folder of masks per image, ground_truth/KIND/STEM/*.png, one mask per defect in it,
    which are united.
    """
    return [_with_folder(found, folder) for found in layouts.split(category, folder)]


def _with_folder(found: Found, folder: Path) -> Found:
    if found.label == "normal" or found.official != "test":
        return found
    place = folder / "ground_truth" / found.kind / found.path.stem
    files = pictures(place)
    return replace(found, mask_path=None, drawing=drawing.united(files, place) if files else None)


@dataclass(frozen=True)
class Region:
    """One defect of MVTec LOCO: its mask (H0, W0), and how many pixels of it, once found, count as all (sPRO)."""

    name: str
    mask: Mask
    saturation: int


def regions(folder: Path, kind: str, stem: str) -> list[Region]:
    """Return the defects of the image test/KIND/STEM of a class's `folder` of MVTec LOCO, as sPRO needs them.

    The value of a mask's pixels names the defect in defects_config.json; a relative saturation is a share of the mask's
    area, and none is larger than that. Raises `DataError` for a value that the file does not name.
    """
    file = folder / "defects_config.json"
    known = {int(one["pixel_value"]): one for one in _json(file)}
    return [_region(path, known, file) for path in pictures(folder / "ground_truth" / kind / stem)]


def _region(path: Path, known: Mapping[int, Mapping[str, Any]], file: Path) -> Region:
    mask, value = images.read_mask(path), round(float(images.read(path, bits=8).max()) * 255)
    if value not in known:
        raise DataError(f"{path}: expected pixels of a value that {file} names, found {value}; restore both files")
    one, area = known[value], int(mask.sum())
    threshold = one["saturation_threshold"] * (area if one["relative_saturation"] else 1)
    return Region(str(one["defect_name"]), mask, min(int(threshold), area))


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: expected JSON, found {error}; restore the file") from None


PRIVATE = ("test_private", "test_private_mixed")  # of MVTec AD 2: unlabelled


def mvtec_ad_2(category: str, folder: Path) -> list[Found]:
    """Scan {train,validation}/good and test_public/{good,bad}, masks in test_public/ground_truth/bad. A name NNN_LIGHT
    says which part the image shows: it comes in several lights.
    """
    found = layouts.split(category, folder, "test_public")
    return [replace(f, group_id=f"{f.sample_id.rpartition('/')[0]}/{f.path.stem.partition('_')[0]}") for f in found]


def why_unused(parts: Parts) -> str:
    """Return why images of MVTec AD 2 and MVTec 3D are none of the labelled ones, "" for all others."""
    if set(parts[:-1]) & set(PRIVATE):
        return "unlabelled: its server judges what `pvqae submit` writes"
    return "a point cloud; the photograph is in rgb/" if "xyz" in parts[:-1] else ""


def kolektor_parts(root: Path) -> dict[str, Path]:
    """Return KolektorSDD's only category."""
    return {"kolektor_sdd": root} if any(_items(root)) else {}


def _items(root: Path) -> list[Path]:
    return [place for place in folders(root) if place.name.startswith("kos") and pictures(place)]


def kolektor(category: str, root: Path) -> list[Found]:
    """Scan kosNN/PartM.jpg with masks PartM_label.bmp, of which those of good surfaces are empty. Decodes the masks.

    Every one of the 50 items has a defect on one of its 8 surfaces, so an item can't be a group. Instead a third of the
    items, by hash, is the test split: no surface of a tested item is learnt from.
    """
    found = []
    for item in _items(root):
        official = "test" if splits.fraction("split", f"{category}/{item.name}") < _TESTED else "train"
        shown = [path for path in pictures(item) if not path.stem.endswith("_label")]
        found += _by_mask(
            category, root, [(path, path.with_name(f"{path.stem}_label.bmp")) for path in shown], official
        )
    return found


def kolektor2_parts(root: Path) -> dict[str, Path]:
    """Return KolektorSDD2's only category."""
    there = [path for path in pictures(root / "train") if path.stem.endswith("_GT")]
    return {"kolektor_sdd2": root} if there else {}


def kolektor2(category: str, root: Path) -> list[Found]:
    """Scan {train,test}/NNNNN.png with masks NNNNN_GT.png, those of good parts empty. Decodes the masks."""
    found = []
    for official in ("train", "test"):
        shown = [path for path in pictures(root / official) if not path.stem.endswith("_GT")]
        found += _by_mask(category, root, [(path, path.with_name(f"{path.stem}_GT.png")) for path in shown], official)
    return found


def _by_mask(category: str, root: Path, pairs: list[tuple[Path, Path]], official: str) -> list[Found]:
    """Return images whose masks, all of which must be there, say whether they are defective."""

    def look(pair: tuple[Path, Path]) -> Found:
        path, mask = pair
        if images.read_mask(mask).any():
            return untrained(defect(category, root, path, "defect", mask, official))
        return replace(normal(category, root, path, official), unneeded=(mask,))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(look, pairs))


def dagm_parts(root: Path) -> dict[str, Path]:
    """Return DAGM's categories."""
    return {p.name: p for p in folders(root) if pictures(p / "Train")}


def dagm(category: str, folder: Path) -> list[Found]:
    """Scan {Train,Test}/NNNN.PNG; an image with Label/NNNN_label.PNG is defective. Its masks are ellipses around the
    defect, larger than it.
    """
    found = []
    for head, official in (("Train", "train"), ("Test", "test")):
        marks = {path.stem.removesuffix("_label"): path for path in pictures(folder / head / "Label")}
        for path in pictures(folder / head):
            own = normal(category, folder, path, official)
            if path.stem in marks:
                own = untrained(defect(category, folder, path, "defect", marks[path.stem], official))
            found.append(own)
    return found


def _real_iad_file(folder: Path) -> Path:
    jsons = folder.parent.parent / "realiad_jsons"
    nested = jsons / "realiad_jsons" / f"{folder.name}.json"
    return nested if nested.is_file() else jsons / f"{folder.name}.json"


def real_iad_parts(root: Path) -> dict[str, Path]:
    """Return Real-IAD's categories that have a JSON file, of the largest images there: realiad_1024, 512 or 256."""
    sizes = sorted(
        (place for place in folders(root) if place.name.removeprefix("realiad_").isdigit()),
        key=lambda place: int(place.name.removeprefix("realiad_")),
    )
    return {p.name: p for size in sizes for p in folders(size) if _real_iad_file(p).is_file()}


def real_iad(category: str, folder: Path) -> list[Found]:
    """Scan what realiad_jsons/realiad_jsons/CATEGORY.json lists; the five views of a part, in one folder, are a group.

    A view of a defective part without a mask does not show the defect, and is left out. Raises `DataError` for another
    file, and for a path that leaves the category's folder.
    """
    file = _real_iad_file(folder)
    found = _json(file)
    try:
        good = found.get("meta", {}).get("normal_class", "OK")
        rows = [(official, row) for official in ("train", "test") for row in found[official]]
        return [_real_iad_view(category, folder, row, good, official) for official, row in rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: expected Real-IAD's list of images, found none of {error}; restore it") from None


def _real_iad_view(category: str, folder: Path, row: Mapping[str, Any], good: str, official: str) -> Found:
    path, kind = _below(folder, row["image_path"]), str(row["anomaly_class"])
    group = f"{category}/{path.parent.relative_to(folder).as_posix()}"
    if kind == good:
        return replace(normal(category, folder, path, official), group_id=group)
    mask = _below(folder, row["mask_path"]) if row.get("mask_path") else None
    found = replace(defect(category, folder, path, kind, mask, official), group_id=group)
    return untrained(found) if mask else replace(found, flaw="a view of a defective part that does not show the defect")


def _below(folder: Path, name: str) -> Path:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        raise DataError(f"{_real_iad_file(folder)}: expected paths inside of {folder}, found {name}; restore the file")
    return folder.joinpath(*parts)
