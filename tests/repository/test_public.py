"""The public interface: what it is, that all of it is there, and that it costs nothing until it is used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pvqae

NAMES = {
    *("Detector", "Scored", "Verdict", "fit", "load"),
    *("verify_bundle", "export_bundle", "export_onnx", "Files", "score_folder"),
    *("Params", "load_params", "parse_params", "Layout", "read_image"),
    *("build_manifest", "check_manifest", "train_network", "train_prior", "calibrate", "evaluate", "merge_reports"),
    *("PvqaeError", "ConfigError", "DataError", "ValidationFailed"),
    *("FormatError", "IntegrityError", "CalibrationError", "ParityError"),
}


def test_the_public_names_are_these() -> None:
    assert set(pvqae.__all__) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_is_what_its_module_has(name: str) -> None:
    module, _, own = pvqae._PUBLIC[name].rpartition(".")
    assert getattr(pvqae, name) is getattr(importlib.import_module(f"pvqae.{module}"), own)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(pvqae.__file__).read_text("utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    found = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert found == {name: f"pvqae.{place}" for name, place in pvqae._PUBLIC.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pvqae.nothing  # noqa: B018


def test_every_error_of_the_library_is_public() -> None:
    from pvqae.core import errors

    own = {
        name for name, found in vars(errors).items() if isinstance(found, type) and found.__module__ == errors.__name__
    }
    assert own <= NAMES


def test_the_import_loads_no_library() -> None:
    code = "import sys, pvqae; print([name for name in ('torch', 'numpy', 'pydantic', 'yaml') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
