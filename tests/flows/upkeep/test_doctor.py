"""Servers that are down, workers that are missing, code that is not committed: each with its repair."""

import json
import shlex
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.adapters import dvc_files
from flows.adapters.fakes import FakeProbe
from flows.adapters.probes import ServerProbe
from flows.adapters.tracking import migrated
from flows.core import environment
from flows.upkeep import doctor
from pvqae.cli.checks import Check
from pvqae.core import config
from pvqae.core.errors import IntegrityError
from pvqae.core.files import write_text
from pvqae.datasets import demo
from pvqae.samples import images
from tests.flows.conftest import commit

API, MLFLOW = "http://prefect:4200/api", "http://mlflow:5000"
SERVERS = {"PREFECT_API_URL": API, "MLFLOW_TRACKING_URI": MLFLOW}
WELL = FakeProbe(up=(API, MLFLOW), known_pools={"pvqae": 1}, known_champions={"pvqae-demo-brick": "3"})


def of(checks: list[Check], name: str) -> Check:
    return next(item for item in checks if item.name == name)


def test_a_project_whose_servers_answer(project: Path) -> None:
    loaded: list[tuple[str, str]] = []
    found = doctor.examine(project, WELL, SERVERS, lambda name, version: loaded.append((name, version)))
    assert loaded == [("pvqae-demo-brick", "3")]
    for name in ("code", "DVC remote", "Prefect", "MLflow", "work pool pvqae", "champions", "services"):
        assert of(found, name).state == "ok", of(found, name)
    assert of(found, "champions").found == "pvqae-demo-brick version 3; 1 of 1 can be loaded"


def test_a_champion_that_cannot_be_loaded_is_bad_with_the_way_back(project: Path) -> None:
    def load(name: str, version: str) -> None:
        raise IntegrityError(f"{name}: expected bundle format 5, found 6")

    found = doctor.examine(project, WELL, SERVERS, load)
    broken = of(found, "champion pvqae-demo-brick")
    assert broken.state == "bad"
    assert "version 3 can't be loaded: pvqae-demo-brick: expected bundle format 5, found 6" in broken.found
    assert "promote rollback pvqae-demo-brick --reason" in broken.repair
    assert "0 of 1 can be loaded" in of(found, "champions").found


def test_servers_that_are_down(project: Path) -> None:
    found = doctor.examine(project, FakeProbe(wrong="no such bucket"), SERVERS)
    for name in ("Prefect", "MLflow", "DVC remote"):
        assert of(found, name).state == "bad"
        assert "python -m flows services up" in of(found, name).repair
    assert "nothing answers at http://mlflow:5000" in of(found, "MLflow").found
    assert "no such bucket" in of(found, "DVC remote").found


def test_no_server_at_all_is_well(project: Path) -> None:
    found = doctor.examine(project, FakeProbe(), {})
    assert of(found, "Prefect").state == of(found, "MLflow").state == "ok"
    assert of(found, "MLflow").found == f"sqlite:///{project / '.pvqae/mlflow/mlflow.db'}"
    assert (of(found, "champions").state, of(found, "champions").repair) == ("warn", "make run")


def test_a_training_pool_without_a_worker_is_bad_and_a_schedules_pool_a_warning() -> None:
    params = config.Params(flow=config.Flow(train_pool="gpus"))
    found = doctor._pools(API, params, FakeProbe(up=(API,), known_pools={"gpus": 0}))
    assert [(item.name, item.state) for item in found] == [("work pool pvqae", "warn"), ("work pool gpus", "bad")]
    assert found[0].repair == "prefect work-pool create --type process pvqae"
    assert found[1].repair == "python -m flows worker --pool gpus"


def test_code_that_is_not_committed(project: Path) -> None:
    (project / "flows" / "new.py").write_text("x = 1\n", "utf-8")
    (found,) = doctor._code(project)
    assert found.state == "warn"
    assert "1 files differ from the last commit (flows/new.py)" in found.found
    commit(project)
    assert doctor._code(project)[0].state == "ok"


def test_services_that_should_run_but_do_not(project: Path) -> None:
    file = environment.services_file(project)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"PREFECT_API_URL": API}), "utf-8")
    found = doctor.examine(project, FakeProbe(), {})
    assert of(found, "Prefect").state == "bad"
    assert of(found, "services").state == "bad"
    assert "postgres stopped" in of(found, "services").found
    file.write_text("{", "utf-8")
    assert "expected the services' environment as JSON" in doctor._client_settings(project, {})[1][0].found


def test_the_default_remote_and_a_remote_that_is_a_file(project: Path) -> None:
    section = dvc_files.default_remote(project)
    assert section == {"url": str(project / ".pvqae" / "remote")}
    assert ServerProbe().trouble(section) == ""
    Path(section["url"]).parent.mkdir(exist_ok=True)
    Path(section["url"]).touch()
    assert doctor._remote(project, ServerProbe()).state == "bad"
    (project / ".dvc" / "config").write_text("", "utf-8")
    assert doctor._remote(project, ServerProbe()).state == "warn"


def test_passwords_in_addresses_are_not_shown() -> None:
    uri = "http://me:secret@mlflow:5000"
    assert "secret" not in str(doctor._mlflow(uri, FakeProbe())) + str(doctor._mlflow(uri, FakeProbe(up=(uri,))))


