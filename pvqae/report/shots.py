"""The pictures of a report as data in its page: which of them, bounded in bytes, and what can be filtered."""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvqae.report.gallery import GROUPS

if TYPE_CHECKING:
    from pvqae.report.report import ClassReport

Values = dict[str, Any]

BUDGET = 4_000_000  # bytes of all pictures of a page, before base64 makes them a third longer
TITLES = {
    "normal_high": ("Good images with the highest scores", "Most likely to cause false alarms."),
    "defect_low": ("Defects with the lowest scores", "Most likely to be missed."),
    "defect_high": ("Defects with the highest scores", "Found most clearly."),
    "normal_low": ("Good images with the lowest scores", "The most ordinary ones."),
}


@dataclass(frozen=True)
class Shown:
    """`groups`: class → its picture groups, inlined; `n` of `drawn` pictures are on the page."""

    groups: dict[str, list[Values]]
    n: int
    drawn: int


def choose(classes: Sequence["ClassReport"], budget: int = BUDGET) -> Shown:
    """The most telling pictures within `budget` bytes: first of each group in turn, weakest classes first.

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
    groups = {classes[number].name: _groups(classes[number], entries) for number, entries in kept.items()}
    return Shown(groups, sum(map(len, kept.values())), len(entries))


def choices(groups: Iterable[tuple[str, list[Values]]]) -> list[Values]:
    """The filters of the gallery: each key's values with the number of pictures, in the order of the page."""
    cards = [card | {"class": name} for name, own in groups for group in own for card in group["cards"]]
    return [
        {"key": key, "values": sorted(Counter(card[key] for card in cards).items())}
        for key in ("class", "kind", "outcome")
    ]


def _area(one: "ClassReport") -> float:
    area = one.metrics["image_auroc"]
    return 1.0 if area is None else float(area)


def _place(one: "ClassReport", entry: Values) -> tuple[int, int]:
    """Rank within its group, then the group."""
    own = [other for other in one.pictures if other["group"] == entry["group"]]
    return own.index(entry), list(GROUPS).index(entry["group"])


def _groups(one: "ClassReport", entries: list[Values]) -> list[Values]:
    """The groups that have pictures, with their files inlined."""
    groups = []
    for group, (title, note) in TITLES.items():
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
    ]


def _uri(path: Path) -> str:
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
