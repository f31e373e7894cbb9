"""The datasets that were trained here and to which new images can come, and where theirs arrive.

The landing watcher: says that new images arrived, once they stopped arriving, by an event of Prefect.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows.adapters import landing
from flows.adapters.landing import Object, listed
from flows.adapters.prefect_client import Notifier
from flows.retrain.arrivals_ledger import Ledger, Places
from pvqae.core import config
from pvqae.core.config import Params
from pvqae.core.errors import ConfigError, PvqaeError

PLACE = "{dataset}"  # in landing.url: each dataset has a place of its own


def datasets(root: Path, own: Params | None = None) -> list[str]:
    """Names, sorted: the project's own and those with a workspace, without those that a stage makes. One whose params
    can't be read is among them: whoever works on it says what is wrong."""
    own = own or config.load(root / "params.yaml")
    if not own.landing.url:
        return []
    found = {own.data.name: own} | {file.parent.name: _params(file) for file in _workspaces(root)}
    return sorted(name for name, params in found.items() if _takes(root, name, params))


def _takes(root: Path, name: str, params: Params | None) -> bool:
    made = params is not None and params.data.source == "demo"
    return not made and (root / "data" / "raw" / f"{name}.dvc").exists()


def _workspaces(root: Path) -> list[Path]:
    return sorted((root / ".pvqae" / "runs").glob("*/params.yaml"))


def _params(file: Path) -> Params | None:
    try:
        return config.load(file)
    except PvqaeError:  # of another version of the project, or half written
        return None


def shore(root: Path, params: Params) -> landing.Landing | None:
    """The landing area of the params' dataset, None without a landing.url; a relative folder is one of the project."""
    url = params.landing.url.replace(PLACE, params.data.name)
    if not url:
        return None
    return landing.open_landing(url if "://" in url else str(root / Path(url).expanduser()), params.landing.retries)


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
        for dataset in datasets(self.root, own):
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
        area = shore(self.root, params)
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
