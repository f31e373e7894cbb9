"""`python -m flows review`: a local page on which a person labels images, and Apply, which makes a data version."""

import functools
import os
import secrets
import tempfile
import webbrowser
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows.adapters import git
from flows.adapters.tracking import Promotion, Registry
from flows.adapters.versioning import Dvc
from flows.core import classes, lineage
from flows.retrain import gate_normals, watch
from flows.retrain.admission import LEARNT, file_of, recorder
from flows.retrain.arrivals import Champions
from flows.retrain.ledger import IntakePaths, Label, LabelLog, Ledger, now
from flows.review import items
from flows.review.apply import Applied, Applier
from flows.review.session import ReviewSession
from flows.versions import promotions
from flows.workspace import workspace
from pvqae.core.config import Params
from pvqae.core.errors import DataError, PvqaeError
from pvqae.core.files import digest
from pvqae.core.layout import Layout
from pvqae.datasets import build, sources

if TYPE_CHECKING:
    from pvqae.inference.bundle import Detector

_NAMED = 5  # images of a list that are named


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


def exclude(
    project: Path, registry: Registry, owner: lineage.Owner, move: Promotion, waiting: Callable[[str], object]
) -> tuple[str, ...]:
    """Take out of the dataset what the version of a rollback had learnt and the champion of today has not.

    `move`: the rollback, which says who and why. Each image goes to the quarantine as if a person had called it
    neither good nor a defect, so review can bring it back. Images of the test split and of the gate, which nothing
    learns from, stay, and so do those that the dataset came with: the lines returned name them. Call it again after a
    crash. Raises `ConfigError` as `apply`, `DataError` where DVC's cache can't say what a version learnt.
    """
    params = _params_of(project, owner.dataset)
    paths, layout = IntakePaths(project, owner.dataset), Layout(project, owner.dataset)
    log = LabelLog(paths.labels)
    with workspace.working_on(project, owner.dataset, waiting) as supervisor, log.writing():
        dvc, ledger = Dvc(project, supervisor), Ledger(paths.ledger)
        if not layout.raw.is_dir():
            dvc.checkout(owner.dataset)
        new = _only_learnt(registry, dvc, params, layout.raw, owner, move)
        entries = {file: entry for entry in ledger.entries("versioned") if (file := file_of(paths, entry))}
        when = now()
        said = [
            Label(
                entries[file].sha256,
                "neither",
                move.who,
                when,
                owner.category,
                "labelled",
                file.relative_to(layout.raw).as_posix(),
                version=move.from_version,
                note=f"only version {move.from_version} had learnt it, which was taken back: {move.reasons[0]}",
            )
            for file, part in new.items()
            if part in LEARNT and file in entries
        ]
        if said:
            log.append(*said)
            done = Applier(paths, params, ledger, log).run(lambda _: None, dvc, recorder(project, params), said)
            if params.flow.push:
                dvc.push()
    return (
        f"{len(said)} images that only version {move.from_version} had learnt were taken out of the dataset"
        + (f": DVC version {done.version}; review shows them under Labelled" if said else ""),
        *_stayed(layout.raw, {file: part for file, part in new.items() if file not in entries or part not in LEARNT}),
    )


def _only_learnt(
    registry: Registry, dvc: Dvc, params: Params, raw: Path, owner: lineage.Owner, move: Promotion
) -> dict[Path, str]:
    """Return today's normals that the version of a rollback knew and the one before did not, with their splits."""
    model = lineage.model_name(owner.dataset, owner.category)
    gone, kept = (_listed(registry, dvc, model, version) for version in (move.from_version, move.to_version))
    found = sources.scan(params.data.source, raw, [owner.category], params.data)
    names = {item.path: item.path.relative_to(raw).as_posix() for item in found}
    if kept.isdisjoint(names.values()):  # a class that was renamed since
        raise DataError(
            f"{model}: expected images of {owner.category} that version {move.to_version} knew, found none under their"
            " names of today; nothing was taken out"
        )
    split = build.splits_of(found, params)
    normals = [item for item in found if item.label == "normal"]
    return {item.path: split[item.sample_id] for item in normals if names[item.path] in gone - kept}


def _listed(registry: Registry, dvc: Dvc, model: str, version: str) -> frozenset[str]:
    """Return the paths of the data that a version was made of. Raises `DataError` where nothing says so any more."""
    if not registry.exists(model, version):
        raise DataError(f"{model}: version {version} was deleted, so nothing says what it had learnt")
    data_hash = registry.version_tags(model, version).get("data_hash", "")
    if (found := dvc.listing(data_hash)) is None:
        raise DataError(
            f"{model}: DVC's cache lacks {data_hash or 'the data'}, the data of version {version}; bring it with "
            "`dvc fetch`, then give the same command again with --version"
        )
    return found


def _stayed(raw: Path, files: Mapping[Path, str]) -> list[str]:
    """Say which images are left although only the version that was taken back knew them."""
    own = [file.relative_to(raw).as_posix() for file, part in files.items() if part in LEARNT]
    others = Counter(part for part in files.values() if part not in LEARNT)
    told = [f"{n} that came with them stay: nothing learns from the {part} split" for part, n in others.items()]
    if own:
        some = ", ".join(own[:_NAMED]) + (", ..." if len(own) > _NAMED else "")
        told.append(
            f"{len(own)} came with the dataset and stay ({some}): take them out of its folder, then `python -m flows "
            "data add` it again"
        )
    return told


def _apply(project: Path, params: Params, waiting: Callable[[str], object]) -> Applied:
    paths, layout = IntakePaths(project, params.data.name), Layout(project, params.data.name)
    log = LabelLog(paths.labels)
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
