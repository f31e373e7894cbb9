"""What a network's training goes on from: the bundle of its class's champion, and the folds trained with it.

A network with the parent `data/parents/none` starts from scratch; with `data/parents/<network>`, from what is there.
Both are dependencies of its stage, so DVC trains again when the parent changes, and its hash is in dvc.lock.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.adapters.tracking import Registry, RegistryError
from flows.core import classes, lineage
from flows.versions import promotions
from flows.workspace.workspace import Workspace
from pvqae.core.errors import IntegrityError
from pvqae.core.files import BACKBONE, write_text
from pvqae.datasets import splits
from pvqae.samples.classes import FROM_SCRATCH

_KEPT = "warm"  # a folder among the artifacts of a class's run
PARENT = "parent"  # in origin.json
_WHY = "Networks with this parent start from scratch.\n"


def keep(registry: Registry, run: str, space: Workspace, category: str) -> None:
    """Log to a class's run what a later training may start from, apart from the bundle: its origin and the folds."""
    from pvqae.training import warm  # imports torch: only when something is registered

    folder = _network(space, category)
    if folder is None:
        return
    with tempfile.TemporaryDirectory() as temporary:
        warm.keep(folder, Path(temporary) / _KEPT)
        registry.artifact(run, Path(temporary) / _KEPT)


def sha256_of(space: Workspace, category: str) -> str:
    """Return the hash of the bundle that the class's network was given to go on from, or "none"."""
    return str(_origin(space, category).get("parent_bundle_sha256", lineage.NONE))


def started_from(space: Workspace, category: str) -> str:
    """Return what the weights of the class's bundle began as: `PARENT`, or why they began from scratch.

    A network that was given a parent may have had to start without it, e.g. where a part that it had learned from is
    gone.
    """
    return str(_origin(space, category).get("fits", {}).get(splits.FULL, "not known"))


def _origin(space: Workspace, category: str) -> dict[str, Any]:
    """Return the origin.json of the class's network; empty where there is none."""
    folder = _network(space, category)
    if folder is None or not (folder / "origin.json").exists():
        return {}
    return dict(json.loads((folder / "origin.json").read_text("utf-8")))


def _network(space: Workspace, category: str) -> Path | None:
    """Return the folder of the class's network, None where there is none."""
    known = classes.read(space.layout.classes_file).get("classes", {})
    found = space.layout.network(known[category]["network"]) if category in known else None
    return found if found and found.is_dir() else None


def place(space: Workspace, registry: Registry, graph: Mapping[str, Any], warm: bool) -> dict[str, Any]:
    """Put each network's parent in place; return `graph` (the content of data/classes.yaml) with the parents named.

    Where `warm` is wanted, that is the champion of the network's first class that has one; without a champion, or with
    one of which no folds were kept, the network starts from scratch. Raises `IntegrityError` for a damaged champion.
    """
    write_text(space.path / FROM_SCRATCH, _WHY)
    networks = {}
    for name, item in graph["networks"].items():
        found = warm and _champion(space, registry, name, item["classes"])
        if not found:
            shutil.rmtree(_folder(space.path, name), ignore_errors=True)
        parent = _folder(space.path, name).relative_to(space.path).as_posix() if found else FROM_SCRATCH
        networks[name] = {**item, "parent": parent}
    return {**graph, "networks": networks}


def _champion(space: Workspace, registry: Registry, network: str, members: list[str]) -> bool:
    found = champion(registry, space.params.data.name, members)
    try:
        return found is not None and bring(registry, *found, space.path, network)
    except RegistryError as error:
        print(f"{error}; the network {network} starts from scratch", flush=True)
        return False


def champion(registry: Registry, dataset: str, members: list[str]) -> tuple[str, str] | None:
    """Return model and version that a network of the classes `members` goes on from: the first champion among them."""
    models = [lineage.model_name(dataset, category) for category in sorted(members)]
    champions = [(model, version) for model in models if (version := promotions.champion(registry, model))]
    return champions[0] if champions else None


def _folder(workspace: Path, network: str) -> Path:
    """Return the folder of a network's parent in a workspace."""
    return workspace / "data" / "parents" / network


def restore(registry: Registry, dataset: str, model: str, version: str, workspace: Path, network: str) -> bool:
    """Put the parent that a version was trained from into a workspace, to train it again; False where it had none.

    Raises `IntegrityError` where the parent is no longer registered.
    """
    write_text(workspace / FROM_SCRATCH, _WHY)
    sha256 = registry.version_tags(model, version).get("parent_bundle_sha256", lineage.NONE)
    if sha256 == lineage.NONE:
        return False
    siblings = (other for other in promotions.models_of(registry, dataset) if other != model)
    for name in (model, *siblings):  # of a shared network
        found = registry.find(name, {"bundle_sha256": sha256})
        if found and bring(registry, name, found, workspace, network):
            return True
    raise IntegrityError(f"{model} version {version}: its parent, bundle {sha256}, is no longer in the registry")


def bring(registry: Registry, model: str, version: str, workspace: Path, network: str) -> bool:
    """Make a version the parent of a network in a workspace; return False where nothing was kept with its bundle.

    Raises `IntegrityError` when the files are not those that were registered.
    """
    from pvqae.inference import bundle as bundles
    from pvqae.training import warm

    tags = registry.version_tags(model, version)
    with tempfile.TemporaryDirectory() as temporary:
        kept = registry.fetch(tags["mlflow_run"], _KEPT, Path(temporary) / "kept")
        if kept is None:
            return False
        bundle = registry.download(model, version, Path(temporary) / "model")
        bundles.verify(bundle)
        (bundle / BACKBONE).unlink(missing_ok=True)  # 13 MB that every project has by their hash
        found = bundles.seal(bundle)
        if found != tags["bundle_sha256"]:
            raise IntegrityError(
                f"{model} version {version}: expected the bundle {tags['bundle_sha256']}, found {found}; "
                "promote another version, or train without --warm"
            )
        warm.place(bundle, kept, _folder(workspace, network))
    return True
