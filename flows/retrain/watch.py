"""Which datasets take new images and where these arrive; the watcher, which tells Prefect once images have arrived."""

import shlex
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flows.adapters import landing
from flows.adapters.landing import Object, listed
from flows.retrain.ledger import IntakePaths, Ledger
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.config import Params
from pvqae.core.errors import ConfigError, PvqaeError
from pvqae.core.files import write_text

if TYPE_CHECKING:
    from flows.adapters.prefect_client import Crashes, Notifier

_PLACE = "{dataset}"  # in landing.url: each dataset has a place of its own


def datasets(root: Path, own: Params | None = None) -> list[str]:
    """Return the sorted names of the project's own dataset and those with a workspace, but none that a stage makes.

    One whose params can't be read is among them: the retraining of it says what is wrong.
    """
    own = own or config.load(root / "params.yaml")
    if not own.landing.url:
        return []
    files = (root / ".pvqae" / "runs").glob("*/params.yaml")
    found = {own.data.name: own} | {file.parent.name: _params(file) for file in files}
    kept = [name for name, params in found.items() if not (params and params.data.source == "demo")]
    return sorted(name for name in kept if (root / "data" / "raw" / f"{name}.dvc").exists())


def _params(file: Path) -> Params | None:
    try:
        return config.load(file)
    except PvqaeError:  # of another version of the project, or half written
        return None


def params_of(root: Path, dataset: str) -> str:
    """Write and return a file with the params that `dataset` was trained with; "" for the project's own params.

    Of everything that changes no result it has the project's present settings. Raises `ConfigError` for a dataset that
    was never trained.
    """
    own = config.load(root / "params.yaml")
    if dataset in ("", own.data.name):
        return ""
    saved = root / ".pvqae" / "runs" / dataset / "params.yaml"
    if not saved.exists():
        raise ConfigError(
            f"--dataset {dataset}: no dataset of this name was trained here; run "
            f"`python -m flows train --set data.name={shlex.quote(dataset)} ...` first, or give the same --set here"
        )
    merged = config.load(saved).model_copy(update={key: getattr(own, key) for key in workspace.NO_RESULT})
    target = root / ".pvqae" / "arrivals" / dataset / "params.yaml"
    write_text(target, config.dump(merged))
    return str(target)


def refuse_made(
    params: Params, why: str = "so nothing can arrive in it", then: str = "python -m flows retrain --dataset parts"
) -> None:
    """Raise `ConfigError` for a dataset that a stage makes: the stage would remove whatever came in."""
    if params.data.source == "demo":
        raise ConfigError(
            f"{params.data.name} is made by a stage, {why}; make a dataset of your own of it:\n"
            "  pvqae data demo /tmp/parts && python -m flows train --set data.source=mvtec --set data.name=parts "
            f"--set data.root=/tmp/parts\n  {then}"
        )


def landing_area(root: Path, params: Params) -> landing.Landing | None:
    """Open the landing area of the params' dataset, in the project if it is a relative folder; None without a url."""
    url = params.landing.url.replace(_PLACE, params.data.name)
    if not url:
        return None
    return landing.open_landing(url if "://" in url else str(root / Path(url).expanduser()), params.landing.retries)


EVENT = "pvqae.samples.arrived"
RETRAININGS = ("schedule", "samples", "drift")  # deployments, in infra/prefect.yaml
_TRIES = 3  # of one retraining that crashes: more would not help
_CONFIG = "params.yaml"


@dataclass
class Watcher:
    """Looks at the landing area of every dataset, and for retrainings whose process or machine died.

    An image is reported once, and again only by a new watcher, or once params.yaml has been repaired: the retraining
    that it started may have failed for that.
    """

    root: Path
    notifier: "Notifier"
    say: Callable[[str], None] = print
    crashes: "Crashes | None" = None
    settings: Params | None = None  # the last valid ones
    _before: dict[str, frozenset[Object]] = field(default_factory=dict)
    _told: dict[str, frozenset[Object]] = field(default_factory=dict)
    _ill: dict[str, str] = field(default_factory=dict)

    def look(self) -> None:
        """Look at everything once. An error is reported once, stops nothing else, and the next look tries again.

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
        try:
            self._ask_again()
        except OSError as error:
            self._note("retrainings", f"{error}; trying again")

    def _ask_again(self) -> None:
        """Ask again for what crashed, a few times: a killed one goes on where it was."""
        if not self.crashes:
            return
        for crash in self.crashes.unanswered():
            if crash.tries < _TRIES:
                self.crashes.ask_again(crash)
                self.say(f"the retraining {crash.name} crashed: asked for again, try {crash.tries + 1} of {_TRIES}")
            else:
                self._note(crash.id, f"{crash.name} crashed {_TRIES} times: it is not asked for again; see its log")
        self._note("retrainings", "")

    def watch(self) -> None:
        """Look every `landing.poll` seconds until the process ends."""
        while True:
            self.look()
            assert self.settings is not None
            time.sleep(self.settings.landing.poll)

    def _settings(self) -> Params:
        try:
            self.settings = config.load(self.root / "params.yaml")
        except ConfigError as error:
            if self.settings is None:
                raise
            self._note(_CONFIG, f"{error}\nthe last valid settings are kept until it is repaired")
            return self.settings
        if _CONFIG in self._ill:
            self._told.clear()
            self._note(_CONFIG, "")
            self.say(f"{_CONFIG} is valid again")
        return self.settings

    def _note(self, what: str, wrong: str) -> None:
        if wrong and self._ill.get(what) != wrong:
            self.say(wrong if what == _CONFIG else f"{what}: {wrong}")
        self._ill[what] = wrong
        if not wrong:
            del self._ill[what]

    def _look(self, dataset: str, params: Params) -> tuple[str, ...]:
        """Report what arrived and stopped arriving; return why not all of the area was seen."""
        area = landing_area(self.root, params)
        ledger = Ledger(IntakePaths(self.root, dataset).ledger)
        found, unlisted = listed(area) if area else ([], ())
        new = frozenset(item for item in found if item not in ledger)
        settled = new == self._before.get(dataset)
        self._before[dataset] = new
        fresh = new - self._told.get(dataset, frozenset())
        if settled and fresh:
            self._tell(dataset, fresh)
            self._told[dataset] = new
        return unlisted

    def announce(self, dataset: str, category: str, prefix: str = "", count: int = 0) -> None:
        """Send the event that starts a retraining: `count` images of `category` arrived below `prefix`."""
        payload = {"class": category, "prefix": prefix, "count": count}
        self.notifier.emit(EVENT, f"pvqae.dataset.{dataset}", payload)

    def _tell(self, dataset: str, fresh: frozenset[Object]) -> None:
        for category, count in sorted(Counter(item.key.partition("/")[0] for item in fresh).items()):
            self.say(f"{dataset}: {count} new images of {category}")
            self.announce(dataset, category, f"{category}/", count)
