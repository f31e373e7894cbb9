"""From the landing area to the dataset: each object is looked at once and lands in exactly one place.

Its file is put in place before the ledger says so, and nothing counts that the ledger does not say. So after a crash at
any step the next run does what is missing, over whatever the crash left. The originals stay where they landed.
"""

import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from flows.adapters.landing import Landing, LandingError, Object, listed
from flows.adapters.tracking import Registry
from flows.core import lineage
from flows.retrain.index import Index, Known
from flows.retrain.ledger import Entry, IntakePaths, LabelLog, Ledger, Taken
from flows.versions import promotions
from pvqae.core import config, errors
from pvqae.core.errors import DataError, PvqaeError
from pvqae.core.files import digest
from pvqae.datasets import arrivals, splits
from pvqae.samples import images

_PATIENCE = 3  # objects in a row that do not arrive: then the area itself is asked whether it is well
_SILENT = "landing.url does not answer, or too slowly: see its server and the network; the next run goes on"
_LONGEST = 600.0  # seconds without any object that arrives, after which the rest waits for the next run


class Champions:
    """Champions of the classes of a dataset; a bundle is fetched below `place`, and loaded, when it is first needed."""

    def __init__(self, registry: Registry, dataset: str, place: Path, margin: float) -> None:
        self._registry, self._dataset, self._place, self.margin = registry, dataset, place, margin
        self._loaded: dict[str, Any] = {}
        self._broken: dict[str, PvqaeError] = {}  # not fetched again for each image

    def version(self, category: str) -> str:
        """Return the class's champion, "" when it has none. Raises `PromotionError` for one that was deleted."""
        return promotions.held(self._registry, lineage.model_name(self._dataset, category)) or ""

    def waits(self, categories: Iterable[str]) -> dict[str, str]:
        """Return why the images of each class have to wait, with the repair; "" for a class that has a champion."""
        return {category: self._wait(category) for category in categories}

    def _wait(self, category: str) -> str:
        try:
            if self.version(category):
                return ""
            return _no_champion(category)
        except PvqaeError as error:
            return str(error)

    def screen(self, category: str, path: Path) -> tuple[float, float]:
        """Score a file; return the score and the limit above which a person should look at it.

        Raises `IntegrityError` when the bundle is not the registered one.
        """
        if category in self._broken:
            raise self._broken[category]
        try:
            detector = self._loaded.get(category) or self._load(category)
        except PvqaeError as error:
            self._broken[category] = error
            raise
        return float(detector.score(path).image_score), _limit(detector.card, self.margin)

    def _load(self, category: str) -> Any:
        from flows.versions import version_bundles
        from pvqae.inference import bundle  # torch: only when there is something to score

        name, version = lineage.model_name(self._dataset, category), self.version(category)
        if not version:
            raise DataError(
                f"{name}: there is no champion to screen new images with; run `python -m flows train` first"
            )
        self._place.mkdir(parents=True, exist_ok=True)
        folder = version_bundles.fetch(self._registry, name, version, self._place / f"{category}-{version}")
        self._loaded[category] = bundle.load(folder)
        return self._loaded[category]


def _limit(card: Mapping[str, Any], margin: float) -> float:
    """Return the highest score of the calibration normals plus `margin` times its distance from their median.

    The threshold itself would hold every twentieth good part; only that of few normals is higher than all of them.
    """
    scores = [float(score) for score in card["scores"]]
    highest = max(scores)
    return max(float(card["threshold"]), highest + margin * (highest - statistics.median(scores)))


def _no_champion(category: str) -> str:
    return f"{category} has no champion yet: run `python -m flows train` first"


def new_objects(
    landing: Landing,
    ledger: Ledger,
    classes: Sequence[str],
    ready: Sequence[str],
    most: int,
    waits: Mapping[str, str] | None = None,
) -> tuple[list[Object], Taken]:
    """Return at most `most` objects without a line in the ledger, and why others wait or could not be listed.

    They are sorted by key, but first come those that failed least often: what never arrives must not keep out what
    stands behind it. `ready` are the `classes` that have a champion to screen with; `waits` says why the others wait,
    if it is not for their first one (`Champions.waits`).
    """
    waiting: Counter[str] = Counter()

    def why(item: Object) -> str:
        category, slash, _ = item.key.partition("/")
        if slash and category in ready:
            return ""
        if not is_image(item.key):  # nothing that a champion or a folder would help
            return "no image: remove it from the landing area, or export it as PNG"
        if slash and category in classes:
            return (waits or {}).get(category) or _no_champion(category)
        found = f"{category}/" if slash else "no folder"
        return f"expected CLASS/FILE with one of the classes {', '.join(classes)}; found {found}: move them"

    def usable(item: Object) -> bool:
        if reason := why(item):
            waiting[reason] += 1
        return not reason

    found, unseen = listed(landing)
    fresh = [item for item in found if item not in ledger and usable(item)]
    fresh.sort(key=lambda item: (ledger.tries(item), item))
    if len(fresh) > most:
        waiting[f"more than landing.max_objects ({most}) for one run"] = len(fresh) - most
    return fresh[:most], Taken(waiting=waiting, unseen=unseen)


def is_image(key: str) -> bool:
    """Tell by its name whether an object can be an image."""
    return PurePosixPath(key).suffix.lower() in images.SUFFIXES


