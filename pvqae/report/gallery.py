"""Which images a report shows, chosen while they stream past: only the chosen ones are drawn and kept."""

import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pvqae.report import pictures

if TYPE_CHECKING:
    from pvqae.inference.scoring import Scored

Files = dict[str, bytes]  # file name ending, e.g. heatmap.webp → content

# Group → (label, sign): the images of this label with the highest (+1) or lowest (-1) scores. The hard cases come
# first: an image that fits two groups is shown in the first.
GROUPS = {
    "normal_high": ("normal", 1),
    "defect_low": ("defect", -1),
    "defect_high": ("defect", 1),
    "normal_low": ("normal", -1),
}


@dataclass(frozen=True)
class Picture:
    """One chosen image: its row of images.csv and its drawn pictures."""

    row: dict[str, Any]
    files: Files


class Gallery:
    """At most `size` images per group of GROUPS, whatever passes by."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heaps: dict[str, list[tuple[float, str, Picture]]] = {group: [] for group in GROUPS}

    def offer(self, row: dict[str, Any], draw: Callable[[], Files]) -> None:
        """Keep the image of `row` (a row of images.csv) if it is among the extremes so far; only then `draw` it."""
        wanted = [group for group in GROUPS if self._wants(group, row)]
        if not wanted:
            return
        picture = Picture(row, draw())
        for group in wanted:
            heap = self._heaps[group]
            heapq.heappush(heap, (*_rank(group, row), picture))
            if len(heap) > self._size:
                heapq.heappop(heap)

    def _wants(self, group: str, row: dict[str, Any]) -> bool:
        if row["label"] != GROUPS[group][0] or not self._size:
            return False
        heap = self._heaps[group]
        return len(heap) < self._size or _rank(group, row) > heap[0][:2]

    def chosen(self) -> list[tuple[str, Picture]]:
        """(group, picture), the most extreme first, each image once."""
        seen: set[str] = set()
        result = []
        for group, heap in self._heaps.items():
            fresh = [item for item in sorted(heap, key=lambda item: item[:2], reverse=True) if item[1] not in seen]
            seen.update(sample for _, sample, _ in fresh)
            result += [(group, picture) for _, _, picture in fresh]
        return result

    def write(self, folder: Path) -> None:
        """pictures/ and pictures.json below `folder`. File names are numbers: nothing of a user's name gets in."""
        (folder / "pictures").mkdir()
        entries = []
        for number, (group, picture) in enumerate(self.chosen()):
            names = {ending.split(".")[0]: f"pictures/{number:03d}-{ending}" for ending in picture.files}
            for ending, content in picture.files.items():
                (folder / "pictures" / f"{number:03d}-{ending}").write_bytes(content)
            entries.append({"group": group, **picture.row, "files": names})
        (folder / "pictures.json").write_text(json.dumps(entries, indent=1, allow_nan=False) + "\n", "utf-8")


def draw(scored: "Scored", mask: NDArray[np.bool_] | None, card: dict[str, Any], levels: int) -> Files:
    """The pictures of one image on the card's scale; `mask` (H, W) or None where there is none to show."""
    small = pictures.thumbnail(scored.picture)
    shape = small.shape[0], small.shape[1]
    low, high = card["map_scale"]
    heat = pictures.heatmap(small, pictures.shrink(scored.anomaly_map), (low, high), card["map_threshold"])
    files = {
        "picture.webp": pictures.webp(small),
        "heatmap.webp": pictures.webp(heat),
        "levels.png": pictures.png(pictures.level_map(scored.levels, levels, shape)),
        "expected_levels.png": pictures.png(pictures.level_map(scored.expected_levels, levels, shape)),
    }
    if mask is not None:
        files["mask.webp"] = pictures.webp(pictures.outline(small, pictures.shrink(mask)))
    return files


def _rank(group: str, row: dict[str, Any]) -> tuple[float, str]:
    return GROUPS[group][1] * row["image_score"], row["sample_id"]
