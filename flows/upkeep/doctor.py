"""What `pvqae doctor` looks at, and what flows need besides: code, DVC's remote, servers, pools, versions."""

import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from flows.adapters import git
from flows.adapters.probes import ServerProbe
from flows.adapters.tracking import DATABASE, database_of, migrated
from flows.core import classes, environment, lineage
from pvqae.cli import checks, diagnosis
from pvqae.cli.checks import Check
from pvqae.cli.diagnosis import examine as without_services
from pvqae.core import config
from pvqae.core.errors import ConfigError, PvqaeError
from pvqae.core.layout import Layout, find_root
from pvqae.core.progress import track

_UP = "python -m flows services up"
_DOWN = "python -m flows services down"


class _Probe(Protocol):
    """What the doctor asks: `ServerProbe`, or `fakes.FakeProbe` in tests."""

    def answers(self, url: str) -> bool: ...
    def pools(self, api: str) -> dict[str, int]: ...
    def champions(self, uri: str) -> dict[str, str]: ...
    def retired(self, uri: str) -> frozenset[str]: ...
    def trouble(self, remote: Mapping[str, str]) -> str: ...


# Model, version → the bundle's format, None where that is not known; raises `PvqaeError` where it can't be loaded.
_Load = Callable[[str, str], int | None]


def examine(
    start: Path,
    outside: _Probe | None = None,
    environ: Mapping[str, str] = os.environ,
    load: _Load | None = None,
    loading: bool = True,
) -> list[Check]:
    """Return every check, in the order in which a person would repair them; stop at what all others need.

    Champions are loaded, by `load` or as scoring does, unless `loading` is False.
    """
    found = without_services(start, needed="flows")
    root = find_root(start)
    if root is None or any(check.name == "extra flows" and check.found.startswith("not installed") for check in found):
        return found
    _, params = diagnosis.read_params(root)
    known, about = _client_settings(root, environ)
    seen, uri = outside or ServerProbe(), _tracking_uri(root, params, known)
    return [
        *found,
        *_code(root),
        _remote(root, seen),
        *about,
        _prefect(known.get("PREFECT_API_URL", ""), seen),
        *_pools(known.get("PREFECT_API_URL", ""), params, seen),
        _mlflow(uri, seen),
        *_champions(root, uri, seen, loading, load),
        _services(root),
    ]


def _client_settings(root: Path, environ: Mapping[str, str]) -> tuple[dict[str, str], list[Check]]:
    """Return the environment that flows would have; what the user has set wins over the services of this machine."""
    try:
        return environment.of_services(root) | dict(environ), []
    except ConfigError as error:
        return dict(environ), [Check("services", "bad", str(error), _UP)]


def _tracking_uri(root: Path, params: config.Params, environ: Mapping[str, str]) -> str:
    """Return where runs and versions are kept, as `flows.adapters.registry.open_registry` decides it."""
    setting = params.flow.tracking_uri
    named = environ.get("MLFLOW_TRACKING_URI", "") or ("" if setting == "auto" else setting)
    return named or database_of(root)


def _code(root: Path) -> list[Check]:
    """Check the code: versions are registered of committed code only. Nothing to say where git itself is missing."""
    try:
        found = git.code(root)
    except (PvqaeError, OSError):
        return []
    if not found.uncommitted:
        return [Check("code", "ok", "all committed")]
    files = ", ".join(found.uncommitted[:3]) + (", ..." if len(found.uncommitted) > 3 else "")
    said = f"{len(found.uncommitted)} files differ from the last commit ({files}): no version would be registered"
    return [
        Check("code", "warn", said, f"cd {shlex.quote(str(root))} && git add -A . && git commit -m 'what you changed'")
    ]


