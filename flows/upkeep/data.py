"""Bringing a dataset into the project."""

from pathlib import Path

from flows.adapters.intake import Link
from flows.adapters.versioning import Dvc
from flows.core import classes
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.core.layout import Layout
from pvqae.datasets import leftover, sources


def add(root: Path, name: str, source_root: Path, source: str = "", link: Link = "copy") -> str:
    """Version `source_root` as data/raw/<name>; return sentences that say what happened and which files nothing uses.

    A layout that is known, from `source` or from the project's params.yaml where it names this dataset, is checked
    before anything is copied. In the latter case data/classes.yaml is written, too.
    Raises `ConfigError` and `DataError`.
    """
    params = config.load(root / "params.yaml")
    config.parse({"data": {"name": name}}, where=f"dataset name {name}")
    if name in classes.read(root / "data" / "classes.yaml").get("made", {}):
        raise ConfigError(f"{name} is the name of a dataset that the project makes itself; choose another name")
    own = params.data.name == name
    told = _told(source_root.expanduser(), source or params.data.source * own, params.data if own else config.Data())
    with workspace.working_on(root, name) as supervisor:
        dvc = Dvc(root, supervisor)
        new = dvc.add_dataset(name, source_root.expanduser(), link)
        version = dvc.data_hash(name)
        if own:
            layout = Layout(root, name)
            classes.write(layout.classes_file, classes.classes(params, classes.wanted(params, layout.raw)))
    did = "new version" if new else "unchanged, version"
    return "\n".join([f"data/raw/{name}: {did} {version}", *told, f"commit it with: git add data/raw/{name}.dvc"])


def _told(root: Path, source: str, data: config.Data) -> list[str]:
    """Say what a dataset has and which of its files nothing uses; nothing where its layout is not known."""
    if not source or not root.is_dir():
        return []
    found, left = sources.survey(source, root, data.categories, data)
    warnings = [f"warning: {text}" for text in leftover.told(left)]
    return [leftover.folders(found, root), leftover.total(left), *warnings]
