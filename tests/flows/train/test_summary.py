"""What a person reads at the end, and how the command line fails."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import main
from flows.gate.rules import Verdict
from flows.retrain.retrain import _after
from flows.train.summary import FIGURES as COLUMNS
from flows.train.summary import Summary
from flows.versions.registration import Registered

FIGURES = {"image_auroc": 0.91234, "pixel_auroc": None, "aupro": None, "seg_f1": 0.6,
           "threshold": 3.0, "false_alarm_rate": 0.0}  # fmt: skip
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
    part, mean = RESULT.rows()
    assert (part["class"], part["image AUROC"], part["pixel AUROC"]) == ("part", "0.912", "-")
    assert (part["AUPRO"], part["Seg F1"]) == ("-", "0.600")
    assert part["version"] == "1 champion (new)"
    assert mean["class"] == "mean"


def test_the_table_fits_a_terminal_whole_with_a_long_name(capsys: pytest.CaptureFixture[str]) -> None:
    figures = dict.fromkeys(COLUMNS.values(), 0.98765) | {"threshold": 123.45678}
    found = {"classes": {"magnetic_tile": figures}, "mean": figures}
    version = replace(NEW, category="magnetic_tile", version="12")
    Console(width=80).print(replace(RESULT, figures=found, versions=(version,)).table())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    shown = next(line for line in lines if "magnetic_tile" in line)
    assert "12 champion (new)" in shown
    assert "0.988 0.988 0.988 0.988" in " ".join(shown.split())
    assert "123.457" in shown
    assert "…" not in "".join(lines)


def test_a_run_without_work_says_so_plainly() -> None:
    idle = replace(RESULT, ran=(), versions=(replace(NEW, new=False),))
    assert idle.sentences() == ["Nothing changed: no stage ran, no version registered."]
    assert not RESULT.nothing_changed


def test_warnings_of_the_data_are_told_each_time() -> None:
    warned = replace(RESULT, warnings=("12 images not looked at: a.gif",))
    for result in (warned, replace(warned, ran=(), versions=(replace(NEW, new=False),))):
        assert result.sentences()[-1] == "Warning about the data: 12 images not looked at: a.gif"


def test_uncommitted_code_is_said_loudly_with_the_repair() -> None:
    dirty = replace(RESULT, versions=(replace(NEW, version="", new=False),), uncommitted=("pvqae/a.py",))
    said = " ".join(dirty.sentences())
    assert "NOT REGISTERED" in said
    assert "pvqae/a.py" in said
    assert "commit them, then run again (nothing is trained again)" in said


def test_the_commands_name_the_real_places() -> None:
    local = dict(RESULT.commands({"PREFECT_HOME": "/p/prefect"}, "open"))
    assert local["open the report"] == "open /p/reports/x/index.html"
    assert local["MLflow's pages"].endswith("sqlite:////p/mlflow.db")
    assert local["Prefect's pages"].startswith("env PREFECT_HOME=/p/prefect ")
    served = replace(RESULT, tracking_uri="http://mlflow:5000")
    remote = dict(served.commands({"PREFECT_API_URL": "http://prefect:4200/api"}, "open"))
    assert (remote["open MLflow"], remote["open Prefect"]) == ("open http://mlflow:5000", "open http://prefect:4200")


@pytest.mark.parametrize(
    ("promoted", "outcome", "cell", "said"),
    [
        (True, "pass", "2 champion (new)", "part: version 2 is champion: the gate, against 1: pass"),
        (False, "refused", "2 challenger (new)", "part: version 2 is challenger: the gate, against 1: refused"),
    ],
)
def test_after_the_gate_table_and_sentences_say_what_the_verdict_says(
    promoted: bool, outcome: Literal["pass", "refused"], cell: str, said: str
) -> None:
    waiting = replace(NEW, version="2", alias="challenger", reasons=("a champion exists: the gate decides",))
    verdict = Verdict(outcome, promoted, (), {}, version="2", champion="1")
    found = _after(replace(RESULT, versions=(waiting,)), (("pvqae-x-part", verdict),))
    assert found.rows()[0]["version"] == cell
    assert said in found.sentences()
    assert "the gate decides" not in " ".join(found.sentences())


def test_a_folder_that_is_no_dataset_is_told_before_anything_starts(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    words = ["--set", "data.source=folder", "--set", "data.root=/nowhere/at all"]
    result = CliRunner().invoke(main.app, ["train", *words])
    assert (result.exit_code, result.output) == (
        2,
        "error: /nowhere/at all: expected a folder of images, found nothing\n",
    )
    assert not (repository / ".pvqae" / "runs").exists()


ODD = ["a b", "it's", "$HOME `id`", 'say "x"; #1']


@pytest.mark.parametrize("name", ODD)
def test_the_commands_can_be_copied_whatever_the_folder_is_called(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    python = folder / "python"  # stands for this environment's: says what it was given
    python.write_text('#!/bin/sh\nprintf "%s|%s|%s|%s" "$2" "$3" "$PREFECT_HOME" "$5"\n', "utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    (folder / "index.html").write_text("the page", "utf-8")
    result = replace(RESULT, report=folder, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    told = dict(result.commands({"PREFECT_HOME": str(folder)}, "cat"))

    def by_shell(command: str) -> str:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, cwd=folder)
        return done.stdout.rstrip("\n")

    assert by_shell(told["open the report"]) == "the page"
    assert by_shell(told["MLflow's pages"]).split("|")[::3] == ["mlflow", result.tracking_uri]
    assert by_shell(told["Prefect's pages"]).split("|")[:3] == ["prefect", "server", str(folder)]


def test_a_wrong_key_is_one_paragraph_and_exit_code_2(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    (repository / "params.yaml").write_text("data: {name: demo}\n")
    result = CliRunner().invoke(main.app, ["data", "add", "Bad Name", str(repository)])
    assert result.exit_code == 2
    assert "dataset name Bad Name" in result.output
    assert "Traceback" not in result.output


def test_outside_of_a_project_the_error_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main.app, ["data", "add", "x", str(tmp_path)])
    assert (result.exit_code, "params.yaml" in result.output) == (2, True)


@pytest.mark.parametrize("command", [["train"], ["data", "add"]])
def test_help_has_an_example(command: list[str]) -> None:
    assert "Example: python -m flows" in " ".join(CliRunner().invoke(main.app, [*command, "--help"]).output.split())


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
    assert f"part: {said}" in replace(RESULT, versions=(version,)).sentences()
