"""How many modules the usual work needs: a reader follows one image through few files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pvqae.samples import images
from tests import stages
from tests.chaos.conftest import PARAMS, make

ROOT = Path(__file__).parents[2]
INFERENCE, SCORE = 20, 40
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
