"""Bringing a dataset into the project."""

from contextlib import ExitStack
from pathlib import Path

from flows import classes, locks, workspace
from flows.adapters.intake import Link
from flows.adapters.versioning import Dvc
from flows.supervise import Supervisor
from pvqae import config
from pvqae.datasets import sources
from pvqae.errors import ConfigError
from pvqae.layout import Layout


def add(root: Path, name: str, source_root: Path, source: str = "", link: Link = "copy") -> str:
    """Version `source_root` as data/raw/<name>; returns a sentence that says what happened.

    A `source` that is given is checked before anything is copied. When the project's params.yaml names this dataset,
    data/classes.yaml is written too. Raises `ConfigError` and `DataError`.
    """
    params = config.load(root / "params.yaml")
    config.parse({"data": {"name": name}}, where=f"dataset name {name}")
    if name in classes.read(root / "data" / "classes.yaml").get("made", {}):
        raise ConfigError(f"{name} is the name of a dataset that the project makes itself; choose another name")
    if source:
        sources.categories(source, source_root.expanduser())
    with ExitStack() as stack:
        lock = workspace.lock_file(root, name)
        held = stack.enter_context(locks.held(lock, waiting=lambda: print(f"waiting for the flow on {name}")))
        dvc = Dvc(root, stack.enter_context(Supervisor([held])))
        new = dvc.add_dataset(name, source_root.expanduser(), link)
        version = dvc.data_hash(name)
        if params.data.name == name:
            layout = Layout(root, name)
            classes.write(layout.classes_file, classes.classes(params, classes.wanted(params, layout.raw)))
    did = "new version" if new else "unchanged, version"
    return f"data/raw/{name}: {did} {version}\ncommit it with: git add data/raw/{name}.dvc"
