"""What a person reads at the end, and how the command line fails."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli, summary
from flows.registration import Registered
from flows.summary import Summary

FIGURES = {"image_auroc": 0.91234, "pixel_auroc": None, "aupro": None, "threshold": 3.0, "false_alarm_rate": 0.0}
NEW = Registered("part", "1", True, "champion", ("parity holds",))
RESULT = Summary(
    dataset="x",
    figures={"classes": {"part": FIGURES}, "mean": FIGURES},
    ran=("train@part",),
    restored=(),
    versions=(NEW,),
    uncommitted=(),
    report=Path("/p/reports/x"),
    tracking_uri="sqlite:////p/mlflow.db",
    mlflow_run="run",
)


def test_one_row_per_class_and_the_mean() -> None:
    part, mean = summary.rows(RESULT)
    assert (part["class"], part["image AUROC"], part["pixel AUROC"]) == ("part", "0.9123", "-")
    assert part["version"] == "1 champion (new)"
    assert mean["class"] == "mean"


def test_a_run_without_work_says_so_plainly() -> None:
    idle = replace(RESULT, ran=(), versions=(replace(NEW, new=False),))
    assert summary.sentences(idle) == ["Nothing changed: no stage ran, no version registered."]
    assert not RESULT.nothing_changed


def test_what_the_data_check_warned_of_is_said() -> None:
    told = summary.sentences(replace(RESULT, warnings=("shade: nearly black",)))
    assert told[-1] == "WARNING of the data check: shade: nearly black"


def test_uncommitted_code_is_said_loudly_with_the_repair() -> None:
    dirty = replace(RESULT, versions=(replace(NEW, version="", new=False),), uncommitted=("pvqae/a.py",))
    said = " ".join(summary.sentences(dirty))
    assert "NOT REGISTERED" in said
    assert "pvqae/a.py" in said
    assert "commit them, then run again (nothing is trained again)" in said


def test_the_commands_name_the_real_places() -> None:
    local = dict(summary.commands(RESULT, {"PREFECT_HOME": "/p/prefect"}, "open"))
    assert local["open the report"] == "open /p/reports/x/index.html"
    assert local["MLflow's pages"].endswith("sqlite:////p/mlflow.db")
    assert local["Prefect's pages"].startswith("PREFECT_HOME=/p/prefect ")
    served = replace(RESULT, tracking_uri="http://mlflow:5000")
    remote = dict(summary.commands(served, {"PREFECT_API_URL": "http://prefect:4200/api"}, "open"))
    assert (remote["open MLflow"], remote["open Prefect"]) == ("open http://mlflow:5000", "open http://prefect:4200")


def test_a_wrong_key_is_one_paragraph_and_exit_code_2(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    (repository / "params.yaml").write_text("data: {name: demo}\n")
    result = CliRunner().invoke(cli.app, ["data", "add", "Bad Name", str(repository)])
    assert result.exit_code == 2
    assert "dataset name Bad Name" in result.output
    assert "Traceback" not in result.output


def test_outside_of_a_project_the_error_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["data", "add", "x", str(tmp_path)])
    assert (result.exit_code, "params.yaml" in result.output) == (2, True)


@pytest.mark.parametrize("command", [["train"], ["data", "add"]])
def test_help_has_an_example(command: list[str]) -> None:
    assert "Example: python -m flows" in " ".join(CliRunner().invoke(cli.app, [*command, "--help"]).output.split())


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (
            replace(NEW, alias="challenger", reasons=("one level has 99.0%",)),
            "version 1 is challenger: one level has 99.0%",
        ),
        (replace(NEW, version="", new=False, alias="", reasons=("scores change",)), "not registered: scores change"),
    ],
)
def test_the_fate_of_each_new_bundle_is_said_with_its_reasons(version: Registered, said: str) -> None:
    assert f"part: {said}" in summary.sentences(replace(RESULT, versions=(version,)))