def decide(
    entry: Entry,
    file: Path,
    index: Index,
    params: config.Params,
    accept: Callable[[Entry, Path], Entry],
    normal: bool = True,
) -> tuple[Entry, Known | None]:
    """Decide about the image in `file`, which `entry` names: refuse it, or let `accept` say where it belongs.

    Refused are copies, damaged files and, of images that claim to be `normal`, those that can't be of their class.
    Returns the entry with its state and reason, and what the index has to know of the image; None of a refused one.
    """
    if copy := index.copy_of(entry.sha256):
        return replace(entry, state="duplicate", reason=f"the same file as {copy}", name=""), None
    image = Known.read(file, entry.key, entry.category, normal, params.image.bits)
    misfit = image if isinstance(image, str) else index.misfit(image) if normal else ""
    if isinstance(image, str) or misfit:
        return replace(entry, state="quarantined", reason=misfit), None
    alike, other = index.nearest(image)
    if alike >= params.retrain.duplicate:
        reason = f"the same photograph as {other}: thumbnails correlate by {alike:.4f}"
        return replace(entry, state="duplicate", reason=reason, name=""), None
    return accept(entry, file), image


class Intake:
    """Decides about objects one after another. The caller holds the dataset's lock.

    `screen`: a class and a file → the champion's score of it, and the score above which a person should look at it.
    """

    def __init__(
        self,
        landing: Landing,
        paths: IntakePaths,
        ledger: Ledger,
        index: Index,
        screen: Callable[[str, Path], tuple[float, float]],
        params: config.Params,
    ) -> None:
        self._landing, self._paths, self._ledger, self._index = landing, paths, ledger, index
        self._screen, self._params = screen, params
        self._strays: dict[str, str] = {}  # sha256 of a wrong photograph → who said so

    def take(self, items: Iterable[Object], others: Taken = Taken()) -> Taken:  # noqa: B008  # frozen
        """Look at each object and put it where it belongs; leave those that do not arrive to the next run.

        `others` says what waits; it is part of what is returned.
        """
        shutil.rmtree(self._paths.incoming, ignore_errors=True)  # half downloads
        self._paths.incoming.mkdir(parents=True)
        standing = LabelLog(self._paths.labels).standing().values()
        self._strays = {said.label.sha256: said.label.words() for said in standing if said.label.label == "neither"}
        held = self._ledger.entries("accepted", "review")
        self._index.remember(self._paths, held, self._params.image.bits)
        entries: list[Entry] = []
        failed: dict[Object, str] = {}
        left, tired, since = list(items), 0, time.monotonic()
        while left:
            item = left.pop(0)
            try:
                entries.append(self._one(item))
                tired, since = 0, time.monotonic()
            except PvqaeError as error:
                if errors.is_full(error):  # ours, no fault of the object
                    raise
                failed[item] = str(error)
                tired += 1
            if tired and tired % _PATIENCE == 0 and not self._goes_on(since):
                break
        self._ledger.tried(failed)
        tables = self._ledger.write_lists(self._paths)
        waiting = Counter(others.waiting) + Counter({_SILENT: len(left)})
        return replace(others, entries=tuple(entries), failed=tuple(failed.values()), waiting=waiting, tables=tables)

    def _goes_on(self, since: float) -> bool:
        """Tell whether the area is well although some objects do not arrive: it still lists, and not too slowly."""
        try:
            next(iter(self._landing.objects()), None)
        except LandingError:
            return False
        return time.monotonic() - since < _LONGEST

    def _one(self, item: Object) -> Entry:
        incoming = self._paths.incoming / item.id
        entry, image = self._decide(item, incoming)
        self._paths.put(incoming, entry)
        incoming.unlink(missing_ok=True)
        self._ledger.append([entry])
        if image:
            self._index.add(image)
        return entry

    def _decide(self, item: Object, file: Path) -> tuple[Entry, Known | None]:
        """Decide about an object, which is downloaded to `file` unless its name or size forbids that."""
        category, most = item.key.partition("/")[0], self._params.landing.max_bytes
        entry = Entry(item.key, item.etag, item.size, "quarantined", "", category)
        if not is_image(item.key):
            expected = f"expected a name ending in {', '.join(sorted(images.SUFFIXES))}"
            return replace(entry, reason=f"{expected}; export the image as PNG and upload that"), None
        if item.size > most:
            reason = (
                f"expected at most {most} bytes (landing.max_bytes), found {item.size}; raise it, or save it smaller"
            )
            return replace(entry, reason=reason), None
        self._landing.fetch(item, file)
        sha256 = digest(file)
        entry = replace(entry, sha256=sha256, name=arrivals.file_name(item.key, sha256))
        if said := self._strays.get(sha256):
            return replace(entry, reason=f"a wrong photograph, {said}"), None
        return decide(entry, file, self._index, self._params, self._screened)

    def _screened(self, entry: Entry, file: Path) -> Entry:
        """Set the gate's share aside by the part alone, as no champion may choose what judges it; screen the rest."""
        group = arrivals.group_id(entry.category, entry.name)
        if splits.fraction("arrived", group) < self._params.retrain.gate_share:
            return replace(entry, state="accepted", part="gate", reason="by the hash of its part, before screening")
        score, limit = self._screen(entry.category, file)
        if score > limit:
            reason = f"the champion scores it {score:.3g}, above {limit:.3g}: is it really a good part?"
            return replace(entry, state="review", part="good", reason=reason, score=score)
        reason = f"the champion scores it {score:.3g}, at most {limit:.3g}"
        return replace(entry, state="accepted", part="good", reason=reason, score=score)
