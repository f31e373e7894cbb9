"""Every measure of the experiments on the demo with real networks, tiny; and a class packed for another machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.adapters import fakes
from flows.experiments import gpu, runs, subjects
from pvqae.core import config
from pvqae.core.errors import ConfigError, DataError

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that shares one home of experiments among the tests."""
    place = tmp_path_factory.mktemp("project")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(PROJECT / name, place / name)
    return place


@pytest.mark.parametrize(
    "name",
    ["baseline", "mechanism", "uniform", "entropy_sign", "maps", "diffuse", "priors", "adversarial"],
)
def test_a_quick_experiment_writes_its_page_and_can_be_read_again(name: str, root: Path) -> None:
    registry = fakes.FakeRegistry()
    (page,) = runs.run(root, name, registry, quick=True)
    text = page.read_text("utf-8")
    assert "| brick |" in text
    assert page.with_suffix(".svg").read_text("utf-8").startswith("<?xml")
    assert "docs" not in page.relative_to(root).parts, "toy numbers never reach the documentation"
    (again,) = runs.run(root, name, registry, quick=True)
    assert again.read_text("utf-8") == text
    kept = [item.tags["cached"] for item in registry.runs.values() if item.parent]
    assert kept == sorted(kept), "all of the second time were kept"


def test_an_unknown_name_is_a_users_error(root: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of"):
        runs.run(root, "nothing", fakes.FakeRegistry(), quick=True)


def test_a_packed_class_trains_where_nothing_else_of_the_project_is(root: Path, tmp_path: Path) -> None:
    work = root / ".pvqae" / "experiments" / "shared" / "data"
    subject = subjects.load_known("brick", [], work, config.load(root / "params.yaml"))
    for name in gpu.CODE:
        (root / name).symlink_to(PROJECT / name)
    folder = gpu.pack(root, subject)
    there = tmp_path / "brick"
    shutil.move(folder, there)
    shutil.rmtree(root / ".pvqae" / "gpu")
    tiny = [
        "image.size=64",
        "model.width=8",
        "train.steps=2",
        "train.batch=4",
        "prior.steps=2",
        "score.recon=decoder",
        "compute.threads=1",
    ]
    command = [sys.executable, "-m", "flows.experiments.gpu", "--work", str(tmp_path / "work")]
    command += [part for item in tiny for part in ("--set", item)]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=there, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads((tmp_path / "work" / "figures.json").read_text("utf-8"))["image_auroc"] <= 1
    with pytest.raises(DataError, match="at most 1 MB"):
        gpu.pack(root, subject, limit=1)
    assert not (root / ".pvqae" / "gpu" / "brick").exists()
