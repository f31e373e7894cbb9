"""`python -m flows review`: a local page on which a person labels images, and Apply, which makes a data version."""

import functools
import os
import secrets
import tempfile
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows.adapters import git
from flows.adapters.tracking import Registry
from flows.adapters.versioning import Dvc
from flows.core import classes, lineage
from flows.retrain import gate_normals, watch
from flows.retrain.admission import recorder
from flows.retrain.arrivals import Champions
from flows.retrain.labels import Log
from flows.retrain.ledger import IntakePaths, Ledger
from flows.review import items
from flows.review.apply import Applied, Applier
from flows.review.session import ReviewSession
from flows.versions import promotions
from flows.workspace import workspace
from pvqae.core.config import Params
from pvqae.core.errors import PvqaeError
from pvqae.core.files import digest
from pvqae.core.layout import Layout

if TYPE_CHECKING:
    from pvqae.inference.bundle import Detector


def _params_of(project: Path, dataset: str) -> Params:
    """Return the dataset's params. Raises `ConfigError` for one that was never trained, or that a stage makes."""
    params = workspace.choose(project, watch.params_of(project, dataset)).params
    watch.refuse_made(params, "so no label can come into it", "python -m flows review --dataset parts")
    return params


def apply(project: Path, dataset: str, waiting: Callable[[str], object]) -> Applied:
    """Bring all labels that were not applied yet into the dataset as one DVC version; push it if the params say so.

    `dataset`: "" for the project's own. `waiting` is told when a flow works on it; it may raise. After a crash call
    this again. Raises `ConfigError` for a dataset that was never trained, or that a stage makes.
    """
    return _apply(project, _params_of(project, dataset), waiting)


def _apply(project: Path, params: Params, waiting: Callable[[str], object]) -> Applied:
    paths, layout = IntakePaths(project, params.data.name), Layout(project, params.data.name)
    log = Log(paths.labels)
    with workspace.working_on(project, paths.dataset, waiting) as supervisor, log.writing():
        dvc = Dvc(project, supervisor)
        if not layout.raw.is_dir() and dvc.data_hash(paths.dataset):
            dvc.checkout(paths.dataset)
        wanted = {label.sha256 for label in log.pending()}
        every = items.scored(project, paths.dataset, classes.wanted(params, layout.raw))
        seen = {item.sha256: item for item in every if item.sha256 in wanted}
        done = Applier(paths, params, Ledger(paths.ledger), log).run(seen.get, dvc, recorder(project, params))
        if params.flow.push and done.admitted:
            dvc.push()
    return done


def _champions(project: Path, registry: Registry, dataset: str) -> "Callable[[str], tuple[str, Detector] | None]":
    """Return what gives a class's champion, loaded once, and again when the alias has moved."""
    from flows.serving.score import bundle_of
    from pvqae.inference import bundle

    @functools.lru_cache(maxsize=4)
    def load(model: str, version: str) -> "Detector":
        return bundle.parse(bundle_of(project, registry, model, version))

    def champion(category: str) -> "tuple[str, Detector] | None":
        model = lineage.model_name(dataset, category)
        version = promotions.held(registry, model)
        return (version, load(model, version)) if version else None

    return champion


def _evaluated(project: Path, registry: Registry, dataset: str) -> Callable[[str], str]:
    """Return what tells which registered version of a class the last evaluation was of, "" if none."""
    places = (project / ".pvqae" / "runs" / dataset, project)

    def version(category: str) -> str:
        for place in places:
            sums = Layout(place, dataset).bundle(category) / "SHA256SUMS"
            if sums.is_file():
                return registry.find(lineage.model_name(dataset, category), {"bundle_sha256": digest(sums)}) or ""
        return ""

    return version


def _default_name(project: Path) -> str:
    """Return Git's user, "" where Git knows none."""
    try:
        return git.git(project, "config", "user.name")
    except git.GitError:
        return ""


def serve(
    project: Path, dataset: str, host: str, port: int, most: int, browser: bool, say: Callable[[str], None]
) -> None:
    """Serve the page until Ctrl-C. A non-loopback host requires the token that is printed.

    Raises `ConfigError` as `apply`.
    """
    import uvicorn

    from flows.adapters.registry import open_registry
    from flows.review import review_app
    from flows.review.items import ThumbnailCache
    from pvqae.serving import batch_cli, server
    from pvqae.serving.middleware import is_loopback

    params = _params_of(project, dataset)
    name = params.data.name
    registry, _ = open_registry(project, params.flow.tracking_uri)
    paths = IntakePaths(project, name)
    categories = tuple(classes.wanted(params, Layout(project, name).raw))
    batch_cli.prepare()
    with tempfile.TemporaryDirectory(prefix="pvqae-") as place:
        champions = Champions(registry, name, Path(place), params.retrain.screen_margin)
        gate_normals.look(paths, params, champions)
    session = ReviewSession(paths, categories, most, _evaluated(project, registry, name))
    cache = project / ".pvqae" / "cache" / "review" / name
    thumbnails = ThumbnailCache(cache, _champions(project, registry, name), params.image.bits)

    def refuse(_: str) -> None:
        raise PvqaeError(f"a flow works on {name}: apply again when it has ended; the labels are kept")

    token = "" if is_loopback(host) else os.environ.get("PVQAE_TOKEN", "") or secrets.token_urlsafe(24)
    app = review_app.make(
        session, thumbnails, _default_name(project), lambda: _apply(project, params, refuse).lines, token
    )
    with server.listen(params.service.model_copy(update={"host": host, "port": port}), token) as opened:
        address = f"{server.address(opened)}/" + (f"?token={token}" if token else "")
        say(f"review of {name}: {address}\nlabels: {paths.labels}\nCtrl-C ends it")
        if browser:
            webbrowser.open(address)
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        with suppress(KeyboardInterrupt):  # uvicorn has stopped before it passes the signal on
            running.run(sockets=[opened])
    waits = len(session.log.pending())
    say(f"stopped; {waits} labels wait for `python -m flows review --dataset {name} --apply`")
