"""The real servers and the train flow on them: a clone of this project, PostgreSQL, S3, MLflow, Prefect, a worker."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import mlflow
import psutil
import pytest
import requests

from flows.machines import control
from flows.machines.service_files import ServiceFiles
from flows.machines.service_processes import ServiceProcesses
from pvqae.core.config import Services
from pvqae.datasets import demo
from tests.clones import Clone, clone

pytestmark = pytest.mark.integration

TINY = (
    *("data.source=folder", "data.name=bricks", "data.shares={calibrate: 0.2, gate: 0.2, test: 0.2}"),
    *("image.size=64", "model.width=16", "model.codes=16", "train.steps=4", "train.batch=4", "train.kappa=0.01"),
    *("prior.steps=4", "prior.width=16", "memory.codes=16", "calibration.folds=2", "evaluation.pictures=1"),
    *("compute.threads=1",),
)


class Project:
    """A clone with a folder of photographs and services on free ports."""

    def __init__(self, place: Clone, settings: Services) -> None:
        self.clone, self.root, self.settings = place, place.root, settings

    @property
    def environ(self) -> dict[str, str]:
        return {key: value for key, value in self.clone.environ.items() if not key.startswith("AWS_")}

    def run(self, *words: str, module: str = "flows") -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(
            command, cwd=self.root, env=self.environ, capture_output=True, text=True, timeout=600, check=False
        )

    def up(self) -> "subprocess.CompletedProcess[str]":
        given = [
            word
            for key, value in self.settings.model_dump().items()
            for word in ("--set", f"services.{key}={value}")
            if key.endswith("_port")
        ]
        return self.run("services", "up", *given)

    def status(self) -> dict[str, dict[str, Any]]:
        found = json.loads(self.run("services", "status", "--json").stdout)
        return {row["name"]: row for row in found}

    def living(self) -> list[psutil.Process]:
        return [
            item
            for name in self.status()
            for item in ServiceProcesses(ServiceFiles(self.root, self.settings)).members(name)
        ]


@pytest.fixture(scope="module")
def project(place: Path) -> Iterator[Project]:
    found = Project(clone(place), control.on_free_ports(Services()))
    try:
        done = found.up()
        assert done.returncode == 0, done.stdout + done.stderr
        yield found
    finally:
        control.down(found.root, found.settings)


@pytest.fixture(scope="module")
def trained(project: Project) -> str:
    """What a train run on the services printed."""
    photographs = project.root.parent / "photographs"
    demo.make(photographs)
    settings = [word for setting in (*TINY, f"data.root={photographs}/brick/train") for word in ("--set", setting)]
    done = project.run("train", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def client(project: Project) -> Any:
    secrets = json.loads((project.root / ".pvqae/services/secrets.json").read_text())
    keys = {"aws_access_key_id": secrets["s3_key_id"], "aws_secret_access_key": secrets["s3_secret"]}
    endpoint = f"http://127.0.0.1:{project.settings.s3_port}"
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


def keys_of(project: Project, bucket: str) -> list[str]:
    return [item["Key"] for item in client(project).list_objects_v2(Bucket=bucket).get("Contents", [])]


def only_version(project: Project) -> Any:
    [found] = mlflow.MlflowClient(f"http://127.0.0.1:{project.settings.mlflow_port}").search_model_versions()
    return found


def test_all_services_are_healthy_and_listen_on_this_machine_only(project: Project) -> None:
    assert {row["health"] for row in project.status().values()} == {"healthy"}
    heard = {
        found.laddr.ip
        for process in project.living()
        for found in process.net_connections("inet")
        if found.status == psutil.CONN_LISTEN
    }
    assert heard == {"127.0.0.1"}


def test_secrets_are_in_private_files_only(project: Project) -> None:
    secrets = json.loads((project.root / ".pvqae/services/secrets.json").read_text())
    for process in project.living():
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets.values())
    assert leaks(project) == []


def leaks(project: Project) -> list[str]:
    """Files that hold a secret of the services although others may read them, or that are written to be shown."""
    secrets = json.loads((project.root / ".pvqae/services/secrets.json").read_text()).values()
    found = []
    for file in filter(Path.is_file, project.root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # services work there
            content, open_to = file.read_bytes(), file.stat().st_mode & 0o077
            if any(secret.encode() in content for secret in secrets) and (open_to or file.suffix in (".log", ".pid")):
                found.append(str(file.relative_to(project.root)))
    return found


def test_the_s3_server_lets_nobody_in_without_the_key(project: Project) -> None:
    assert requests.get(f"http://127.0.0.1:{project.settings.s3_port}/dvc", timeout=5).status_code == 403
    client(project).put_object(Bucket="landing", Key="part.png", Body=b"image")
    server = next(item for item in project.living() if item.name() == "weed")
    for listener in server.net_connections("inet"):
        if listener.status == psutil.CONN_LISTEN:
            try:
                found = requests.get(f"http://127.0.0.1:{listener.laddr.port}/buckets/landing/part.png", timeout=2)
            except requests.RequestException:
                continue  # it does not speak HTTP
            assert found.content != b"image"


def test_the_train_flow_keeps_everything_on_the_services(project: Project, trained: str) -> None:
    version = only_version(project)
    assert version.tags["bundle_sha256"]
    assert any("weights.safetensors" in key for key in keys_of(project, "mlflow"))
    assert not (project.root / ".pvqae/mlflow").exists()
    api = f"http://127.0.0.1:{project.settings.prefect_port}/api"
    flows = requests.post(f"{api}/flow_runs/filter", json={}, timeout=60).json()
    flows = [flow for flow in flows if flow["state_type"] != "SCHEDULED"]  # the nights to come
    assert [(flow["id"], flow["state_type"]) for flow in flows] == [(version.tags["flow_run"], "COMPLETED")]


def test_dvc_s_remote_has_the_files_of_the_run(project: Project, trained: str) -> None:
    space = project.root / ".pvqae/runs/bricks"
    command = [sys.executable, "-m", "dvc", "status", "--cloud"]
    done = subprocess.run(command, cwd=space, env=project.environ, capture_output=True, text=True, check=True)
    assert "in sync" in done.stdout
    assert len(keys_of(project, "dvc")) > 20
    assert not (project.root / ".pvqae/remote").exists()


def test_a_pool_waits_for_flows(project: Project) -> None:
    api = f"http://127.0.0.1:{project.settings.prefect_port}/api"
    assert requests.get(f"{api}/work_pools/pvqae", timeout=10).json()["type"] == "process"


def test_up_starts_again_only_what_a_kill_has_ended(project: Project, trained: str) -> None:
    before = project.status()
    os.kill(before["postgres"]["pid"], signal.SIGKILL)
    os.kill(before["worker"]["pid"], signal.SIGKILL)
    done = project.up()
    assert done.returncode == 0, done.stdout + done.stderr
    after = project.status()
    assert {row["health"] for row in after.values()} == {"healthy"}
    kept = {name for name in after if after[name]["pid"] == before[name]["pid"]}
    assert kept == {"s3", "prefect", "mlflow", "watcher"}
    assert only_version(project).version == "1"


def test_a_flow_says_what_to_do_when_a_service_has_died(project: Project) -> None:
    living = ServiceProcesses(ServiceFiles(project.root, project.settings)).members("prefect")
    for process in living:
        process.kill()
    psutil.wait_procs(living, timeout=5)
    began = time.monotonic()
    done = project.run("train")
    assert done.returncode == 2
    assert "python -m flows services up" in done.stderr
    assert time.monotonic() - began < 15


def test_down_leaves_no_process_and_the_former_remote(project: Project) -> None:
    mlflow_server = project.status()["mlflow"]["pid"]
    os.kill(mlflow_server, signal.SIGKILL)  # its child lives on
    began = time.monotonic()
    done = project.run("services", "down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 15  # 10 s, and the start of python beside other work
    assert not project.living()
    assert not (project.root / ".dvc/config.local").exists()
    assert not (project.root / ".pvqae/services/env.json").exists()
    command = [sys.executable, "-m", "dvc", "remote", "default"]
    found = subprocess.run(command, cwd=project.root, env=project.environ, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "local"
