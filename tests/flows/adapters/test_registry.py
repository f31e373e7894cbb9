"""MLflow as the flows use it, and its twin: one contract. Real MLflow on a copy of a migrated database."""

import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.adapters.fakes import FakeRegistry
from flows.adapters.mlflow_client import _address_as_the_user
from flows.adapters.tracking import Metric, Promotion, Registry
from flows.core import lineage
from flows.core.lineage import Owner
from flows.versions import promotions
from pvqae.core import files
from pvqae.core.errors import IntegrityError, PvqaeError
from pvqae.inference import bundle


def entry(version: str, alias: str = "champion", when: str = "2026-01-01T00:00:00.000000Z") -> Promotion:
    return Promotion(when, "someone", alias, "none", version, "initial", ("parity holds", "no collapse"), "run")


def version(registry: Registry, bundle: str) -> str:
    run = registry.start("pvqae-x", "one")
    tags = {"bundle_sha256": bundle, "manifest_sha256": "m"}
    return registry.register("pvqae-x-part", run, f"/models/{bundle}", tags)


def test_an_equal_version_is_found_by_all_of_its_tags(registry: Registry) -> None:
    same = {"bundle_sha256": "b1", "manifest_sha256": "m"}
    assert registry.find("pvqae-x-part", same) is None
    assert (version(registry, "b1"), version(registry, "b2")) == ("1", "2")
    assert registry.find("pvqae-x-part", same) == "1"
    assert registry.find("pvqae-x-part", same | {"manifest_sha256": "other"}) is None
    assert registry.find("pvqae-x-other", same) is None
    assert registry.version_tags("pvqae-x-part", "1")["bundle_sha256"] == "b1"


def test_aliases_move_with_an_entry_each_and_the_log_only_grows(registry: Registry) -> None:
    assert registry.alias("pvqae-x-part", "champion") is None
    version(registry, "b1")
    version(registry, "b2")
    assert registry.alias("pvqae-x-part", "champion") is None
    assert registry.promotions("pvqae-x-part") == ()
    first, second = entry("1"), entry("2", when="2026-01-02T00:00:00.000000Z")
    registry.promote("pvqae-x-part", "champion", first)
    registry.promote("pvqae-x-part", "champion", second)
    assert registry.alias("pvqae-x-part", "champion") == "2"
    assert registry.promotions("pvqae-x-part") == (first, second)


def status(registry: Registry, run: str) -> str:
    if isinstance(registry, FakeRegistry):
        return registry.runs[run].status
    found: str = MlflowClient().get_run(run).info.status
    return found


def test_open_runs_of_a_dead_flow_are_killed_with_all_below_and_no_others(registry: Registry) -> None:
    registry.end_open("pvqae-dead", {"flow": "train"})  # no such experiment yet
    mine, others = {"flow": "train", "place": "here"}, {"flow": "train", "place": "there"}
    dead = registry.start("pvqae-dead", "train", tags=mine)
    below = registry.start("pvqae-dead", "part", dead)
    deepest = registry.start("pvqae-dead", "evaluate", below)
    ended = registry.start("pvqae-dead", "prior", below)
    registry.finish(ended)
    alive = registry.start("pvqae-dead", "train", tags=others)
    registry.end_open("pvqae-dead", mine)
    assert [status(registry, run) for run in (dead, below, deepest)] == ["KILLED"] * 3
    assert (status(registry, ended), status(registry, alive)) == ("FINISHED", "RUNNING")


def test_versions_are_tagged_and_models_listed(registry: Registry) -> None:
    version(registry, "b1")
    registry.tag_version("pvqae-x-part", "1", {"gate_outcome": "pass"})
    assert registry.version_tags("pvqae-x-part", "1")["gate_outcome"] == "pass"
    assert tuple(registry.owners("pvqae-x")) == ("pvqae-x-part",)
    assert tuple(registry.owners("pvqae-other")) == ()
    assert registry.promotions("pvqae-other") == ()


def test_an_alias_set_alone_leaves_no_entry(registry: Registry) -> None:
    version(registry, "b1")
    registry.set_alias("pvqae-x-part", "champion", "1")
    assert registry.alias("pvqae-x-part", "champion") == "1"
    assert registry.promotions("pvqae-x-part") == ()


def test_what_the_registry_does_not_have_is_said_by_name(real: Registry, tmp_path: Path) -> None:
    from flows.adapters.registry import RegistryError

    with pytest.raises(RegistryError, match="pvqae-x-part version 7"):
        real.version_tags("pvqae-x-part", "7")
    with pytest.raises(RegistryError, match="pvqae-x-part version 7"):
        real.download("pvqae-x-part", "7", tmp_path / "out")


def test_twin_gives_back_the_files_that_it_was_given(twin: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "weights.safetensors").write_bytes(b"weights")
    run = twin.start("pvqae-x", "part")
    twin.register("pvqae-x-part", run, twin.log_model(run, tmp_path / "bundle"), {})
    own = twin.download("pvqae-x-part", "1", tmp_path / "own")
    assert {file.name: file.read_bytes() for file in own.iterdir()} == {"weights.safetensors": b"weights"}