def test_champions_of_a_database(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    assert ServerProbe().champions(f"sqlite:///{file}") == {}
    with sqlite3.connect(file) as database:
        database.execute("create table registered_model_aliases (name text, alias text, version integer)")
        database.execute("create table registered_models (name text)")
        database.execute("create table registered_model_tags (name text, key text, value text)")
        notes = [("pvqae-a-b", "pvqae.retired", "made no more"), ("pvqae-a-c", "pvqae.retired", ""), ("x", "y", "z")]
        database.executemany("insert into registered_model_tags values (?, ?, ?)", notes)
        database.executemany("insert into registered_models values (?)", [("pvqae-a-b",), ("pvqae-a-c",), ("other",)])
        rows = [("pvqae-a-b", "champion", 2), ("pvqae-a-b", "challenger", 3), ("other", "champion", 1)]
        database.executemany("insert into registered_model_aliases values (?, ?, ?)", rows)
    database.close()
    assert ServerProbe().champions(f"sqlite:///{file}") == {"pvqae-a-b": "2", "pvqae-a-c": ""}
    assert ServerProbe().retired(f"sqlite:///{file}") == {"pvqae-a-b"}
    (found, _) = doctor._champions(tmp_path, f"sqlite:///{file}", ServerProbe(), False, None)
    assert (found.state, found.found) == ("warn", "pvqae-a-b version 2, pvqae-a-c has none")
    file.write_bytes(b"no database")
    assert doctor._champions(tmp_path, f"sqlite:///{file}", ServerProbe(), False, None)[0].state == "warn"


def test_classes_without_images_or_without_a_champion_are_told(project: Path) -> None:
    params = config.load(project / "params.yaml")
    for dataset, names in (("nuts", ("big", "small")), ("nuts-old", ("big",))):
        place = project / ".pvqae" / "runs" / dataset
        for name in names:
            images.write(place / "data" / "raw" / dataset / name / "good" / "1.png", np.zeros((8, 8, 3), np.float32))
        own = params.data.model_copy(update={"name": dataset, "source": "folder"})
        write_text(place / "params.yaml", config.dump(params.model_copy(update={"data": own})))
    known = ["pvqae-nuts-big", "pvqae-nuts-flat", "pvqae-nuts-worn", "pvqae-nuts-old-big"]
    outside = FakeProbe(known_champions=dict.fromkeys(known, "1"), known_retired=frozenset({"pvqae-nuts-worn"}))
    gone, lacking = doctor._classes(project, outside.known_champions, outside.known_retired)
    assert gone.found == "champions without images: nuts flat"
    assert gone.repair.startswith("python -m flows promote retire nuts flat --reason TEXT")
    assert "nuts small" in lacking.found
    assert "nuts big" not in lacking.found
    whole = FakeProbe(known_champions=dict.fromkeys([*known[:1], "pvqae-nuts-small", known[3]], "1"))
    own_demo = {f"pvqae-demo-{name}": "1" for name in demo.TURNS}
    whole.known_champions |= own_demo
    assert doctor._classes(project, whole.known_champions, whole.known_retired) == []


class Answers(BaseHTTPRequestHandler):
    """What Prefect and MLflow answer, in short."""

    known: dict[str, Any] = {  # noqa: RUF012  # only read
        "/api/work_pools/filter": [{"name": "pvqae"}],
        "/api/work_pools/pvqae/workers/filter": [{"status": "ONLINE"}, {"status": "OFFLINE"}],
        "/health": "OK",
        "/api/2.0/mlflow/registered-models/search": {
            "registered_models": [
                {"name": "pvqae-a-b", "aliases": [{"alias": "champion", "version": "4"}]},
                {"name": "pvqae-a-c", "tags": [{"key": "pvqae.retired", "value": "made no more"}]},
                {"name": "x"},
            ]
        },
    }

    def do_GET(self) -> None:
        body = json.dumps(self.known[self.path.split("?")[0]]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *words: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_the_real_look_at_servers(server: str) -> None:
    look = ServerProbe()
    assert look.answers(f"{server}/health")
    assert look.pools(f"{server}/api") == {"pvqae": 1}
    assert look.champions(server) == {"pvqae-a-b": "4", "pvqae-a-c": ""}
    assert look.retired(server) == {"pvqae-a-c"}
    assert not look.answers("http://127.0.0.1:9/health")
    with pytest.raises(OSError, match="only sqlite and http"):
        look.champions("postgresql://x/y")


def test_a_pools_name_is_quoted_where_it_is_printed() -> None:
    params = config.Params(flow=config.Flow(train_pool="big $GPU's"))
    (_, lacking) = doctor._pools(API, params, FakeProbe(up=(API,), known_pools={"pvqae": 1}))
    assert shlex.split(lacking.repair)[-1] == "big $GPU's"
    (_, idle) = doctor._pools(API, params, FakeProbe(up=(API,), known_pools={"pvqae": 1, "big $GPU's": 0}))
    assert shlex.split(idle.repair)[-1] == "big $GPU's"


@pytest.mark.parametrize(("made", "state", "said"), [(7, "ok", "nothing is left"), (6, "warn", "pvqae-demo-brick")])
def test_an_older_format_is_to_be_migrated(project: Path, made: int, state: str, said: str) -> None:
    upgrade = of(doctor.examine(project, WELL, SERVERS, lambda name, version: made), "upgrade")
    assert upgrade.state == state
    assert said in upgrade.found
    assert ("flows migrate" in upgrade.repair) == (state == "warn")


def test_a_database_of_another_release_is_backed_up_first(project: Path) -> None:
    home = project / ".pvqae" / "mlflow"
    home.mkdir(parents=True)
    (home / "mlflow.db").touch()
    (home / "migrated-3.0.0").touch()
    outside = FakeProbe(known_champions={"pvqae-demo-brick": "3"})
    upgrade = of(doctor.examine(project, outside, {}, lambda name, version: 7), "upgrade")
    assert upgrade.state == "warn"
    assert "mlflow.db" in upgrade.found
    assert "cp -a" in upgrade.repair
    migrated(project).touch()
    assert of(doctor.examine(project, outside, {}, lambda name, version: 7), "upgrade").state == "ok"
