"""How many modules the usual work needs: a reader follows one image through few files."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pvqae.samples import images
from tests import stages
from tests.chaos.conftest import PARAMS, make

ROOT = Path(__file__).parents[2]
INFERENCE, SCORE, RETRAIN = 20, 33, 32
MODULES, PUBLIC = 195, 25.0  # of both packages; functions and classes per 1,000 lines
ELSEWHERE = {"rival_script"}  # a program for the environments of other libraries
TWICE = {"catalogue"}  # of services and of experiments
# Run by `python -c CODE PACKAGE MODULE WORDS...`: a command line as it is, then the modules that it has loaded.
LOADED = """
import importlib, json, sys
package, module, *words = sys.argv[1:]
app, sys.argv[1:] = importlib.import_module(module).app, words
try:
    app()
except SystemExit as ended:
    assert not ended.code, ended.code
own = [name for name, found in sys.modules.items() if name.startswith(f"{package}.") and not hasattr(found, "__path__")]
print(json.dumps(sorted(own)), file=sys.stderr)
"""


def loaded(package: str, module: str, *words: str, folder: Path = ROOT) -> list[str]:
    """Return the modules of a package, without the packages themselves, that a command of `module.app` loads."""
    command = [sys.executable, "-W", "ignore", "-c", LOADED, package, module, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stderr.splitlines()[-1])
    return names


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tiny") / "bundle", tmp_path_factory.mktemp("normals"), PARAMS)


def test_an_image_becomes_a_score_in_few_modules() -> None:
    graph = stages.graph()
    own = {name for name in graph.modules if name.startswith("pvqae.inference.")}
    names = own.union(*(graph.find_upstream_modules(name) for name in own))
    names = {name for name in names if not (ROOT / Path(*name.split("."))).is_dir()}
    assert len(names) <= INFERENCE, sorted(names)


def test_pvqae_score_loads_few_modules(bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images.write(tmp_path / "a.png", rng.random((64, 64, 3), dtype=np.float32))
    names = loaded("pvqae", "pvqae.cli.main", "score", str(bundle), str(tmp_path / "a.png"))
    assert "pvqae.inference.scoring" in names
    assert len(names) <= SCORE, names


@pytest.mark.integration  # Prefect's server and MLflow's first migration: a dozen seconds
def test_a_retraining_that_is_not_needed_loads_few_modules(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("data/raw/parts/nut/good/1.png", "data/raw/parts/nut/good/2.png", "landing/nut/3.png"):
        images.write(tmp_path / name, rng.random((32, 32, 3), dtype=np.float32))
    (tmp_path / "params.yaml").write_text("data: {name: parts, source: folder}\nlanding: {url: landing}\n", "utf-8")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", "utf-8")
    names = loaded("flows", "flows.cli.main", "retrain", "--dry-run", folder=tmp_path)
    assert "flows.retrain.admission" in names
    assert not {name for name in names if name.startswith(("flows.train.", "flows.gate."))}
    assert len(names) <= RETRAIN, names


def test_a_retraining_imports_few_modules() -> None:
    code = "import json, sys, flows.cli.main, flows.retrain.retrain; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in json.loads(done.stdout) if name.startswith("flows.")]
    folders = [name for name in names if (ROOT / Path(*name.split("."))).is_dir()]
    assert len(names) - len(folders) <= RETRAIN, names


SOURCES = {path: path.read_text("utf-8") for name in ("pvqae", "flows") for path in sorted((ROOT / name).rglob("*.py"))}


def test_the_packages_have_few_modules() -> None:
    modules = [path for path in SOURCES if path.stem not in {"__init__", *ELSEWHERE}]
    assert len(modules) <= MODULES


def test_few_functions_and_classes_are_public() -> None:
    public = [
        node.name
        for text in SOURCES.values()
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    lines = sum(text.count("\n") for text in SOURCES.values())
    assert len(public) / lines * 1000 < PUBLIC


@pytest.mark.parametrize("package", ["pvqae", "flows"])
def test_no_module_name_is_used_twice(package: str) -> None:
    names = Counter(path.stem for path in SOURCES if path.relative_to(ROOT).parts[0] == package)
    assert {name for name, count in names.items() if count > 1} <= {"__init__", *TWICE}
