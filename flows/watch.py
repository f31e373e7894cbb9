"""The landing watcher: says that new images arrived, once they stopped arriving, by an event of Prefect."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows import known
from flows.adapters.landing import LandingError, Object
from flows.adapters.notify import Notifier
from flows.arrivals_ledger import Ledger
from flows.arrivals_places import Places
from pvqae import config

EVENT = "pvqae.samples.arrived"
NOTHING: frozenset[Object] = frozenset()


def announce(notifier: Notifier, dataset: str, category: str, prefix: str = "", count: int = 0) -> None:
    """Send the event that starts a retraining of `dataset`. `count` images of `category` lie below `prefix`."""
    payload = {"class": category, "prefix": prefix, "count": count}
    notifier.emit(EVENT, f"pvqae.dataset.{dataset}", payload)


@dataclass
class Watcher:
    """Looks at the landing area of every dataset. An image is told of once, and again only by a new watcher."""

    root: Path
    notifier: Notifier
    say: Callable[[str], None] = print
    _before: dict[str, frozenset[Object]] = field(default_factory=dict)
    _told: dict[str, frozenset[Object]] = field(default_factory=dict)
    _ill: set[str] = field(default_factory=set)

    def look(self) -> None:
        """One look at everything. What can't be listed is said once, and looked at again the next time."""
        own = config.load(self.root / "params.yaml")
        for dataset in known.datasets(self.root):
            data = own.data.model_copy(update={"name": dataset})
            try:
                self._look(dataset, own.model_copy(update={"data": data}))
                self._ill.discard(dataset)
            except LandingError as error:
                if dataset not in self._ill:
                    self.say(f"{dataset}: {error}")
                self._ill.add(dataset)

    def _look(self, dataset: str, params: config.Params) -> None:
        area = known.shore(self.root, params)
        ledger = Ledger(Places(self.root, dataset).ledger)
        new = frozenset(item for item in area.objects() if item not in ledger) if area else NOTHING
        settled = new == self._before.get(dataset)
        self._before[dataset] = new
        fresh = new - self._told.get(dataset, NOTHING)
        if settled and fresh:
            self._tell(dataset, fresh)
            self._told[dataset] = new

    def _tell(self, dataset: str, fresh: frozenset[Object]) -> None:
        for category, count in sorted(Counter(item.key.partition("/")[0] for item in fresh).items()):
            self.say(f"{dataset}: {count} new images of {category}")
            announce(self.notifier, dataset, category, f"{category}/", count)


def watch(watcher: Watcher, poll: float) -> None:
    """Look every `poll` seconds until the process is ended. An event that can't be sent is tried again."""
    while True:
        try:
            watcher.look()
        except OSError as error:  # the server is away; nothing was marked as told
            watcher.say(f"not told, trying again: {error}")
        time.sleep(poll)
