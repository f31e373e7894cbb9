"""From the files of data/raw to the manifest: the verb `pvqae data build`, the one writer of its six outputs.

The gate's synthetic defects are made here: one of each kind per gate normal, fixed by the bytes of that image alone.
"""

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pvqae.core import runtime
from pvqae.core.config import Params
from pvqae.core.errors import DataError
from pvqae.core.files import shown, write_text
from pvqae.core.layout import Layout
from pvqae.core.progress import track
from pvqae.datasets import arrivals, inspection, leftover, sources, splits
from pvqae.datasets.anomalies import ANOMALIES, GATE_KINDS
from pvqae.datasets.inspection import Facts, inspect, inspect_all
from pvqae.datasets.layouts import Found
from pvqae.datasets.leftover import Left
from pvqae.samples import images, manifest
from pvqae.samples.images import Bits

_Read = list[tuple[Found, Facts]]
_Made = tuple[dict[str, Any], Facts]  # a synthetic defect: its manifest row, and what inspecting its file said
_Out = list[tuple[Path, str]]  # left out, with the reason
_EXTENTS = (0.003, 0.05)  # share of the image
_LONGEST = 200  # bytes of a name
_SCRATCH = 10  # the length of a scratch, in extents and diagonals
_ABOUT_MASKS = (
    "Masks that `pvqae data build` drew from annotations, or united from several files.\n"  # DVC warns of none
)


@dataclass(frozen=True)
class Summary:
    """What was built: images per class and split, what was left out, and what nothing uses; the tables that say so.

    `synthetic` counts the defects that were drawn for the gate.
    """

    counts: dict[str, dict[str, int]]
    synthetic: int
    unreadable: int
    duplicates: int
    flawed: int
    left: tuple[Left, ...]
    folders: str
    tables: tuple[Path, Path]

    def __str__(self) -> str:
        of = {name: ", ".join(f"{split} {n}" for split, n in own.items()) for name, own in self.counts.items()}
        counts = "; ".join(f"{name} {text}" for name, text in of.items())
        out = f"Left out: {self.unreadable} unreadable, {self.duplicates} duplicates, {self.flawed} flawed"
        tables = " and ".join(map(str, self.tables))
        said = f"{counts}; gate defects {self.synthetic}. {out}. {leftover.total(self.left)}. All are in {tables}"
        return "\n".join([said, self.folders, *(f"warning: {text}" for text in leftover.told(self.left))])


def build(root: Path, params: Params) -> Summary:
    """Scan `data/raw/<name>` below the workspace `root`, decode every image that is new and write data/manifest.csv,
    quarantine.csv, ignored.csv, statistics.csv, masks/ and gate/. The same files give the same bytes.

    Unreadable and flawed images and second copies are left out with a reason; whatever else is in the dataset is in
    ignored.csv, so each file is an image or a mask of the manifest or a row of one of the two lists. Raises `DataError`
    when the layout is not that of `data.source`, masks or folders of images belong to nothing, more than
    `data.max_quarantine` of every class cannot be read, equal files contradict each other, or a mask can't be drawn.
    Where that many can't be read in some classes only, those are left out whole and the others go on.
    """
    layout, data = Layout(root, params.data.name), params.data
    found, left = sources.survey(data.source, layout.raw, data.categories, data)
    folders = leftover.folders(found, layout.raw)
    found = _grouped(found, data.protocol)
    chosen = splits_of(found, params)
    flawed = [(f.path, f.flaw) for f in found if f.flaw]
    read, unreadable = _decode([f for f in found if not f.flaw], layout.data, layout.cache, params.image.bits)
    spoilt = _spoilt(found, unreadable, data.max_quarantine)
    with_spoilt = [(f.path, spoilt[f.category]) for f, _ in read if f.category in spoilt]
    read, duplicates = _without_duplicates([(f, facts) for f, facts in read if f.category not in spoilt], layout.data)
    signed = arrivals.signatures(layout.raw)
    rows = [
        _row(f, facts, chosen[f.sample_id], _origin(f, layout.raw, data.source, signed), layout.data)
        for f, facts in read
    ]
    frame = pd.DataFrame(rows, columns=list(manifest.COLUMNS))
    normals = frame[(frame["split"] == "gate") & (frame["label"] == "normal")]
    with tempfile.TemporaryDirectory(dir=layout.data, prefix=".build-") as folder:
        place, drawn = Path(folder) / "gate", Path(folder) / "masks"
        place.mkdir()
        _draw_masks(read, drawn)
        total = len(normals) * len(GATE_KINDS)
        made = list(track(_synthesise(normals, layout.data, place, params.image.bits), "gate defects", total))
        counts = _counts(frame)
        frame = pd.concat([frame, pd.DataFrame([row for row, _ in made], columns=frame.columns)], ignore_index=True)
        measured = _measured([facts for _, facts in (*read, *made)])
        out = unreadable + with_spoilt + duplicates + flawed
        left += _masks_left(found, {path for path, _ in out}, layout.raw)
        _write(layout, frame, out, left, measured, {layout.gate_images: place, layout.masks: drawn})
    tables = layout.quarantine, layout.ignored
    return Summary(counts, len(made), len(unreadable), len(duplicates), len(flawed), tuple(left), folders, tables)


