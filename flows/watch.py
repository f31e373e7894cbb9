"""The landing watcher: says that new images arrived, once they stopped arriving, by an event of Prefect."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows import known
from flows.adapters.landing import Object, listed
from flows.adapters.notify import Notifier
from flows.arrivals_ledger import Ledger
from flows.arrivals_places import Places
from pvqae import config
from pvqae.config import Params
from pvqae.errors import ConfigError

EVENT = "pvqae.samples.arrived"
CONFIG = "params.yaml"
NOTHING: frozenset[Object] = frozenset()


def announce(notifier: Notifier, dataset: str, category: str, prefix: str = "", count: int = 0) -> None:
    """Send the event that starts a retraining of `dataset`. `count` images of `category` lie below `prefix`."""
    payload = {"class": category, "prefix": prefix, "count": count}
    notifier.emit(EVENT, f"pvqae.dataset.{dataset}", payload)


@dataclass
class Watcher:
    """Looks at the landing area of every dataset. An image is told of once, and again only by a new watcher, or once
    params.yaml has been repaired: the retraining that was told of it may have failed for that."""

    root: Path
    notifier: Notifier
    say: Callable[[str], None] = print
    settings: Params | None = None  # the last valid ones
    _before: dict[str, frozenset[Object]] = field(default_factory=dict)
    _told: dict[str, frozenset[Object]] = field(default_factory=dict)
    _ill: dict[str, str] = field(default_factory=dict)

    def look(self) -> None:
        """One look at everything. What goes wrong is said once, stops nothing else, and is tried again the next time.

        Raises `ConfigError` where the settings were never valid.
        """
        own = self._settings()
        for dataset in known.datasets(self.root, own):
            data = own.data.model_copy(update={"name": dataset})
            try:
                wrong = "; ".join(self._look(dataset, own.model_copy(update={"data": data})))
            except Exception as error:  # of a network, a disk, a server: they come back, and a dead watcher does not
                wrong = f"{error}; trying again"
            self._note(dataset, wrong)

    def _settings(self) -> Params:
        try:
            self.settings = config.load(self.root / "params.yaml")
        except ConfigError as error:
            if self.settings is None:
                raise
            self._note(CONFIG, f"{error}\nthe last valid settings are kept until it is repaired")
            return self.settings
        if CONFIG in self._ill:
            self._told.clear()
            self._note(CONFIG, "")
            self.say(f"{CONFIG} is valid again")
        return self.settings

    def _note(self, what: str, wrong: str) -> None:
        if wrong and self._ill.get(what) != wrong:
            self.say(wrong if what == CONFIG else f"{what}: {wrong}")
        self._ill[what] = wrong
        if not wrong:
            del self._ill[what]

    def _look(self, dataset: str, params: Params) -> tuple[str, ...]:
        """Why not all of the area was seen."""
        area = known.shore(self.root, params)
        ledger = Ledger(Places(self.root, dataset).ledger)
        found, unlisted = listed(area) if area else ([], ())
        new = frozenset(item for item in found if item not in ledger)
        settled = new == self._before.get(dataset)
        self._before[dataset] = new
        fresh = new - self._told.get(dataset, NOTHING)
        if settled and fresh:
            self._tell(dataset, fresh)
            self._told[dataset] = new
        return unlisted

    def _tell(self, dataset: str, fresh: frozenset[Object]) -> None:
        for category, count in sorted(Counter(item.key.partition("/")[0] for item in fresh).items()):
            self.say(f"{dataset}: {count} new images of {category}")
            announce(self.notifier, dataset, category, f"{category}/", count)


def watch(watcher: Watcher) -> None:
    """Look every `landing.poll` seconds until the process is ended."""
    while True:
        watcher.look()
        assert watcher.settings is not None
        time.sleep(watcher.settings.landing.poll)
