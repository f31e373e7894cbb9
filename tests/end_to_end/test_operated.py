"""A plant's week on real servers: new samples retrain by themselves, the gate promotes and refuses, the way back,
a rebuild, drift. PostgreSQL, S3, MLflow, Prefect with a worker and the watcher; nobody calls `retrain`."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
import yaml

from flows.machines import control
from pvqae.core.config import Services
from pvqae.datasets import demo
from pvqae.samples import images
from tests.clones import clone
from tests.end_to_end.test_services import Project, client, leaks

MODEL = "pvqae-tiles-part"
TINY = (
    *("data.source=folder", "data.name=tiles", "data.shares={calibrate: 0.2, gate: 0.3, test: 0.1}"),
    *("image.size=64", "model.width=16", "train.steps=20", "prior.steps=5", "memory.codes=64"),
    *("calibration.folds=2", "evaluation.pictures=0", "compute.threads=1", "train.kappa=0.01"),
)
# The project's own settings of what changes no result; new samples come from the services' bucket.
OWN = {
    "landing": {"url": "s3://landing/{dataset}", "poll": 3},
    "retrain": {"min_new": 5, "screen_margin": 2.0},
    "gate": {"latency_ratio": 9.0},  # a busy machine measures milliseconds badly
}
NEW = 8
NIGHT = 'cron: "0 3 * * *"'


@pytest.fixture(scope="module")
def plant(place: Path) -> Iterator[Project]:
    """A project on services, with a first champion."""
    found = Project(clone(place), control.on_free_ports(Services()))
    params = found.root / "params.yaml"
    values = yaml.safe_load(params.read_text("utf-8"))
    for section, settings in OWN.items():
        values[section] |= settings
    params.write_text(yaml.safe_dump(values), "utf-8")
    sleep_on(found.root / "infra" / "prefect.yaml")
    demo.make_surfaces(place / "photographs", 110 + NEW)
    (place / "later").mkdir()
    for file in sorted((place / "photographs" / "part" / "good").glob("*.png"))[110:]:
        file.rename(place / "later" / file.name)
    try:
        done = found.up()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 champion (new)" in train(found, f"data.root={place / 'photographs'}")
        yield found
    finally:
        control.down(found.root, found.settings)


def sleep_on(deployments: Path) -> None:
    """Half a day to the nightly schedule, whenever the test runs."""
    text = deployments.read_text("utf-8")
    assert NIGHT in text
    hour = (datetime.now(UTC).hour + 12) % 24
    deployments.write_text(text.replace(NIGHT, f'cron: "0 {hour} * * *"'), "utf-8")


def flows(plant: Project, *words: str, expect: int = 0) -> str:
    done = plant.run(*words)
    assert done.returncode == expect, f"{words}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def train(plant: Project, *settings: str) -> str:
    return flows(plant, "train", *(word for item in (*TINY, *settings) for word in ("--set", item)))


def until(what: Callable[[], Any], patience: float = 480) -> Any:
    """What `what` comes to once it is true."""
    deadline = time.monotonic() + patience
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)
    return found


def registry(plant: Project) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"http://127.0.0.1:{plant.settings.mlflow_port}")


def retrainings(plant: Project, deployment: str, ended: bool = True) -> list[dict[str, Any]]:
    """Flow runs that a trigger has started."""
    api = f"http://127.0.0.1:{plant.settings.prefect_port}/api"
    asked: dict[str, Any] = {"deployments": {"name": {"any_": [deployment]}}}
    if ended:
        asked["flow_runs"] = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}
    found: list[dict[str, Any]] = requests.post(f"{api}/flow_runs/filter", json=asked, timeout=60).json()
    return found


@pytest.mark.filterwarnings("default")  # MLflow's own, of its import
def test_an_object_in_the_bucket_leads_to_a_champion_with_no_hand(plant: Project) -> None:
    for file in sorted((plant.root.parent / "later").iterdir()):
        client(plant).upload_file(str(file), "landing", f"tiles/part/{file.name}")
    [run] = until(lambda: retrainings(plant, "samples"))
    assert run["state"]["type"] == "COMPLETED", run["state"]
    assert run["parameters"]["dataset"] == "tiles"
    version = registry(plant).get_model_version(MODEL, "2")
    assert (version.tags["trigger"], version.tags["parent_version"]) == ("samples", "1")
    assert version.tags["gate_outcome"] == "pass", version.tags["gate_verdict"]
    assert registry(plant).get_model_version_by_alias(MODEL, "champion").version == "2"


@pytest.mark.filterwarnings("default")
def test_a_worse_challenger_is_refused_with_reasons_and_a_rollback_restores(plant: Project) -> None:
    assert "3 challenger (new)" in train(plant, "score.fusion=prior", "score.top=1.0")
    said = flows(plant, "promote", "run", "tiles", "part", expect=1)
    assert "broken: image AUROC" in said
    assert registry(plant).get_model_version_by_alias(MODEL, "champion").version == "2"
    flows(plant, "promote", "rollback", "tiles", "part", "--reason", "shown to work")
    assert registry(plant).get_model_version_by_alias(MODEL, "champion").version == "1"
    log = json.loads(flows(plant, "promote", "log", "tiles", "--json"))[MODEL]
    moves = [(entry["kind"], entry["to_version"]) for entry in log if entry["alias"] == "champion"]
    assert moves == [("initial", "1"), ("gate", "2"), ("rollback", "1")]


@pytest.mark.filterwarnings("default")
def test_a_version_is_made_again_from_its_lineage(plant: Project) -> None:
    said = flows(plant, "verify", MODEL, "2")
    assert "reproduced, the rebuilt bundle has the registered hash" in said


@pytest.mark.filterwarnings("default")
def test_drift_of_what_is_scored_starts_a_retraining(plant: Project) -> None:
    photographs = sorted((plant.root.parent / "photographs" / "part" / "good").glob("*.png"))[:40]
    for file in photographs:
        images.write(plant.root / "today" / file.name, np.clip(images.read(file) * 0.8, 0, 1), channels=1)
    said = flows(plant, "drift", f"{MODEL}@champion", str(plant.root / "today"), expect=3)
    assert "brightness" in said
    [run] = until(lambda: retrainings(plant, "drift"))
    assert run["state"]["type"] == "COMPLETED", run["state"]
    assert "brightness" in run["parameters"]["drift"]
    found = registry(plant)
    experiment = found.get_experiment_by_name("pvqae-tiles")
    assert experiment is not None
    [decision] = found.search_runs([experiment.experiment_id], "tags.trigger = 'drift'")
    assert "brightness" in decision.data.tags["decision_reasons"]


def test_both_deployments_wait_for_the_next_event_and_for_the_night(plant: Project) -> None:
    scheduled = until(lambda: retrainings(plant, "schedule", ended=False), patience=120)
    assert {run["state"]["type"] for run in scheduled} == {"SCHEDULED"}


def test_the_project_has_no_stray_state(plant: Project) -> None:
    assert not (plant.root / ".pvqae" / "mlflow").exists()
    assert not list(Path(plant.root).glob("*.part"))


def test_a_week_of_work_has_written_no_secret_where_others_look(plant: Project) -> None:
    """Logs, runs, tags, reports, objects of the bucket and pages of the database: all lie below the project here."""
    assert (plant.root / ".pvqae" / "services" / "secrets.json").exists()
    assert leaks(plant) == []