def _decode(found: Sequence[Found], root: Path, cache: Path, bits: Bits) -> tuple[_Read, _Out]:
    results = inspect_all([f.path.relative_to(root) for f in found], root, inspection.file(cache), bits)
    both = list(zip(found, track(results, "reading images", len(found)), strict=True))
    read = [(f, facts) for f, facts in both if isinstance(facts, Facts)]
    return read, [(f.path, reason) for f, reason in both if isinstance(reason, str)]


def _spoilt(found: Sequence[Found], unreadable: _Out, limit: float) -> dict[str, str]:
    """Return the classes to leave out, with the reason, where more than `limit` of all images can't be read.

    Raises `DataError` where that would be every class.
    """
    if len(unreadable) <= limit * len(found):
        return {}
    total = Counter(f.category for f in found)
    category_of = {f.path: f.category for f in found}
    bad = Counter(category_of[path] for path, _ in unreadable)
    over = {name: n for name, n in sorted(bad.items()) if n > limit * total[name]}
    if len(over) == len(total):
        reasons = "\n  ".join(reason for _, reason in unreadable[:5])
        raise DataError(
            f"{len(unreadable)} of {len(found)} images can't be read, data.max_quarantine allows {limit:.0%}:\n"
            f"  {reasons}\n  repair: replace or remove these files, or raise data.max_quarantine in params.yaml"
        )
    allowed = f"data.max_quarantine allows {limit:.0%}"
    return {name: f"class {name}: {n} of {total[name]} images can't be read, {allowed}" for name, n in over.items()}


def _conflict(a: Found, b: Found) -> str | None:
    """Return why two files of the same bytes cannot both be right."""
    if a.category != b.category:
        return f"classes {a.category} and {b.category}"
    if a.kind != b.kind:
        return f"kinds {a.kind} and {b.kind}"
    if a.official != b.official:
        return f"splits {a.official} and {b.official}"
    return None


def _without_duplicates(read: _Read, root: Path) -> tuple[_Read, _Out]:
    """Keep the first of equal files. Raises `DataError`, naming both, where they contradict each other."""
    first: dict[str, Found] = {}
    kept, left = [], []
    for found, facts in read:
        known = first.setdefault(facts.sha256, found)
        if known is found:
            kept.append((found, facts))
            continue
        if conflict := _conflict(known, found):
            raise DataError(f"{known.path} and {found.path} are the same image, in {conflict}; remove the wrong one")
        left.append((found.path, f"duplicate of {known.path.relative_to(root).as_posix()}"))
    return kept, left


def _masks_left(found: Sequence[Found], out: set[Path], root: Path) -> list[Left]:
    """Return the masks of images that are left out, whose paths are in `out`."""
    own = [f.mask_path.relative_to(root).as_posix() for f in found if f.mask_path and f.path in out]
    return [Left(shown(name), "other", "the mask of an image that is left out") for name in own]


def _grouped(found: Sequence[Found], protocol: str) -> list[Found]:
    """Return `found`; in the random protocol every image is a group of its own."""
    return [replace(f, group_id=f.sample_id) for f in found] if protocol == "random" else list(found)


def splits_of(found: Sequence[Found], params: Params) -> dict[str, str]:
    """Return the split by sample_id. All found images take part: a defect that is left out still spoils its group."""
    grouped = _grouped(found, params.data.protocol)
    return dict(zip((f.sample_id for f in found), splits.assign_splits(grouped, params.data.shares), strict=True))


def _origin(found: Found, raw: Path, source: str, signed: Mapping[str, Mapping[str, str]]) -> str:
    """Return the source, and who labelled the image when, if a person did."""
    row = signed.get(found.path.relative_to(raw).as_posix())
    return f"{source}, labelled by {row['who']} at {row['when']}" if row else source


def _row(found: Found, facts: Facts, split: str, source: str, root: Path) -> dict[str, object]:
    return {
        "sample_id": found.sample_id,
        "path": found.path.relative_to(root).as_posix(),
        "sha256": facts.sha256,
        "category": found.category,
        "group_id": found.group_id,
        "split": split,
        "label": found.label,
        "kind": found.kind,
        "mask_path": _mask_path(found, root),
        **vars(facts.header),
        "source": source,
    }


