"""Everything that can be looked at without a service, in the order in which a person would repair it."""

from pathlib import Path

import pvqae
from pvqae import config
from pvqae.doctor import extras, machine, project
from pvqae.doctor.check import Check
from pvqae.layout import Layout, find_root

SOURCES = Path(pvqae.__file__).parents[1]


def examine(start: Path, needed: str = extras.CORE) -> list[Check]:
    """Checks of this installation, this machine and the project at or above `start`.

    `needed`: the extra without which nothing works for whoever asks.
    """
    root = find_root(start)
    about = [] if root is None else [project.params(root)]
    params = about[0][1] if about else config.Params()
    pins = extras.pinned((root or SOURCES) / "constraints.txt")
    found = [
        machine.python(),
        *extras.checks(extras.required(SOURCES / "pyproject.toml"), pins, needed),
        project.backbone(),
        machine.device(params.compute),
        machine.memory(),
        machine.disk(root or start),
        machine.network(),
        *machine.programs(),
    ]
    if root is None:
        said = f"no params.yaml and dvc.yaml in {start} or above; a bundle works without them"
        return [*found, Check("project", "warn", said, "run in the project's folder")]
    layout = Layout(root, params.data.name)
    own = [about[0][0], project.git(root), project.datasets(layout, params.data.source), *project.bundles(root)]
    return [*found, *own]
