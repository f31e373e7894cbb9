"""From the landing area to the dataset: each object is looked at once, and lands in exactly one place.

Its file is put in place before the ledger says so, and nothing counts that the ledger does not say. So after a crash at
any step the next run does what is missing, over whatever the crash left behind. The originals stay where they landed.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

from flows.adapters.landing import Landing, LandingError, Object, listed
from flows.retrain.arrivals_index import Index, Known, known
from flows.retrain.arrivals_ledger import Entry, Ledger, Places, State, put, write_lists
from pvqae.core import config, errors
from pvqae.core.errors import PvqaeError
from pvqae.core.files import digest
from pvqae.datasets import arrivals, splits
from pvqae.samples import images

# A file and its class → the champion's score of it, and the score above which a person should look at it.
Screen = Callable[[str, Path], tuple[float, float]]
PATIENCE = 3  # objects in a row that do not arrive: then the area itself is asked whether it is well
LONGEST = 600.0  # seconds without any object that arrives, after which the rest waits for the next run


@dataclass(frozen=True)
class Taken:
    """What one run took: entries by state, what did not arrive, what had to wait and why (reason → images)."""

    entries: tuple[Entry, ...] = ()
    failed: tuple[str, ...] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)

    def count(self, *states: State) -> int:
        return sum(entry.state in states for entry in self.entries)

    @property
    def lines(self) -> tuple[str, ...]:
        """For people: what came, what did not."""
        counts = Counter(entry.state for entry in self.entries)
        came = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        lines = [f"{len(self.entries)} new objects: {came}"] if counts else ["no new objects"]
        lines += [f"{n} objects wait: {reason}" for reason, n in sorted(self.waiting.items())]
        return (*lines, *(f"did not arrive: {reason}" for reason in self.failed))


def no_champion(category: str) -> str:
    """Why a class's images wait."""
    return f"{category} has no champion yet: run `python -m flows train` first"


def new_objects(
    landing: Landing, ledger: Ledger, classes: Sequence[str], ready: Sequence[str], most: int
) -> tuple[list[Object], Counter[str]]:
    """Objects without a line in the ledger, at most `most`; and why others wait (reason → images).

    By key, but first those that failed least often: what never arrives must not keep out what stands behind it.
    `ready`: the `classes` that have a champion to screen with.
    """
    waiting: Counter[str] = Counter()

    def why(item: Object) -> str:
        category, slash, _ = item.key.partition("/")
        if not slash or category not in classes:
            return f"{category if slash else 'no class'} is no class of the dataset ({', '.join(classes)})"
        return "" if category in ready else no_champion(category)

    def usable(item: Object) -> bool:
        if reason := why(item):
            waiting[reason] += 1
        return not reason

    found, unlisted = listed(landing)
    waiting.update(unlisted)
    fresh = [item for item in found if item not in ledger and usable(item)]
    fresh.sort(key=lambda item: (ledger.tries(item), item))
    if len(fresh) > most:
        waiting[f"more than landing.max_objects ({most}) for one run"] = len(fresh) - most
    return fresh[:most], waiting


class Intake:
    """Decides about objects one after another. The caller holds the dataset's lock."""

    def __init__(
        self,
        landing: Landing,
        places: Places,
        ledger: Ledger,
        index: Index,
        screen: Screen,
        params: config.Params,
        on_entry: Callable[[Entry], None] = lambda entry: None,
    ) -> None:
        self._landing, self._places, self._ledger, self._index = landing, places, ledger, index
        self._screen, self._rules, self._limits = screen, params.retrain, params.landing
        self._on_entry, self._known = on_entry, partial(known, bits=params.image.bits)

    def take(self, items: Iterable[Object], waiting: Mapping[str, int] = {}) -> Taken:
        """Look at each object and put it where it belongs; those that do not arrive are left to the next run."""
        self._recover()
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
            if tired and tired % PATIENCE == 0 and not self._goes_on(since):
                break
        self._ledger.tried(failed)
        write_lists(self._places, self._ledger)
        rest = Counter({"the landing area does not answer": len(left)}) if left else Counter[str]()
        return Taken(tuple(entries), tuple(failed.values()), Counter(waiting) + rest)

    def _goes_on(self, since: float) -> bool:
        """Whether the area is well although some objects do not arrive: it still lists, and not too slowly."""
        try:
            next(iter(self._landing.objects()), None)
        except LandingError:
            return False
        return time.monotonic() - since < LONGEST

    def _recover(self) -> None:
        """Forget half downloads; know what was accepted or held before."""
        shutil.rmtree(self._places.home / "incoming", ignore_errors=True)
        (self._places.home / "incoming").mkdir(parents=True)
        for entry in self._ledger.entries("accepted", "review"):
            file = self._places.file(entry)
            image = self._known(file, entry.key, entry.category, not entry.defect) if file and file.exists() else "gone"
            if isinstance(image, Known):
                self._index.add(image)

    def _one(self, item: Object) -> Entry:
        incoming = self._places.home / "incoming" / item.id
        entry, image = self._decide(item, incoming)
        if target := self._places.file(entry):
            put(incoming, target)
        incoming.unlink(missing_ok=True)
        self._ledger.append([entry])
        if image and entry.state in ("accepted", "review"):
            self._index.add(image)
        self._on_entry(entry)
        return entry

    def _decide(self, item: Object, file: Path) -> tuple[Entry, Known | None]:
        """The decision about an object, and what is known of its image; downloads it to `file`."""
        category = item.key.partition("/")[0]
        entry = Entry(item.key, item.etag, item.size, "quarantined", "", category)
        if PurePosixPath(item.key).suffix.lower() not in images.SUFFIXES:
            return replace(entry, reason=f"expected a name ending in {', '.join(sorted(images.SUFFIXES))}"), None
        if item.size > self._limits.max_bytes:
            text = f"expected at most {self._limits.max_bytes} bytes (landing.max_bytes), found {item.size}"
            return replace(entry, reason=text), None
        self._landing.fetch(item, file)
        sha256 = digest(file)
        entry = replace(entry, sha256=sha256, name=arrivals.file_name(item.key, sha256))
        if copy := self._index.copy_of(sha256):
            return replace(entry, state="duplicate", reason=f"the same file as {copy}", name=""), None
        image = self._known(file, item.key, category, True)
        if isinstance(image, str):
            return replace(entry, reason=image), None
        if misfit := self._index.misfit(image):
            return replace(entry, reason=misfit), None
        alike, other = self._index.nearest(image)
        if alike >= self._rules.duplicate:
            reason = f"the same photograph as {other}: thumbnails correlate by {alike:.4f}"
            return replace(entry, state="duplicate", reason=reason, name=""), None
        return self._judge(entry, file), image

    def _judge(self, entry: Entry, file: Path) -> Entry:
        """The gate's share first, by the part alone: what judges champions must not be chosen by one."""
        group = arrivals.group_id(entry.category, entry.name)
        if splits.fraction("arrived", group) < self._rules.gate_share:
            return replace(entry, state="accepted", part="gate", reason="by the hash of its part, before screening")
        score, limit = self._screen(entry.category, file)
        if score > limit:
            reason = f"the champion scores it {score:.3g}, above {limit:.3g}: is it really a good part?"
            return replace(entry, state="review", part="good", reason=reason, score=score)
        reason = f"the champion scores it {score:.3g}, at most {limit:.3g}"
        return replace(entry, state="accepted", part="good", reason=reason, score=score)
