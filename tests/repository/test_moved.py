"""Imports of 0.1 go on."""

import importlib
import subprocess
import sys

import pytest

from pvqae import moved


@pytest.mark.parametrize("old", moved.MOVED)
def test_an_old_name_is_the_module_at_its_new_place(old: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"{old} is {moved.MOVED[old]} now"):
        module = importlib.import_module(old)
    del sys.modules[old]
    assert module is importlib.import_module(moved.MOVED[old])
    assert module.__spec__ is not None
    assert module.__spec__.name == moved.MOVED[old]


def test_errors_are_caught_by_either_name() -> None:
    code = "from pvqae.errors import DataError; from pvqae.core import errors; assert DataError is errors.DataError"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_an_unknown_name_is_still_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pvqae.nothing")
