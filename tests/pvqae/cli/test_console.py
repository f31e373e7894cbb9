"""What both command lines promise to programs: exit codes, JSON alone on stdout, tables that nothing squeezes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import pvqae
from flows.adapters.tracking import Promotion
from flows.cli import main as flows
from flows.cli import promotion
from pvqae.cli import console
from pvqae.cli import main as library
from pvqae.core.errors import ConfigError, DataError, IntegrityError, ParityError, PvqaeError, ValidationFailed
from pvqae.samples import images


def test_an_image_that_is_too_large_is_refused_once_in_our_words(tmp_path: Path) -> None:
    Image.new("1", (16384, 8192)).save(tmp_path / "scan.png")
    app = typer.Typer(cls=console.CliGroup)

    @app.command()
    def one() -> None:
        images.header(tmp_path / "scan.png")

    @app.command()
    def two() -> None:
        pass

    done = CliRunner().invoke(app, ["one"])
    assert done.output == (
        f"error: {tmp_path / 'scan.png'}: expected at most 80000000 pixels, found 16384 x 8192; cut it into parts\n"
    )


ENTRY = Promotion("2026-11-24T22:58:17.000000Z", "root", "champion", "1", "2", "gate", ("samples: 7 new " * 5,), "r")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (DataError("x"), 2),
        (ValidationFailed("x"), 1),
        (IntegrityError("x"), 1),
        (ParityError("x"), 1),
        (PvqaeError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    app = typer.Typer(cls=console.CliGroup)

    @app.command()
    def one() -> None:
        raise error

    @app.command()
    def two() -> None:
        """Two commands make a group."""

    done = CliRunner().invoke(app, ["one"])
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr.startswith("stopped" if code == 130 else "error: x")


@pytest.mark.parametrize("app", [library.app, flows.app])
def test_both_command_lines_say_their_version(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"pvqae {pvqae.__version__}\n")


def test_json_stands_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with console.quiet(True):
        print("words")
    with console.quiet(False):
        print("{}")
    out, err = capsys.readouterr()
    assert (out, err) == ("{}\n", "words\n")


def test_json_of_whatever_a_flow_returns() -> None:
    @dataclass(frozen=True)
    class Found:
        report: Path
        figures: dict[str, object]

    values = {"auroc": float("nan"), "n": np.int64(3), "shares": np.array([0.5, np.inf]), "pairs": (1, None, True)}
    found = json.loads(console.to_json(Found(Path("a/b"), values)))
    assert found == {
        "report": "a/b",
        "figures": {"auroc": None, "n": 3, "shares": [0.5, None], "pairs": [1, None, True]},
    }


def test_a_piped_table_is_not_squeezed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console.console().print(promotion._log_table({"pvqae-gravel-gravel": [ENTRY]}, narrow=False))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "gravel" in line]
    assert all(value in row for value in ("2026-11-24T22:58:17Z", "pvqae-gravel-gravel", ENTRY.reasons[0].strip()))


def test_the_promotion_log_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=80).print(promotion._log_table({"pvqae-gravel-gravel": [ENTRY]}, narrow=True))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("2026-11-24" in line and "pvqae-gravel-gravel" in line for line in lines)
    assert not any("…" in line for line in lines)
