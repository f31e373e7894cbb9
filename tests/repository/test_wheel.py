"""The wheel holds the library and nothing else, and works where only it is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pvqae.samples import images
from tests.chaos.conftest import PARAMS, make

ROOT = Path(__file__).parents[2]
UV = str(Path(sys.executable).with_name("uv"))
FILES = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "pvqae").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
}


def run(*command: str | Path, folder: Path) -> str:
    """Return what a command prints; without the variables by which a test's own modules are found."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of wheel and sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", out, folder=ROOT)
    return out


def wheel_of(folder: Path) -> Path:
    (found,) = folder.glob("*.whl")
    return found


def inside(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_library_and_no_other(built: Path) -> None:
    assert inside(wheel_of(built)) == FILES


def test_the_sdist_holds_what_the_wheel_is_built_from_and_builds_the_same_one(built: Path, tmp_path: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    top = {name.partition("/")[0] for name in names}
    assert top <= {
        "pvqae",
        "README.md",
        "LICENSE",
        "NOTICE",
        "CHANGELOG.md",
        "pyproject.toml",
        "PKG-INFO",
        ".gitignore",
    }
    assert names >= FILES
    (folder,) = tmp_path.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", folder=folder)
    assert inside(wheel_of(tmp_path / "again")) == FILES


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the wheel alone, which borrows its dependencies from ours."""
    place = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    run(UV, "pip", "install", "-q", "--offline", "--no-deps", "--python", python, wheel_of(built), folder=place)
    own = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
    # A path in a .pth file is only looked in: our own editable install, a .pth file there, does not count.
    (Path(own) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def test_the_installed_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u, pvqae; print(pvqae.__file__); print(u.find_spec('flows'), u.find_spec('tests'))"
    where, others = run(installed / "python", "-c", code, folder=tmp_path).splitlines()
    assert Path(where).is_relative_to(installed.parent)
    assert others == "None None"
    assert "score" in run(installed / "pvqae", "--help", folder=tmp_path)


def test_the_installed_wheel_scores_with_the_packaged_weights(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "normals").mkdir()
    bundle = make(tmp_path / "bundle", tmp_path / "normals", PARAMS)
    assert not (bundle / "backbone.safetensors").exists()
    images.write(tmp_path / "part.png", np.random.default_rng(0).random((64, 64, 3), dtype=np.float32))
    run(installed / "pvqae", "score", bundle, tmp_path / "part.png", "--out", tmp_path / "out", folder=tmp_path)
    assert (tmp_path / "out" / "scores.jsonl").stat().st_size


def python(version: str) -> str:
    """The path of another Python that runs, "" for none: a shim may be there and fail."""
    places = [
        shutil.which(f"python{version}") or "",
        *(Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"),
    ]
    for place in filter(None, map(str, places)):
        done = subprocess.run(
            [place, "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and done.stdout.startswith(version):
            return place
    return ""


@pytest.mark.integration  # installs what the command line starts with, from the package index
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_the_wheel_compiles_and_starts_on_newer_pythons(version: str, built: Path, tmp_path: Path) -> None:
    if not (found := python(version)):
        pytest.skip(f"no Python {version} that runs")
    place = tmp_path / "venv"
    run(found, "-m", "venv", "--without-pip", place, folder=tmp_path)
    words = [UV, "pip", "install", "-q", "--python", place / "bin" / "python"]
    run(*words, "--no-deps", wheel_of(built), folder=tmp_path)
    light = ("typer", "rich", "pydantic", "pyyaml", "ruamel.yaml", "numpy", "packaging", "jinja2")
    run(*words, "-c", ROOT / "constraints.txt", *light, folder=tmp_path)
    (package,) = (place / "lib" / f"python{version}" / "site-packages").glob("pvqae")
    run(place / "bin" / "python", "-W", "error", "-m", "compileall", "-q", package, folder=tmp_path)
    assert "score" in run(place / "bin" / "pvqae", "--help", folder=tmp_path)
