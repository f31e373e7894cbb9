"""The datasets that can be scanned: name -> how its categories and their images are found, and how it should look."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pvqae.core import files
from pvqae.core.config import Data
from pvqae.core.errors import DataError
from pvqae.core.layout import ARRIVED
from pvqae.datasets import annotations, arrivals, layouts, leftover, masks, mtsd, published, table
from pvqae.datasets.layouts import Found
from pvqae.datasets.leftover import Left
from pvqae.datasets.masks import Parts
from pvqae.samples.classes import unusable


def _is_mask(parts: Parts) -> bool:
    """Return whether a file is in a folder of masks, by the parts of its path."""
    return any(map(masks.is_folder, parts[:-1])) or layouts.GATE_MASKS in parts[:-1]


_NOTHING = Data()  # params that name no table and no annotations


@dataclass(frozen=True)
class Source:
    """`parts` gives the folder of each category below a root, none if the layout is another; `images` scans one.

    `tree` is what an error shows as expected. `is_mask` says of a file below the root that nothing uses, by the parts
    of its path, whether it is a mask, and `reason` why it has to be unused, "" where that is not known. `beside`: a
    folder next to the categories that belongs to all of them. With `asks`, `parts` and `images` also take the params'
    section `data`.
    """

    parts: Callable[..., dict[str, Path]]
    images: Callable[..., list[Found]]
    tree: str
    is_mask: Callable[[Parts], bool] = _is_mask
    reason: Callable[[Parts], str] = lambda parts: ""
    beside: str = ""
    asks: bool = False


def _folder_parts(root: Path) -> dict[str, Path]:
    """Return categories of the folder layout: `root` itself if it has a good/, else its folders with one; or `root`
    with images of good parts alone.
    """
    aside = (layouts.GATE, layouts.GATE_MASKS, ARRIVED)
    found = (
        {}
        if layouts.has_good(root)
        else {p.name: p for p in layouts.folders(root) if p.name not in aside and layouts.has_good(p)}
    )
    return found or ({root.name: root} if layouts.has_good(root) or layouts.pictures(root) else {})


def _cells(category: str, folder: Path) -> list[Found]:
    """Group images by the cell of the photograph that begins their names: the part that several images show."""
    return [replace(f, group_id=f"{category}/{f.path.stem.split('_')[0]}") for f in layouts.split(category, folder)]


def _annotated_parts(root: Path, data: Data) -> dict[str, Path]:
    """Return the only category, named after the folder, where params name annotations."""
    return {root.name: root} if data.annotations and root.is_dir() else {}


def _annotated(category: str, root: Path, data: Data) -> list[Found]:
    """Return all images as good ones; the annotations say which are not."""
    every = [parts for parts in layouts.files(root) if layouts.is_image(parts[-1]) and parts[0] != ARRIVED]
    shown = [root.joinpath(*parts) for parts in every if not any(part.startswith(".") for part in parts)]
    return [layouts.normal(category, root, path) for path in shown]


_SPLIT = "CATEGORY/train/good/*  CATEGORY/test/KIND/*  CATEGORY/ground_truth/KIND/*_mask.png"
SOURCES: dict[str, Source] = {
    "mvtec": Source(published.split_parts, layouts.split, _SPLIT),
    "btad": Source(
        published.split_parts,
        layouts.split,
        "CATEGORY/train/ok/*  CATEGORY/test/ok/*  CATEGORY/test/ko/*  CATEGORY/ground_truth/ko/*  (bmp or png)",
    ),
    "folder": Source(
        _folder_parts,
        layouts.kinds,
        "[CATEGORY/]good/*  [CATEGORY/]KIND/*  [CATEGORY/]masks/KIND/* (masks optional); or images of good parts only",
    ),
    "mtsd": Source(
        mtsd.parts,
        mtsd.scan,
        "MT_Free/Imgs/exp1_num_12.jpg  MT_Crack/Imgs/exp1_num_34.jpg and .png (mask)",
        lambda parts: parts[-2:-1] == ("Imgs",) and parts[-1].lower().endswith(".png"),
    ),
    "table": Source(
        table.parts,
        table.scan,
        "a table (csv, json, jsonl, parquet) in the dataset's folder, or data.table: path, label or kind, and any of "
        "split, mask, part, class",
        asks=True,
    ),
    "annotated": Source(
        _annotated_parts,
        _annotated,
        "images in any folders; data.annotations: a file or folder of COCO, LabelMe, Label Studio, CVAT, Datumaro or "
        "YOLO",
        asks=True,
    ),
    "visa": Source(
        published.visa_parts,
        published.visa,
        "CATEGORY/Data/Images/{Normal,Anomaly}/*  CATEGORY/Data/Masks/Anomaly/*.png  CATEGORY/image_anno.csv  "
        "split_csv/1cls.csv; or as mvtec, converted",
        beside="split_csv",
    ),
    "loco": Source(
        published.split_parts,
        published.loco,
        "CATEGORY/{train,validation}/good/*  CATEGORY/test/{good,logical_anomalies,structural_anomalies}/*  "
        "CATEGORY/ground_truth/KIND/STEM/*.png",
    ),
    "mvtec_ad_2": Source(
        published.split_parts,
        published.mvtec_ad_2,
        "CATEGORY/{train,validation}/good/*  CATEGORY/test_public/{good,bad}/*  "
        "CATEGORY/test_public/ground_truth/bad/*_mask.png",
        reason=published.why_unused,
    ),
    "mpdd": Source(published.split_parts, layouts.split, f"as mvtec: {_SPLIT}"),
    "kolektor": Source(published.kolektor_parts, published.kolektor, "kosNN/PartM.jpg  kosNN/PartM_label.bmp (mask)"),
    "kolektor2": Source(
        published.kolektor2_parts, published.kolektor2, "{train,test}/NNNNN.png and NNNNN_GT.png (mask)"
    ),
    "dagm": Source(
        published.dagm_parts,
        published.dagm,
        "CATEGORY/{Train,Test}/NNNN.PNG  CATEGORY/{Train,Test}/Label/NNNN_label.PNG (masks of defects)",
        lambda parts: "Label" in parts[:-1],
    ),
    "real_iad": Source(
        published.real_iad_parts,
        published.real_iad,
        "realiad_{1024,512,256}/CATEGORY/{OK,NG/KIND}/SNNNN/*  realiad_jsons/realiad_jsons/CATEGORY.json",
        reason=lambda parts: "not listed in realiad_jsons, or smaller than the images that are used",
    ),
    "mvtec_3d": Source(
        published.split_parts,
        layouts.split,
        "CATEGORY/{train,validation}/good/rgb/*  CATEGORY/test/KIND/rgb/*  CATEGORY/test/KIND/gt/*",
        reason=published.why_unused,
    ),
    "demo": Source(published.split_parts, _cells, _SPLIT),
}


def _below(root: Path) -> str:
    """Return the first entries of two levels below `root`, as an error shows them."""
    if not root.is_dir():
        return "no such folder"
    places = sorted([*root.glob("*"), *root.glob("*/*")])
    names = [p.relative_to(root).as_posix() + "/" * p.is_dir() for p in places if not p.name.startswith(".")]
    return "  ".join(names[:12] + ["..."] * (len(names) > 12)) or "an empty folder"


def _source(name: str, data: Data) -> Source:
    """Return a source that asks for nothing. Raises `DataError` for an unknown one."""
    if name not in SOURCES:
        raise DataError(f"data.source: expected one of {', '.join(SOURCES)}; found {name}; correct params.yaml")
    found = SOURCES[name]
    told: dict[str, Any] = {"parts": partial(found.parts, data=data), "images": partial(found.images, data=data)}
    return replace(found, **told) if found.asks else found


def _parts(name: str, root: Path, data: Data) -> dict[str, Path]:
    """Return the folder of each category. Raises `DataError` for an unknown source or layout, or an unusable name."""
    parts = _source(name, data).parts(root)
    if not parts:
        own = f" ({ARRIVED}/ is a folder of ours: rename the folder if it is a class)" * (root / ARRIVED).is_dir()
        raise DataError(
            f"{root}: not the layout of data.source={name}\n  expected: {SOURCES[name].tree}\n  found: {_below(root)}\n"
            f"  repair: rearrange the files{own}, or choose another data.source: {', '.join(SOURCES)}"
        )
    for category, folder in parts.items():
        if wrong := unusable(category):
            repair = "rename the folder" if folder.name == category else f"{category!r} is none, correct it"
            raise DataError(f"{folder}: expected as the name of a class {wrong}; {repair}")
    return parts


def categories(source: str, root: Path, data: Data = _NOTHING) -> list[str]:
    """Return the classes of a dataset, sorted, from folder names (or its table) alone. Raises `DataError` as `scan`."""
    return sorted(_parts(source, root, data))


def _check_ids(found: Sequence[Found]) -> None:
    counts = Counter(f.sample_id for f in found)
    twice = [str(f.path) for f in found if counts[f.sample_id] > 1]
    if twice:
        raise DataError(
            f"expected one image per name, found several of other extensions: {', '.join(twice[:6])}; "
            "rename or remove one of each"
        )


def _check_masks(source: str, found: Sequence[Found], left: Sequence[str] = ()) -> None:
    """Check that a category has masks for all its defects or for none: half a truth would count defects as false
    alarms. Masks that are there are not dropped in silence, either (`left`: those of no image, where `found` are of one
    category).
    """
    masked = {f.category for f in found if f.mask_path or f.drawing or left}
    missing = [
        str(f.path)
        for f in found
        if f.category in masked and f.label == "defect" and not (f.mask_path or f.drawing or f.flaw)
    ]
    if missing:
        unused = f"\n  masks that belong to no image:\n  {_first(left)}" if left else ""
        raise DataError(
            f"{len(missing)} defective images have no mask, though there are masks of their category:\n"
            f"  {_first(missing)}{unused}\n  expected: {SOURCES[source].tree}\n"
            "  repair: add these masks, one for each image, with its name, or remove all masks of the category"
        )


def _first(names: Sequence[str]) -> str:
    return "\n  ".join([*names[:10], *(["..."] * (len(names) > 10))])


def _judged(found: Found, root: Path) -> Found:
    """Return `found`, with a flaw where a name can't be in a table: it would break a line, or a spreadsheet would run
    it.
    """
    names = "".join(path.relative_to(root).as_posix() for path in (found.path, found.mask_path) if path)
    if "\\" in names or files.shown(names) != names:
        return replace(found, flaw="expected names of UTF-8 without control characters and backslashes; rename it")
    if found.kind.startswith(("=", "+", "-", "@")):
        return replace(found, flaw=f"expected the name of a kind, found a formula: {found.kind}; rename the folder")
    return found


def _find(
    source: str, root: Path, wanted: Sequence[str], data: Data
) -> tuple[dict[str, Path], list[Found], list[Found]]:
    """Return the folders of all categories; the images of the wanted ones, without what arrived later and with it."""
    parts = _parts(source, root, data)
    if missing := [name for name in wanted if name not in parts]:
        raise DataError(
            f"data.categories: expected some of {', '.join(parts)}; found {', '.join(missing)}; correct params.yaml"
        )
    chosen = {name: folder for name, folder in parts.items() if not wanted or name in wanted}
    scanned = _source(source, data).images
    own = [f for name, folder in chosen.items() for f in scanned(name, folder)]
    if data.annotations:
        own = annotations.apply(own, root, data.annotations, labels=source == "annotated")
    every = [*own, *(f for name in chosen for f in arrivals.scan(name, root))]
    found = [_judged(f, root) for f in sorted(every, key=lambda f: f.sample_id)]
    _check_ids(found)
    return parts, own, found


def scan(source: str, root: Path, wanted: Sequence[str] = (), data: Data = _NOTHING) -> list[Found]:
    """Return every image of a dataset, sorted by sample_id; of the `wanted` categories only, if any are named. `data`
    says how to read tables and annotations.

    Raises `DataError` when the source is not known, the layout is another, a wanted category is not there, names are
    not usable or not unique, or a category has masks for only some of its defects.
    """
    _, own, found = _find(source, root, wanted, data)
    _check_masks(source, own)  # labelled defects never have one; the gate looks at whole images
    return found


def survey(
    source: str, root: Path, wanted: Sequence[str] = (), data: Data = _NOTHING
) -> tuple[list[Found], list[Left]]:
    """Return what `scan` does, and all other files below `root`, each with the reason why nothing uses it.

    Raises `DataError` as `scan`; for folders of images that are no category, unless the `wanted` ones are named; and
    for a category whose masks belong to none of its images.
    """
    parts, own, found = _find(source, root, wanted, data)
    layout, unchosen = SOURCES[source], {name for name in parts if wanted and name not in wanted}
    left = leftover.of(root, found, unchosen, layout.is_mask, layout.reason)
    if not wanted and root not in parts.values():
        _check_classes(source, root, parts, left)
    for name, folder in parts.items():
        start = f"{folder.relative_to(root).as_posix()}/".removeprefix("./")
        unused = [item.path for item in left if item.kind == "mask" and item.path.startswith(start)]
        _check_masks(source, [f for f in own if f.category == name], unused)
    return found, left


def _check_classes(source: str, root: Path, parts: Mapping[str, Path], left: Sequence[Left]) -> None:
    heads = {item.path.split("/")[0] for item in left if item.kind in ("image", "mask") and "/" in item.path}
    if odd := sorted(heads - {folder.relative_to(root).parts[0] for folder in parts.values()} - {ARRIVED}):
        found = "\n  ".join(f"{name}/: {_below(root / name)}" for name in odd[:10])
        raise DataError(
            f"{root}: folders of images without good parts\n  expected: {SOURCES[source].tree}\n  found: {found}\n"
            f"  repair: rename the folders in {odd[0]}/ as expected; or move {odd[0]}/ out of the dataset, masks to "
            f"their class; or name the classes in params.yaml: data.categories: [{', '.join(parts)}]"
        )
