"""The champion's opinion of images that claim to be normal, before they may teach the next one.

The part of a retraining that holds the dataset's lock: what arrived comes in, and the facts are read.
"""

import shlex
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows.adapters import git
from flows.adapters.landing import Landing, Object
from flows.adapters.tracking import Registry
from flows.adapters.versioning import Dvc
from flows.core import classes, lineage
from flows.retrain import admit, arrivals, arrivals_index, watch
from flows.retrain.arrivals import Taken
from flows.retrain.arrivals_ledger import Ledger, Places, release, write_lists
from flows.retrain.facts import facts_of
from flows.retrain.retrain_policy import Facts
from flows.versions import promotions, shipping
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.config import Params
from pvqae.core.errors import ConfigError, DataError, PvqaeError
from pvqae.core.files import write_text
from pvqae.core.layout import Layout
from pvqae.datasets import sources


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
        folder = shipping.fetch(self._registry, name, version, self._place / f"{category}-{version}")
        self._loaded[category] = bundle.load(folder)
        return self._loaded[category]


def params_of(root: Path, dataset: str) -> str:
    """A file with the params that `dataset` was trained with, but the project's present settings of everything that
    changes no result; "" for the project's own params. Raises `ConfigError` for a dataset that was never trained."""
    own = config.load(root / "params.yaml")
    if dataset in ("", own.data.name):
        return ""
    saved = root / ".pvqae" / "runs" / dataset / "params.yaml"
    if not saved.exists():
        raise ConfigError(
            f"--dataset {dataset}: expected a dataset that was trained here, found none; run "
            f"`python -m flows train --set data.name={shlex.quote(dataset)} ...` first, or give the same --set here"
        )
    merged = config.load(saved).model_copy(update={key: getattr(own, key) for key in workspace.NO_RESULT})
    target = root / ".pvqae" / "arrivals" / dataset / "params.yaml"
    write_text(target, config.dump(merged))
    return str(target)


def refuse_made(
    params: Params,
    why: str = "so nothing can arrive in it",
    then: str = "python -m flows retrain --dataset parts",
) -> None:
    """Raises `ConfigError` for a dataset that a stage makes: the stage would remove whatever came in."""
    if params.data.source == "demo":
        raise ConfigError(
            f"{params.data.name} is made by a stage, {why}; make a dataset of your own of it:\n"
            "  pvqae data demo /tmp/parts && python -m flows train --set data.source=mvtec --set data.name=parts "
            f"--set data.root=/tmp/parts\n  {then}"
        )


def with_dataset(
    project: Path, params: Params, tracking: Registry, asked: Facts, dry_run: bool, say: Callable[..., Any]
) -> tuple[Taken, Facts]:
    """Hold the dataset's lock: take in what arrived and learn the facts of the decision."""
    name, layout, places = params.data.name, Layout(project, params.data.name), Places(project, params.data.name)
    with ExitStack() as stack:
        dvc = Dvc(project, stack.enter_context(workspace.working_on(project, name, say)))
        if dvc.data_hash(name) and not layout.raw.is_dir():  # first the version: nothing comes in where it is damaged
            dvc.checkout(name)
        categories = classes.wanted(params, layout.raw)
        promotions.check_owners(tracking, name, categories)
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        champions = Champions(tracking, name, temporary, params.retrain.screen_margin)
        ledger = Ledger(places.ledger)
        if dry_run:
            taken = would_take(project, params, ledger, categories, champions)
        else:
            taken = take_in(project, params, ledger, categories, champions)
            record = recorder(project, params)
            admit.admit(places, layout.raw, ledger, dvc, record)
            if params.flow.push and taken.count("accepted"):
                dvc.push()
        found = sources.scan(params.data.source, layout.raw, categories)
        return taken, facts_of(asked, tracking, dvc, params, found, ledger, places, taken)


def would_take(project: Path, params: Params, ledger: Ledger, categories: Sequence[str], champions: Champions) -> Taken:
    """What would be looked at; nothing is downloaded or changed."""
    if (area := watch.shore(project, params)) is None:
        return Taken()
    items, waiting = new_objects(area, params, ledger, categories, champions)
    counts = Counter(item.key.partition("/")[0] for item in items)
    return Taken((), (), waiting + Counter({f"{category}, a dry run": n for category, n in counts.items()}))


def new_objects(
    area: Landing, params: Params, ledger: Ledger, categories: Sequence[str], champions: Champions
) -> tuple[list[Object], Counter[str]]:
    """`arrivals.new_objects` of the classes that have a champion; others wait, with the way to get theirs back."""
    ready, lost = champions.ready(categories)
    items, waiting = arrivals.new_objects(area, ledger, categories, ready, params.landing.max_objects)
    for category, why in lost.items():
        if count := waiting.pop(arrivals.no_champion(category), 0):
            waiting[why] = count
    return items, waiting


def take_in(project: Path, params: Params, ledger: Ledger, categories: Sequence[str], champions: Champions) -> Taken:
    """Look at every new object of the landing area; the accepted ones are kept beside the dataset."""
    places, layout = Places(project, params.data.name), Layout(project, params.data.name)
    release(places, ledger)
    if (area := watch.shore(project, params)) is None:
        return Taken()
    items, waiting = new_objects(area, params, ledger, categories, champions)
    if not items:
        write_lists(places, ledger)
        return Taken((), (), waiting)
    found = sources.scan(params.data.source, layout.raw)
    index = arrivals_index.build(found, layout.raw, places.home / "index.npz", params.image.bits)
    intake = arrivals.Intake(area, places, ledger, index, champions.screen, params)
    return intake.take(items, waiting)


def recorder(project: Path, params: Params) -> Callable[[str], str]:
    """Commits the dataset's .dvc file on `pvqae/data`, under the path that train runs use too."""
    name = params.data.name
    path = f"data/raw/{name}.dvc"
    return lambda message: git.record(project, {f"{name}/{path}": project / path}, message)