def test_real_runs_are_a_tree_with_params_curves_data_and_files(real: Registry, database: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    parent = real.start("pvqae-x", "train x", tags={"trigger": "manual"})
    child = real.start("pvqae-x", "part", parent)
    real.params(parent, {"seed": "0"})
    real.metrics(child, [Metric("vq/loss", 2.0, 1), Metric("vq/loss", 1.0, 2)])
    real.dataset(parent, "x", "d" * 64, "data/manifest.csv")
    (tmp_path / "params.yaml").write_text("seed: 0")
    real.artifact(parent, tmp_path / "params.yaml", "sources")
    real.finish(child, "FAILED")
    client = MlflowClient(database)
    seen = client.get_run(parent)
    assert (seen.data.params, seen.data.tags["trigger"]) == ({"seed": "0"}, "manual")
    assert seen.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert [file.path for file in client.list_artifacts(parent, "sources")] == ["sources/params.yaml"]
    assert seen.info.artifact_uri.startswith((tmp_path / "artifacts").as_uri())
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == parent
    assert client.get_run(child).info.status == "FAILED"
    assert [(point.step, point.value) for point in client.get_metric_history(child, "vq/loss")] == [(1, 2.0), (2, 1.0)]


class Marker:
    """Unpickling it makes the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # MLflow's own types, at its import
@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")  # MLflow's use of pandas
def test_a_pickle_planted_beside_a_version_is_not_loaded(real: Registry, tmp_path: Path) -> None:
    own = tmp_path / "bundle"
    own.mkdir()
    (own / "weights.safetensors").write_bytes(b"weights")
    files.seal_folder(own)
    run = real.start("pvqae-x", "part")
    real.register("pvqae-x-part", run, real.log_model(run, own), {})
    (stored,) = (path.parent for path in (tmp_path / "artifacts").rglob("SHA256SUMS"))
    for folder in (stored, stored.parents[1]):
        for name in ("weights.safetensors", "python_model.pkl", "model.pth", "data.joblib"):
            (folder / name).write_bytes(pickle.dumps(Marker(tmp_path / "marker")))
    with pytest.raises(IntegrityError):
        bundle.load(real.download("pvqae-x-part", "1", tmp_path / "down"))
    assert not (tmp_path / "marker").exists()


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # MLflow's own types, at its import
@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")  # MLflow's use of pandas
def test_a_model_is_code_and_the_bundle_without_pickle(real: Registry, database: str, tmp_path: Path) -> None:
    import mlflow

    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "weights.safetensors").write_bytes(b"weights")
    run = real.start("pvqae-x", "part")
    model = real.log_model(run, bundle)
    assert real.register("pvqae-x-part", run, model, {}) == "1"
    files = Path(mlflow.artifacts.download_artifacts("models:/pvqae-x-part/1", dst_path=str(tmp_path / "down")))
    assert (files / "artifacts" / "bundle" / "weights.safetensors").read_bytes() == b"weights"
    assert [file for file in files.rglob("*") if file.suffix in (".pkl", ".pickle", ".pt", ".pth")] == []
    own = real.download("pvqae-x-part", "1", tmp_path / "own")
    assert {file.name: file.read_bytes() for file in own.iterdir()} == {"weights.safetensors": b"weights"}
    info = mlflow.models.get_model_info("models:/pvqae-x-part/1")
    assert info.signature.inputs.input_names() == ["image"]
    assert info.signature.outputs.input_names() == ["image_score", "decision", "anomaly_map"]
    assert info.saved_input_example_info


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # MLflow's own types, at its import
@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")  # MLflow's use of pandas
def test_versions_share_the_frozen_weights_on_the_disk(real: Registry, tmp_path: Path) -> None:
    run = real.start("pvqae-x", "part")
    for number, weights in enumerate((b"frozen", b"frozen", b"others", b"frozen")):
        own = tmp_path / str(number) / "bundle"
        own.mkdir(parents=True)
        (own / files.BACKBONE).write_bytes(weights)
        (own / "weights.safetensors").write_bytes(b"trained")
        real.register("pvqae-x-part", run, real.log_model(run, own), {})
    kept = {path.stat().st_ino for path in (tmp_path / "artifacts").rglob(files.BACKBONE)}
    assert len(kept) == 2
    assert not list((tmp_path / "artifacts").rglob("*.part"))
    trained = [path.stat().st_nlink for path in (tmp_path / "artifacts").rglob("weights.safetensors")]
    assert trained == [1] * 4
    for number, weights in ((1, b"frozen"), (3, b"others"), (4, b"frozen")):
        found = real.download("pvqae-x-part", str(number), tmp_path / f"down-{number}")
        assert (found / files.BACKBONE).read_bytes() == weights


def owned(registry: Registry, dataset: str, category: str) -> str:
    name = lineage.model_name(dataset, category)
    run = registry.start(f"pvqae-{dataset}", category)
    registry.register(name, run, "/models/b", {"bundle_sha256": "b"}, Owner(dataset, category))
    return name


def test_models_of_a_dataset_are_its_own_alone(registry: Registry) -> None:
    for dataset, category in (("demo", "x"), ("demo2", "x"), ("a_b", "x"), ("a-b", "x"), ("axb", "X"), ("a", "c-d")):
        owned(registry, dataset, category)
    found = {dataset: promotions.models_of(registry, dataset) for dataset in ("demo", "a_b", "a-b", "a", "%", "d")}
    assert found == {
        "demo": ["pvqae-demo-x"],
        "a_b": ["pvqae-a_b-x"],
        "a-b": ["pvqae-a-b-x"],
        "a": ["pvqae-a-c-d"],
        "%": [],
        "d": [],
    }
    for odd in ("pvqae-demo_", "pvqae-DEMO", "pvqae-%", "pvqae-it's", '"', "pvqae-a*", "pvqae-[a]"):
        assert tuple(registry.owners(odd)) == ()
        assert registry.find(odd, {}) is None


def test_a_name_that_two_datasets_could_have_stays_with_the_first(registry: Registry) -> None:
    name = owned(registry, "a", "b-c")
    assert registry.owners("pvqae-") == {name: Owner("a", "b-c")}
    with pytest.raises(PvqaeError, match="class b-c of dataset a"):
        promotions.check_owners(registry, "a-b", ["x", "c"])
    with pytest.raises(PvqaeError, match="class b-c of dataset a"):
        owned(registry, "a-b", "c")
    promotions.check_owners(registry, "a-b", ["x", "d"])
    promotions.check_owners(registry, "a", ["b-c"])
    assert owned(registry, "a", "b-c") == name


def test_models_of_other_people_are_not_looked_at(real: Registry) -> None:
    for name in ("pvqae-it's", "pvqae-x y", "PVQAE-x-y", "pvqae-X-y", "other"):
        MlflowClient().create_registered_model(name)
    assert tuple(real.owners("pvqae-")) == ()


def test_a_model_of_an_earlier_release_is_that_of_its_runs(real: Registry) -> None:
    run = real.start("pvqae-a-b", "c")
    real.register("pvqae-a-b-c", run, "/models/b", {})
    real.register("pvqae-a-x", run, "/models/b", {})
    MlflowClient().create_registered_model("pvqae-a-b-d")
    assert real.owners("pvqae-a") == {
        "pvqae-a-b-c": Owner("a-b", "c"),
        "pvqae-a-b-d": None,
        "pvqae-a-x": Owner("a", "x"),
    }
    assert promotions.models_of(real, "a") == ["pvqae-a-b-d", "pvqae-a-x"]


LONG = "ü" * 100_001


@pytest.mark.parametrize(("kind", "most"), [("params", 6000), ("tags", 8000)])
def test_what_mlflow_would_cut_is_an_artifact_and_the_value_says_so(real: Registry, kind: str, most: int) -> None:
    values = {"fits": "x" * most, "long": "y" * (most + 1), "data.categories": LONG}
    run = real.start("pvqae-x", "one", tags=values if kind == "tags" else {})
    if kind == "params":
        real.params(run, values)
        real.params(run, values)  # a stage that runs again
    client = MlflowClient()
    kept = getattr(client.get_run(run).data, kind)
    assert kept["fits"] == values["fits"]
    for key in ("long", "data.categories"):
        found = re.fullmatch(rf"(\d+) characters: artifact ({kind}/{key}/\w+\.txt) of run {run}", kept[key])
        assert found
        assert int(found[1]) == len(values[key])
        assert Path(client.download_artifacts(run, found[2])).read_text("utf-8") == values[key]


def test_long_tags_of_versions_and_long_reasons_of_a_promotion_are_kept(real: Registry) -> None:
    run = real.start("pvqae-x", "part")
    real.register("pvqae-x-part", run, "/models/b", {"reason": LONG, "short": "s"})
    real.tag_version("pvqae-x-part", "1", {"gate_verdict": LONG})
    tags = real.version_tags("pvqae-x-part", "1")
    assert tags["short"] == "s"
    assert tags["reason"].startswith("100001 characters: artifact tags/reason/")
    assert tags["gate_verdict"].startswith("100001 characters: artifact tags/gate_verdict/")
    real.promote("pvqae-x-part", "champion", replace(entry("1"), reasons=("because " + "ü" * 6000, "more")))
    (logged,) = real.promotions("pvqae-x-part")
    assert logged.reasons[0].startswith("because üü")
    (name,) = re.findall(r"artifact (promotions/\S+) of run", logged.reasons[0])
    whole = json.loads(Path(MlflowClient().download_artifacts(run, name)).read_text("utf-8"))
    assert whole["reasons"] == ["because " + "ü" * 6000, "more"]
    assert real.alias("pvqae-x-part", "champion") == "1"


@pytest.mark.parametrize("style", ["virtual", "path", ""])
def test_mlflow_addresses_buckets_as_aws_s_settings_say(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile p]\ns3 =\n    addressing_style = {style}\n" if style else "[profile p]\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "p")
    _address_as_the_user()
    assert os.environ.get(name, "") == style
    monkeypatch.setenv("AWS_PROFILE", "none")
    monkeypatch.setenv(name, "auto")
    _address_as_the_user()
    assert os.environ[name] == "auto"
