"""What people do on MLflow's page: each command says what is missing and how it comes back, or goes on; the repairs
that are printed are carried out here. On the real registry."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from flows.adapters.probes import ServerProbe
from flows.adapters.registry import Mlflow
from flows.adapters.tracking import Promotion, RegistryError
from flows.cli import promotion
from flows.core import lineage
from flows.gate import promote
from flows.gate.measure import Findings, Pair
from flows.gate.promote import VerdictRequest
from flows.retrain import admission
from flows.retrain.arrivals import Champions
from flows.review import review
from flows.serving import score
from flows.train import train
from flows.upkeep import gc
from flows.versions import promotions, report_page, version_bundles, warm_start
from pvqae.cli.console import to_json
from pvqae.core.config import Gate
from pvqae.core.errors import PvqaeError
from tests.flows.gate.test_gate_rules import SOUND
from tests.flows.gate.test_promote import bundle, sound

DATASET, CLASS = "t-1", "cap"
MODEL = f"pvqae-{DATASET}-{CLASS}"
TAGS = dict.fromkeys(lineage.REQUIRED, "known")
ALONE = replace(SOUND, auroc=None, kinds={}, latency_ms=None, size_bytes=None)


class Place:
    """A registry with two champions one after the other and a challenger: versions 1, 2 and 3."""

    def __init__(self, root: Path, uri: str) -> None:
        self.root, self.uri = root, uri
        self.registry, self.client = Mlflow(uri, root / "artifacts"), MlflowClient(uri, uri)
        self.runs = [self.add(alias) for alias in ("champion", "champion", "challenger")]

    def add(self, alias: str) -> str:
        run = self.registry.start(f"pvqae-{DATASET}", CLASS, tags={"stage": CLASS})
        number = 1 + max((int(p.name[7:]) for p in self.root.glob("bundle-*")), default=0)
        sha256 = bundle(self.root / f"bundle-{number}", f"weights {number}")
        tags = {**TAGS, "bundle_sha256": sha256, "mlflow_run": run, "data_hash": f"d{number}"}
        version = self.registry.register(MODEL, run, str(self.root / f"bundle-{number}"), tags)
        kind = "initial" if version == "1" else "gate" if alias == "champion" else "challenger"
        promotions.move(self.registry, MODEL, alias, version, kind=kind, reasons=("a test",))
        return run

    def back(self) -> Promotion:
        return promotions.rollback(self.registry, self.root, DATASET, MODEL, "why", loads=sound)

    def judge(self, override: str = "") -> str:
        def measure(pair: Pair) -> Findings:
            return Findings(SOUND if pair.champion else ALONE, pd.DataFrame({"sample_id": ["a"]}), "list")

        asked = VerdictRequest("manual", "a test", override or None)
        return promote.decide(self.registry, self.root, DATASET, CLASS, measure, Gate(), asked, loads=sound).version


@pytest.fixture
def place(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    def download(self: Mlflow, name: str, version: str, out: Path) -> Path:
        self.version_tags(name, version)
        if not (tmp_path / f"bundle-{version}").is_dir():
            raise RegistryError(f"{name} version {version}: its files can't be fetched: no bundle")
        return Path(shutil.copytree(tmp_path / f"bundle-{version}", out / "bundle"))

    monkeypatch.setattr(Mlflow, "download", download)
    return Place(tmp_path, database)


def delete_champion(place: Place) -> None:
    place.client.delete_model_version(MODEL, "2")


def delete_every_champion(place: Place) -> None:
    for version in ("1", "2"):
        place.client.delete_model_version(MODEL, version)


def delete_all_versions(place: Place) -> None:
    for version in ("1", "2", "3"):
        place.client.delete_model_version(MODEL, version)


def move_alias(place: Place) -> None:
    place.client.set_registered_model_alias(MODEL, "champion", "3")


def delete_alias(place: Place) -> None:
    place.client.delete_registered_model_alias(MODEL, "champion")


def rename_model(place: Place) -> None:
    place.client.rename_registered_model(MODEL, "our plant's detector")


def delete_model(place: Place) -> None:
    place.client.delete_registered_model(MODEL)


def delete_run(place: Place) -> None:
    place.client.delete_run(place.runs[2])


def delete_experiment(place: Place) -> None:
    place.client.delete_experiment(place.client.get_experiment_by_name(f"pvqae-{DATASET}").experiment_id)


def rename_experiment(place: Place) -> None:
    found = place.client.get_experiment_by_name(f"pvqae-{DATASET}")
    place.client.rename_experiment(found.experiment_id, "ours")


def remove_files(place: Place) -> None:
    shutil.rmtree(place.root / "bundle-2")


FAULTS = {
    fault.__name__: fault
    for fault in (
        *(delete_champion, delete_every_champion, delete_all_versions, move_alias, delete_alias, rename_model),
        *(delete_model, delete_run, delete_experiment, rename_experiment, remove_files),
    )
}


def page(place: Place) -> object:
    return [report_page._version(place.registry, MODEL, number, (), {}) for number in ("1", "2", "3")]


COMMANDS: dict[str, Callable[[Place], object]] = {
    "score, drift, serve": lambda p: score.parse(f"{MODEL}@champion", p.registry),
    "bundle of score": lambda p: score.bundle_of(p.root, p.registry, *score.parse(f"{MODEL}@champion", p.registry)),
    "promote run": lambda p: p.judge(),
    "promote run --override": lambda p: p.judge("it has to be"),
    "promote rollback": lambda p: (
        promotions.rollback(p.registry, p.root, DATASET, MODEL, "why", loads=sound).to_version
    ),
    "promote log": lambda p: to_json({n: p.registry.promotions(n) for n in p.registry.owners("pvqae-")}),
    "train, its runs": lambda p: p.registry.finish(p.registry.start(f"pvqae-{DATASET}", "train")),
    "train, a version": lambda p: p.add("challenger"),
    "train --warm": lambda p: warm_start.champion(p.registry, DATASET, [CLASS]),
    "retrain, the screen": lambda p: Champions(p.registry, DATASET, p.root / "x", 0.25).waits([CLASS]),
    "retrain, what was judged": lambda p: admission._of_this_data(p.registry, MODEL, "d3"),
    "report": page,
    "verify": lambda p: version_bundles.fetch(p.registry, MODEL, "2", p.root / "verified"),
    "review": lambda p: review._champions(p.root, p.registry, DATASET),
    "gc": lambda p: list(gc._versions(p.registry)),
    "doctor": lambda p: ServerProbe().champions(p.uri),
}


CHANGING = ("promote run", "promote rollback", "train, its runs", "train, a version", "promote run --override")


@pytest.mark.parametrize("fault", list(FAULTS))
def test_no_command_ends_in_a_traceback(place: Place, fault: str) -> None:
    FAULTS[fault](place)
    for command in sorted(COMMANDS, key=lambda name: name in CHANGING):  # last what changes something
        with suppress(PvqaeError):  # said in words
            COMMANDS[command](place)


@pytest.mark.parametrize("fault", ["move_alias", "delete_alias"])
def test_an_alias_in_other_hands_is_what_the_log_says(place: Place, fault: str) -> None:
    FAULTS[fault](place)
    assert score.parse(f"{MODEL}@champion", place.registry) == (MODEL, "2")
    assert Champions(place.registry, DATASET, place.root, 0.25).version(CLASS) == "2"
    promotions.complete(place.registry, MODEL)
    assert place.registry.alias(MODEL, "champion") == "2"


def said(place: Place, command: str) -> str:
    with pytest.raises(PvqaeError) as error:
        COMMANDS[command](place)
    return str(error.value)


def carried_out(place: Place, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what an error says."""
    command = re.search(r"(python -m flows promote .*|MLFLOW_TRACKING_URI=.*|back: (.+ -c .*))$", text)
    assert command, text
    words = shlex.split(command[2] or command[1])
    if words[:4] == ["python", "-m", "flows", "promote"] and words[4] == "rollback":
        monkeypatch.setattr(promotion, "project", lambda: place.root)
        monkeypatch.setattr(promotion, "registry", lambda root, strict: place.registry)
        monkeypatch.setattr(version_bundles, "check_version", sound)
        done = CliRunner().invoke(promotion.promote, words[4:])
        assert done.exit_code == 0, done.output
    elif words[:4] == ["python", "-m", "flows", "promote"]:
        assert words[4:] == ["run", DATASET, CLASS]
        place.judge()
    else:
        name, _, uri = words[0].partition("=")
        environ = {**os.environ, name: uri, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        rest = words[1:] if uri and name.isupper() else words
        subprocess.run(rest, check=True, env=environ, capture_output=True)


@pytest.mark.parametrize(
    ("fault", "command", "champion"),
    [
        ("delete_champion", "score, drift, serve", "1"),
        ("delete_champion", "promote run", "1"),
        ("delete_every_champion", "score, drift, serve", "3"),
        ("delete_every_champion", "promote rollback", "3"),
        ("rename_model", "score, drift, serve", "2"),
        ("rename_model", "promote run", "2"),
        ("delete_run", "promote run", "2"),
        ("delete_experiment", "promote run", "2"),
    ],
)
def test_the_way_back_that_is_printed_works(
    place: Place, monkeypatch: pytest.MonkeyPatch, fault: str, command: str, champion: str
) -> None:
    FAULTS[fault](place)
    carried_out(place, said(place, command), monkeypatch)
    assert score.parse(f"{MODEL}@champion", place.registry) == (MODEL, champion)
    if command != "promote rollback":
        COMMANDS[command](place)


def test_an_experiment_that_was_deleted_is_restored_by_the_next_training(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    delete_experiment(place)
    run = place.registry.start(f"pvqae-{DATASET}", "train")
    assert "it is restored" in capsys.readouterr().out
    assert place.client.get_run(run).info.lifecycle_stage == "active"
    assert place.judge() == "3"


def test_a_version_of_a_class_whose_champion_was_deleted_waits_for_the_gate(place: Place) -> None:
    from flows.versions.registration import Registrar

    delete_champion(place)
    registrar = Registrar(place.registry, *[None] * 5)  # type: ignore[arg-type]
    champion, deleted = registrar._champion(MODEL)
    assert champion is None
    assert "version 2, the champion, was deleted; go back to version 1" in deleted


def test_one_class_s_failed_version_stops_no_other() -> None:
    class Half:
        def existing(self, category: str) -> str:
            if category == "b":
                raise RegistryError("no files")
            return f"version of {category}"

    found, failed = train._versions(Half(), None, ["a", "b", "c"], print)  # type: ignore[arg-type]
    assert [found[0], found[2]] == ["version of a", "version of c"]
    assert (found[1].version, found[1].reasons) == ("", ("no files",))
    assert failed == ("b: no files",)
