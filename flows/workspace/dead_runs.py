"""Runs of flows that were killed: nothing ended them, so MLflow shows them as running for ever.

The next flow of the same kind in the same project ends them: it holds the lock that the dead one held, so none of them
can be alive.
"""

import uuid
from pathlib import Path

from flows.adapters.tracking import Registry
from pvqae.core.files import write_text

PROJECT, FLOW = "pvqae.project", "pvqae.flow"


def end(registry: Registry, root: Path, experiment: str, flow: str) -> dict[str, str]:
    """End the dead runs of `flow` (train, retrain) of the project at `root`; returns the tags by which the next flow
    finds this one's. Only under the lock that such flows exclude each other with."""
    tags = {PROJECT: _project_id(root), FLOW: flow}
    registry.end_open(experiment, tags)
    return tags


def _project_id(root: Path) -> str:
    """Of this copy of the project, whatever the machine or container is called; its locks lie beside it."""
    file = root / ".pvqae" / "project"
    if not file.exists():
        write_text(file, uuid.uuid4().hex)
    return file.read_text("utf-8")