def _remote(root: Path, outside: _Probe) -> Check:
    """Check where DVC pushes data and models at the end of a flow."""
    from flows.adapters import dvc_files

    if not (root / ".dvc").is_dir():
        where = "" if (root / ".git").exists() else " --subdir"  # of a larger repository
        repair = f"cd {shlex.quote(str(root))} && dvc init{where}"
        return Check("DVC remote", "bad", f"{root} is no DVC project", repair)
    section = dvc_files.default_remote(root)
    if section is None:
        return Check("DVC remote", "warn", "no default remote: data is on this disk only", "dvc remote add -d NAME URL")
    if wrong := outside.trouble(section):
        repair = f"{_UP}, or another: dvc remote add --local -d NAME URL"
        return Check("DVC remote", "bad", f"{environment.shown(section['url'])}: {wrong}", repair)
    return Check("DVC remote", "ok", environment.shown(section["url"]))


def _prefect(api: str, outside: _Probe) -> Check:
    if not api:
        return Check("Prefect", "ok", "no server set: each flow starts one of its own, and no schedule runs")
    if outside.answers(f"{api}/health"):
        return Check("Prefect", "ok", f"answers at {environment.shown(api)}")
    return Check(
        "Prefect",
        "bad",
        f"nothing answers at {environment.shown(api)} (PREFECT_API_URL)",
        f"{_UP}, or {_DOWN} to go on without",
    )


def _pools(api: str, params: config.Params, outside: _Probe) -> list[Check]:
    """Check the pool of schedules and triggers, and the one that trains classes elsewhere, for living workers."""
    if not api or not outside.answers(f"{api}/health"):
        return []
    try:
        found = outside.pools(api)
    except OSError as error:
        return [Check("work pools", "bad", f"{environment.shown(api)} does not tell them: {error}", _UP)]
    train = params.flow.train_pool
    asked = {params.services.work_pool: False} | ({train: True} if train else {})
    return [_pool(name, found, needed) for name, needed in asked.items()]


def _pool(name: str, found: Mapping[str, int], needed: bool) -> Check:
    """Check a pool. `needed`: a training waits for it; else only schedules and triggers do."""
    title = f"work pool {name}"
    if name not in found:
        said = f"not there, only {', '.join(sorted(found)) or 'none'}"
        return Check(
            title, "bad" if needed else "warn", said, f"prefect work-pool create --type process {shlex.quote(name)}"
        )
    if not found[name]:
        return Check(
            title, "bad" if needed else "warn", "no living worker", f"python -m flows worker --pool {shlex.quote(name)}"
        )
    return Check(title, "ok", f"{found[name]} living workers")


def _mlflow(uri: str, outside: _Probe) -> Check:
    if not uri.startswith("http"):
        return Check("MLflow", "ok", environment.shown(uri))
    if outside.answers(f"{uri}/health"):
        return Check("MLflow", "ok", f"answers at {environment.shown(uri)}")
    return Check("MLflow", "bad", f"nothing answers at {environment.shown(uri)}", f"{_UP}, or {_DOWN} to go on without")


def _classes(root: Path, champions: Mapping[str, str], retired: Collection[str]) -> list[Check]:
    """Check that every champion has images to be trained on again, and every class of a dataset a champion.

    `champions`: model → version, "" for none; `retired`: models whose class is made no more.
    """
    there: dict[str, list[str]] = {}
    for place in (root, *(file.parent for file in root.glob(".pvqae/runs/*/params.yaml"))):
        own = diagnosis.read_params(place)[1]
        raw = Layout(place, own.data.name).raw
        if not raw.is_dir():  # never made, as the demo where only others were trained
            continue
        try:
            there.setdefault(own.data.name, classes.there(own, raw))
        except PvqaeError:
            continue  # damaged: another check says so
    used, lacking, gone = {name for name, version in champions.items() if version}, list[str](), list[str]()
    for dataset, names in there.items():
        models = {lineage.model_name(dataset, name): name for name in names}
        lacking += [f"{dataset} {name}" for model, name in models.items() if used and model not in used]
        start = lineage.model_name(dataset, "")
        longer = tuple(lineage.model_name(other, "") for other in there if other.startswith(f"{dataset}-"))
        mine = (
            name
            for name in used.difference(retired)
            if name.startswith(start) and not name.startswith(longer or ("\0",))
        )
        gone += [f"{dataset} {name.removeprefix(start)}" for name in mine if name not in models]
    checks = []
    if gone:
        repair = f"python -m flows promote retire {gone[0]} --reason TEXT (or rename, or bring its folder back)"
        checks.append(Check("classes", "warn", f"champions without images: {', '.join(sorted(gone))}", repair))
    if lacking:
        said = f"images without a champion: {', '.join(sorted(lacking))}"
        checks.append(Check("classes", "warn", said, "python -m flows train, with that dataset's params"))
    return checks


