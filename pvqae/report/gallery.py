"""The pictures of a report: chosen while the images stream past, kept as files, inlined in the page.

Only the chosen images are drawn and kept. A page shows the most telling of them within a number of bytes.
"""

import base64
import heapq
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pvqae.report import pictures

if TYPE_CHECKING:
    from pvqae.inference.scoring import Scored
    from pvqae.report.report import ClassReport

Values = dict[str, Any]
_Files = dict[str, bytes]  # file name ending, e.g. heatmap.webp → content

# Group → (label, sign): the images of this label with the highest (+1) or lowest (-1) scores. The hard cases come
# first: an image that fits two groups is shown in the first.
_GROUPS = {
    "normal_high": ("normal", 1),
    "defect_low": ("defect", -1),
    "defect_high": ("defect", 1),
    "normal_low": ("normal", -1),
}


@dataclass(frozen=True)
class _Picture:
    """One chosen image: its row of images.csv and its drawn pictures."""

    row: dict[str, Any]
    files: _Files


class Gallery:
    """At most `size` images per group of GROUPS, of all that are offered."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heaps: dict[str, list[tuple[float, str, _Picture]]] = {group: [] for group in _GROUPS}

    def offer(self, row: dict[str, Any], draw: Callable[[], _Files]) -> None:
        """Keep the image of `row` (a row of images.csv) if it is among the extremes so far; only then `draw` it."""
        wanted = [group for group in _GROUPS if self._wants(group, row)]
        if not wanted:
            return
        picture = _Picture(row, draw())
        for group in wanted:
            heap = self._heaps[group]
            heapq.heappush(heap, (*_rank(group, row), picture))
            if len(heap) > self._size:
                heapq.heappop(heap)

    def _wants(self, group: str, row: dict[str, Any]) -> bool:
        if row["label"] != _GROUPS[group][0] or not self._size:
            return False
        heap = self._heaps[group]
        return len(heap) < self._size or _rank(group, row) > heap[0][:2]

    def chosen(self) -> list[tuple[str, _Picture]]:
        """Return (group, picture), the most extreme first, each image once."""
        seen: set[str] = set()
        result = []
        for group, heap in self._heaps.items():
            fresh = [item for item in sorted(heap, key=lambda item: item[:2], reverse=True) if item[1] not in seen]
            seen.update(sample for _, sample, _ in fresh)
            result += [(group, picture) for _, _, picture in fresh]
        return result

    def write(self, folder: Path) -> None:
        """Write pictures/ and pictures.json below `folder`. File names are numbers, without a user's names."""
        (folder / "pictures").mkdir()
        entries = []
        for number, (group, picture) in enumerate(self.chosen()):
            names = {ending.split(".")[0]: f"pictures/{number:03d}-{ending}" for ending in picture.files}
            for ending, content in picture.files.items():
                (folder / "pictures" / f"{number:03d}-{ending}").write_bytes(content)
            entries.append({"group": group, **picture.row, "files": names})
        (folder / "pictures.json").write_text(json.dumps(entries, indent=1, allow_nan=False) + "\n", "utf-8")


def draw(scored: "Scored", mask: NDArray[np.bool_] | None, card: dict[str, Any], levels: int) -> _Files:
    """Draw the pictures of one image on the card's scale; `mask` (H, W), or None if there is none to show."""
    small = pictures.thumbnail(scored.picture)
    shape = small.shape[0], small.shape[1]
    files = {
        "picture.webp": pictures.webp(small),
        "heatmap.webp": pictures.webp(pictures.over(scored.picture, scored.anomaly_map, card)),
    }
    if scored.allocates:
        for name, shown in (("levels", scored.levels), ("expected_levels", scored.expected_levels)):
            files[f"{name}.png"] = pictures.png(pictures.level_map(shown, levels, shape))
    if mask is not None:
        files["mask.webp"] = pictures.webp(pictures.outline(small, pictures.shrink(mask)))
    return files


def _rank(group: str, row: dict[str, Any]) -> tuple[float, str]:
    return _GROUPS[group][1] * row["image_score"], row["sample_id"]


_BUDGET = 4_000_000  # bytes of all pictures of a page, before base64 makes them a third longer
_TITLES = {
    "normal_high": ("Good images with the highest scores", "Most likely to cause false alarms."),
    "defect_low": ("Defects with the lowest scores", "Most likely to be missed."),
    "defect_high": ("Defects with the highest scores", "Found most clearly."),
    "normal_low": ("Good images with the lowest scores", "The most ordinary ones."),
}


@dataclass(frozen=True)
class _Choice:
    """`groups`: class → its picture groups, inlined; `n` of `drawn` pictures are on the page."""

    groups: dict[str, list[Values]]
    n: int
    drawn: int

    @property
    def filters(self) -> list[Values]:
        """Each key's values with the number of pictures, in the order of the page."""
        cards = [
            card | {"class": name} for name, own in self.groups.items() for group in own for card in group["cards"]
        ]
        return [
            {"key": key, "values": sorted(Counter(card[key] for card in cards).items())}
            for key in ("class", "kind", "outcome")
        ]


def choose(classes: Sequence["ClassReport"], budget: int = _BUDGET) -> _Choice:
    """Choose the most telling pictures within `budget` bytes: first of each group in turn, weakest classes first.

    So every class has its worst images on the page while there is room, and a thousand classes make no larger page.
    """
    order = sorted(range(len(classes)), key=lambda number: _area(classes[number]))
    entries = [(*_place(one, entry), rank, number, entry) for rank, number in enumerate(order)
               for one in [classes[number]] for entry in one.pictures]  # fmt: skip
    kept: dict[int, list[Values]] = {number: [] for number in order}
    left = budget
    for *_, number, entry in sorted(entries, key=lambda item: item[:3]):
        left -= sum((classes[number].folder / file).stat().st_size for file in entry["files"].values())
        if left < 0:
            break
        kept[number].append(entry)
    groups = {classes[number].name: _sections(classes[number], entries) for number, entries in kept.items()}
    return _Choice(groups, sum(map(len, kept.values())), len(entries))


def _area(one: "ClassReport") -> float:
    area = one.metrics["image_auroc"]
    return 1.0 if area is None else float(area)


def _place(one: "ClassReport", entry: Values) -> tuple[int, int]:
    """Return the rank within its group, then the group."""
    own = [other for other in one.pictures if other["group"] == entry["group"]]
    return own.index(entry), list(_GROUPS).index(entry["group"])


def _sections(one: "ClassReport", entries: list[Values]) -> list[Values]:
    """Return the groups that have pictures, with their files inlined."""
    groups = []
    for group, (title, note) in _TITLES.items():
        cards = [entry | {"tiles": _tiles(one, entry)} for entry in entries if entry["group"] == group]
        groups.append({"title": title, "note": note, "cards": cards})
    return [group for group in groups if group["cards"]]


def _tiles(one: "ClassReport", entry: Values) -> list[Values]:
    files = entry["files"]
    what = f"{entry['kind']} image {entry['path']}"
    captions = {
        "picture": ("image", f"The {what}"),
        "heatmap": ("heatmap", f"Anomaly map of the {what}"),
        "mask": ("labelled defect", f"Labelled defect outlined in the {what}"),
        "levels": ("resolution", f"Resolution levels spent on the {what}"),
        "expected_levels": ("expected resolution", f"Resolution levels expected of a normal part, for the {what}"),
    }
    return [
        {"key": key, "caption": caption, "alt": alt, "uri": _uri(one.folder / files[key]) if key in files else None}
        for key, (caption, alt) in captions.items()
        if key in files or key == "mask"
    ]


def _uri(path: Path) -> str:
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
