"""Where a network starts: its class's champion brought from the registry, or nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.adapters.fakes import FakeRegistry
from flows.core import classes
from flows.versions import warm_start
from flows.workspace.workspace import Workspace
from pvqae.core import config
from pvqae.core.errors import IntegrityError
from pvqae.core.files import SUMS, digest
from pvqae.inference import bundle as bundles

MODEL = "pvqae-x-a"


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """A workspace in which class a was trained."""
    found = Workspace(tmp_path, tmp_path, config.parse({"data": {"name": "x", "source": "folder"}}))
    found.layout.data.mkdir()
    found.layout.classes_file.write_text(yaml.safe_dump(graph(found)))
    network, bundle = found.layout.network("a"), found.layout.bundle("a")
    network.mkdir(parents=True)
    bundle.mkdir(parents=True)
    (network / "rows.csv").write_text("category,group_id,split,fold\na,g,train,0\n")
    (network / "fold-0.safetensors").write_bytes(b"fold")
    (network / "allocations.safetensors").write_bytes(b"large")
    (network / "origin.json").write_text(json.dumps({"parent_bundle_sha256": "none", "fits": {}}))
    (bundle / "weights.safetensors").write_bytes(b"weights")
    (bundle / "config.json").write_text("{}")
    bundles.seal(bundle)
    return found


def graph(space: Workspace, names: tuple[str, ...] = ("a", "b"), network: str = "per_class") -> dict[str, Any]:
    params = space.params.model_copy(update={"model": config.Model(network=network)})  # type: ignore[arg-type]
    return classes.classes(params, names)


@pytest.fixture
def runs(space: Workspace) -> FakeRegistry:
    """A registry whose champion of a is that bundle, exported with its backbone."""
    found, exported = FakeRegistry(), space.path / "exported"
    run = found.start("x", "a")
    exported.mkdir()
    for file in space.layout.bundle("a").iterdir():
        (exported / file.name).write_bytes(file.read_bytes())
    (exported / "backbone.safetensors").write_bytes(b"backbone")
    bundles.seal(exported)
    model = found.log_model(run, exported)
    warm_start.keep(found, run, space, "a")
    tags = {"bundle_sha256": digest(space.layout.bundle("a") / SUMS), "mlflow_run": run}
    found.aliases[MODEL, "champion"] = found.register(MODEL, run, model, tags)
    return found


def parent_of(content: dict[str, Any], network: str) -> str:
    return str(content["networks"][network]["parent"])


def test_the_champion_and_its_folds_become_the_parent(space: Workspace, runs: FakeRegistry) -> None:
    found = warm_start.place(space, runs, graph(space), warm=True)
    folder = space.path / "data" / "parents" / "a"
    assert parent_of(found, "a") == "data/parents/a"
    assert digest(folder / "bundle" / SUMS) == digest(space.layout.bundle("a") / SUMS)
    assert {p.name for p in (folder / "bundle").iterdir()} == {"weights.safetensors", "config.json", "SHA256SUMS"}
    assert {p.name for p in (folder / "network").iterdir()} == {"rows.csv", "fold-0.safetensors", "SHA256SUMS"}
    assert parent_of(found, "b") == "data/parents/none"  # no champion yet
    assert (space.path / "data" / "parents" / "none").is_file()
    assert found["classes"] == graph(space)["classes"]


def test_the_same_champion_is_the_same_parent(space: Workspace, runs: FakeRegistry) -> None:
    warm_start.place(space, runs, graph(space), warm=True)
    before = {p: p.read_bytes() for p in (space.path / "data" / "parents").rglob("*") if p.is_file()}
    warm_start.place(space, runs, graph(space), warm=True)
    assert {p: p.read_bytes() for p in (space.path / "data" / "parents").rglob("*") if p.is_file()} == before


def test_without_warm_nothing_is_left(space: Workspace, runs: FakeRegistry) -> None:
    warm_start.place(space, runs, graph(space), warm=True)
    found = warm_start.place(space, runs, graph(space), warm=False)
    assert found == graph(space)
    assert [p.name for p in (space.path / "data" / "parents").iterdir()] == ["none"]


def test_a_shared_network_goes_on_from_the_first_class_with_a_champion(space: Workspace, runs: FakeRegistry) -> None:
    found = warm_start.place(space, runs, graph(space, ("0", "a", "b"), "shared"), warm=True)
    assert parent_of(found, "all") == "data/parents/all"


def test_a_champion_of_which_nothing_was_kept_is_no_parent(space: Workspace, runs: FakeRegistry) -> None:
    runs.folders.clear()
    assert parent_of(warm_start.place(space, runs, graph(space), warm=True), "a") == "data/parents/none"


def test_a_champion_that_is_not_what_was_registered_is_refused(space: Workspace, runs: FakeRegistry) -> None:
    (model,) = runs.bundles
    runs.bundles[model]["weights.safetensors"] += b" "
    with pytest.raises(IntegrityError, match="weights"):
        warm_start.place(space, runs, graph(space), warm=True)
    del runs.bundles[model]["SHA256SUMS"]
    with pytest.raises(IntegrityError, match="SHA256SUMS"):
        warm_start.place(space, runs, graph(space), warm=True)


def test_a_consistent_but_other_bundle_is_refused(space: Workspace, runs: FakeRegistry) -> None:
    runs.versions[MODEL][0]["bundle_sha256"] = "0" * 64
    with pytest.raises(IntegrityError, match="expected the bundle 000"):
        warm_start.place(space, runs, graph(space), warm=True)


def test_the_lineage_says_what_a_network_started_from(space: Workspace) -> None:
    assert warm_start.sha256_of(space, "a") == "none"
    assert warm_start.sha256_of(space, "b") == "none"
    file = space.layout.network("a") / "origin.json"
    file.write_text('{"parent_bundle_sha256": "12ab"}')
    assert warm_start.sha256_of(space, "a") == "12ab"
    assert warm_start.started_from(space, "a") == "not known"
    file.write_text('{"parent_bundle_sha256": "12ab", "fits": {"full": "scratch: lost", "fold-0": "parent"}}')
    assert warm_start.started_from(space, "a") == "scratch: lost"


def test_a_versions_own_parent_can_be_put_back(space: Workspace, runs: FakeRegistry, tmp_path: Path) -> None:
    sha256 = runs.version_tags(MODEL, "1")["bundle_sha256"]
    runs.register(MODEL, "run", "model", {"parent_bundle_sha256": sha256})
    runs.register(MODEL, "run", "model", {"parent_bundle_sha256": "f" * 64})
    assert warm_start.restore(runs, "x", MODEL, "2", tmp_path / "clone", "a")
    assert digest(tmp_path / "clone" / "data" / "parents" / "a" / "bundle" / SUMS) == sha256
    assert not warm_start.restore(runs, "x", MODEL, "1", tmp_path / "clone", "a")
    with pytest.raises(IntegrityError, match="no longer"):
        warm_start.restore(runs, "x", MODEL, "3", tmp_path / "clone", "a")
