"""The champion's opinion of images that claim to be normal, before they may teach the next one."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows import lineage, promote, promotions
from flows.adapters.tracking import Registry
from pvqae.errors import DataError, PvqaeError


def limit(card: dict[str, Any], margin: float) -> float:
    """The score above which a person should look: the highest of the calibration normals and `margin` times its
    distance from their median. The threshold itself would hold every twentieth good part."""
    scores = [float(score) for score in card["scores"]]
    highest = max(scores)
    return highest + margin * (highest - statistics.median(scores))


class Champions:
    """Champions of the classes of a dataset; a bundle is fetched below `place`, and loaded, when it is first needed."""

    def __init__(self, registry: Registry, dataset: str, place: Path, margin: float) -> None:
        self._registry, self._dataset, self._place, self._margin = registry, dataset, place, margin
        self._loaded: dict[str, Any] = {}
        self._broken: dict[str, PvqaeError] = {}  # not fetched again for each image

    def version(self, category: str) -> str:
        """The class's champion, "" when it has none. Raises `PromotionError` for one that was deleted."""
        return promotions.held_champion(self._registry, lineage.model_name(self._dataset, category)) or ""

    def ready(self, categories: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The classes that have a champion, and why others have none where that can be told."""
        found: list[str] = []
        lost: dict[str, str] = {}
        for category in categories:
            try:
                found += [category] if self.version(category) else []
            except PvqaeError as error:
                lost[category] = str(error)
        return found, lost

    def screen(self, category: str, path: Path) -> tuple[float, float]:
        """The champion's score of a file, and the limit. Raises `IntegrityError` for another bundle than registered."""
        if category in self._broken:
            raise self._broken[category]
        try:
            detector = self._loaded.get(category) or self._load(category)
        except PvqaeError as error:
            self._broken[category] = error
            raise
        return float(detector.score(path).image_score), limit(detector.card, self._margin)

    def _load(self, category: str) -> Any:
        from pvqae.inference import bundle  # torch: only when there is something to score

        name, version = lineage.model_name(self._dataset, category), self.version(category)
        if not version:
            raise DataError(
                f"{name}: expected a champion to screen with, found none; run `python -m flows train` first"
            )
        self._place.mkdir(parents=True, exist_ok=True)
        folder = promote.fetch(self._registry, name, version, self._place / f"{category}-{version}")
        self._loaded[category] = bundle.load(folder)
        return self._loaded[category]
