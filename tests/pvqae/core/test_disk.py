"""A full disk is named, whoever ran out of room, and nothing else is taken for one."""

import errno
import sqlite3
from collections import namedtuple
from pathlib import Path

import pytest
import typer

from pvqae.cli import console
from pvqae.core import errors
from pvqae.core.errors import DataError, PvqaeError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors.shutil, "disk_usage", lambda place: Usage(2**40, 0, 2**40))


def wrapped() -> Exception:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/x")
        except OSError as inner:
            raise RuntimeError("it did not work") from inner
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        sqlite3.OperationalError("database or disk is full"),
        PvqaeError("stage train@nut failed (exit 1):\nOSError: [Errno 28] No space left on device"),
        wrapped(),
    ],
)
def test_errors_of_a_full_disk_end_with_what_to_do(
    error: Exception, room: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as exit, console._explained():
        raise error
    assert exit.value.exit_code == 1
    assert "free some space, then run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("no"), KeyError("x")])
def test_other_errors_stay_as_they_are(error: Exception, room: None) -> None:
    with pytest.raises(type(error)), console._explained():
        raise error


def test_a_disk_without_room_is_named_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(errors.shutil, "disk_usage", lambda place: Usage(2**30, 2**30, 2**20))
    with pytest.raises(typer.Exit), console._explained():
        raise ConnectionError("the server does not answer")  # it could not write either
    assert f"{tmp_path} (1.0 MB free)" in capsys.readouterr().err


def test_exit_codes_pass_through_whatever_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors.shutil, "disk_usage", lambda place: Usage(2**30, 2**30, 0))
    with pytest.raises(typer.Exit) as exit, console._explained():
        raise typer.Exit(3)
    assert exit.value.exit_code == 3
    with pytest.raises(typer.Exit) as exit, console._explained():
        raise DataError("no images")
    assert exit.value.exit_code == 2