def _mask_path(found: Found, root: Path) -> str:
    if found.drawing:
        return f"masks/{_mask_name(found)}"
    return found.mask_path.relative_to(root).as_posix() if found.mask_path else ""


def _mask_name(found: Found) -> str:
    *folders, name = found.sample_id.split("/")
    return "/".join([*folders, f"{_short(name)}.png"])


def _draw_masks(read: _Read, folder: Path) -> None:
    """Draw the masks that are no single file below `folder`. Raises `DataError` for one that does not fit its image."""
    write_text(folder / "README.txt", _ABOUT_MASKS)

    def draw(found: Found, facts: Facts) -> None:
        assert found.drawing
        mask = found.drawing.mask(found.path, facts.header.height, facts.header.width)
        images.write(folder / _mask_name(found), mask)

    with ThreadPoolExecutor(runtime.cores()) as pool:
        list(pool.map(lambda pair: draw(*pair), [pair for pair in read if pair[0].drawing]))


def _measured(facts: Sequence[Facts]) -> pd.DataFrame:
    """Return statistics by hash, sorted."""
    rows = {f.sha256: {"sha256": f.sha256, **vars(f.statistics), **vars(f.range)} for f in facts}
    return pd.DataFrame([rows[sha256] for sha256 in sorted(rows)])


def _counts(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(category): {split: int((rows["split"] == split).sum()) for split in manifest.SPLITS}
        for category, rows in frame.groupby("category")
    }


def _write(
    layout: Layout,
    frame: pd.DataFrame,
    out: _Out,
    left: Sequence[Left],
    measured: pd.DataFrame,
    folders: Mapping[Path, Path],
) -> None:
    """Write all six outputs, the manifest last: where it is, the files that it names are. `folders`: new by place."""
    layout.manifest.unlink(missing_ok=True)
    for place, new in folders.items():
        shutil.rmtree(place, ignore_errors=True)
        os.replace(new, place)
    quarantine = sorted((shown(path.relative_to(layout.data).as_posix()), reason) for path, reason in out)
    manifest.write_csv(pd.DataFrame(quarantine, columns=["path", "reason"]), layout.quarantine)
    ignored = [(shown(f"raw/{layout.name}/{item.path}"), item.kind, item.reason) for item in left]
    manifest.write_csv(pd.DataFrame(sorted(ignored), columns=["path", "kind", "reason"]), layout.ignored)
    manifest.write_csv(measured, layout.statistics)
    manifest.write(frame, layout.manifest)


def _synthesise(normals: pd.DataFrame, data: Path, folder: Path, bits: Bits) -> Iterator[_Made]:
    """Yield defective copies of each gate normal, one per kind, with exact masks; files are below `folder`.

    Their rows have label defect, kind synthetic_<kind> and the group of the normal.
    """
    wanted = [(row, kind) for row in normals.to_dict("records") for kind in GATE_KINDS]
    with ThreadPoolExecutor(runtime.cores()) as pool:  # each holds an image
        yield from pool.map(lambda pair: _make(pair[0], pair[1], data, folder, bits), wanted)


def _make(row: dict[str, Any], kind: str, data: Path, folder: Path, bits: Bits) -> _Made:
    name = _short(row["sample_id"].removeprefix(row["category"] + "/").replace("/", "_"))
    place = Path(row["category"]) / f"synthetic_{kind}"
    image, mask = place / f"{name}.png", place / f"{name}_mask.png"
    _draw(row, kind, data, folder / image, folder / mask, bits)
    facts = inspect(image, folder, bits)
    if isinstance(facts, str):
        raise DataError(facts)
    changed = {
        "sample_id": f"{row['category']}/gate/synthetic_{kind}/{name}",
        "path": (Path("gate") / image).as_posix(),
        "mask_path": (Path("gate") / mask).as_posix(),
        "sha256": facts.sha256,
        "label": "defect",
        "kind": f"synthetic_{kind}",
        "bit_depth": facts.header.bit_depth,
    }
    return {**row, **changed}, facts


def _draw(row: dict[str, Any], kind: str, data: Path, image_path: Path, mask_path: Path, bits: Bits) -> None:
    # By the image's hash, not its number: a new image changes no old one.
    rng = np.random.default_rng([int(row["sha256"][:16], 16), GATE_KINDS.index(kind)])
    extent = float(np.exp(rng.uniform(*np.log(_EXTENTS)))) * (_SCRATCH if kind == "scratch" else 1)
    defective, mask = ANOMALIES[kind](images.read(row["path"], data, bits), rng, extent)
    images.write(image_path, defective, row["channels"], row["bit_depth"])
    images.write(mask_path, mask)


def _short(name: str) -> str:
    """Return the name without the end of a long one: what is appended must fit into the 255 bytes of a file system."""
    if len(name.encode()) <= _LONGEST:
        return name
    start = name.encode()[: _LONGEST - 17].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