def _champions(root: Path, uri: str, outside: _Probe, loading: bool, load: _Load | None) -> list[Check]:
    try:
        found, retired = outside.champions(uri), outside.retired(uri)
    except OSError as error:
        return [Check("champions", "warn", f"can't be read: {error}", "python -m flows promote log")]
    if not found:
        return [Check("champions", "warn", "none yet", "make run")]
    there = {name: version for name, version in sorted(found.items()) if version}
    other = uri == database_of(root) and (root / DATABASE).is_file() and not migrated(root).exists()
    loading = loading and not other  # it would bring the database to the installed release
    formats: dict[str, int] = {}
    broken = list(_unloadable(root, uri, there, load, formats)) if loading else []
    others = [_upgrade(other, formats), *_classes(root, found, retired)]
    said = ", ".join(f"{name} {'version ' + one if (one := found[name]) else 'has none'}" for name in sorted(found))
    if loading and there:
        said += f"; {len(there) - len(broken)} of {len(there)} can be loaded"
    if lacking := [name for name in sorted(found) if not found[name]]:
        repair = f"python -m flows score {lacking[0]}@champion . says how it gets one"
        return [*broken, Check("champions", "warn", said, repair), *others]
    return [*broken, Check("champions", "ok", said), *others]


def _upgrade(other: bool, formats: Mapping[str, int]) -> Check:
    """Check what an upgrade leaves to do: champions of an older format, a database of another release of MLflow."""
    from pvqae.inference.formats import CURRENT

    older = [name for name, found in formats.items() if found < CURRENT]
    said, repairs = [], []
    if other:
        said.append(f"the next flow brings {DATABASE} to MLflow {metadata.version('mlflow')}")
        repairs.append("keep a copy of it (cp -a), run a flow, then python -m flows doctor again")
    if older:
        said.append(f"older bundle formats: {', '.join(older)}")
        repairs.append("python -m flows migrate")
    if said:
        return Check("upgrade", "warn", "; ".join(said), "; then ".join(repairs))
    return Check("upgrade", "ok", "nothing is left to do")


def _unloadable(
    root: Path, uri: str, champions: Mapping[str, str], load: _Load | None, formats: dict[str, int]
) -> Iterator[Check]:
    """Load every champion as scoring does; yield a check for each that can't be, and fill `formats`."""
    if champions and load is None:
        from flows.adapters.registry import open_registry
        from flows.versions import version_bundles

        load = partial(version_bundles.format_of, open_registry(root, uri)[0])
    for name, version in track(champions.items(), "loading champions", len(champions)):
        assert load is not None
        try:
            if (known := load(name, version)) is not None:
                formats[name] = known
        except PvqaeError as error:
            repair = f"repair what is named, or go back: python -m flows promote rollback {name} --reason TEXT"
            yield Check(f"champion {name}", "bad", f"version {version} can't be loaded: {error}", repair)


def _services(root: Path) -> Check:
    """Check the services of `make services` on this machine, if they are meant to run."""
    if not environment.services_file(root).exists():
        return Check("services", "ok", "none started on this machine")
    if find_spec("psycopg2") is None:
        return Check("services", "bad", "the extra services is not installed", checks.install("services", True))
    from flows.machines import control

    states = {item.name: item.health for item in control.status(root, control.last_settings(root))}
    wrong = [f"{name} {health}" for name, health in states.items() if health != "healthy"]
    if wrong:
        return Check("services", "bad", ", ".join(wrong), _UP)
    return Check("services", "ok", f"{', '.join(states)} healthy")
