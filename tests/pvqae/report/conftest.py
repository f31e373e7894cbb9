"""A workspace whose classes are evaluated as a test makes them."""

from pathlib import Path

import pytest

from pvqae.core.layout import Layout
from tests.pvqae.evaluation.conftest import make_class  # noqa: F401 - a fixture

CLASSES = """dataset: demo
networks: {all: {classes: [brick, grass]}}
priors: {all: {classes: [brick, grass], allocations: models/demo/networks/all}}
classes: {grass: {network: all, prior: all}, brick: {network: all, prior: all}}
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A workspace of the dataset "demo" with the classes brick and grass and nothing evaluated yet."""
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "params.yaml").write_text("data: {name: demo, source: demo}\n")
    (tmp_path / "data/classes.yaml").write_text(CLASSES)
    return Layout(tmp_path, "demo")
