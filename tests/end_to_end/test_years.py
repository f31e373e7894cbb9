"""What years bring to one plant, in one week, by the commands of the docs; at the end nothing is gone or wrong.

Installed, trained, moved, copied, upgraded from three older commits, lost and restored elsewhere, pinned, rolled back
with what was learnt, a class retired: every version still has its hash, every photograph is accounted for.
"""

import csv
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest

from flows.adapters import git
from tests.clones import NAMES, PROJECT, TINY, Clone, clone
from tests.end_to_end.test_backup import flows
from tests.end_to_end.test_retrain import FIRST, PRESENT, land, ledger, photographs
from tests.end_to_end.test_retrain import TINY as SMALL

pytestmark = pytest.mark.integration

OLDER = {"4992469": "format 2 to 7", "f5f3d48": "format 4 to 7", "b7ae59e": "format 4 to 7"}
SHORT = [word for setting in (*TINY, "train.steps=20", "flow.push=false") for word in ("--set", setting)]
GRAVEL, BRICK = "pvqae-parts-gravel", "pvqae-parts-brick"
REPRODUCED = "reproduced, the rebuilt bundle has the registered hash"


def commit(project: Clone, message: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git.git(project.root, *identity, "add", "-A")
    git.git(project.root, *identity, "commit", "-qm", message)


def champions(project: Clone) -> dict[str, str]:
    """The version of each model that the log calls champion."""
    log = json.loads(flows(project, "promote", "log", "--json"))
    moves = {model: [entry for entry in entries if entry["alias"] == "champion"] for model, entries in log.items()}
    return {model: entries[-1]["to_version"] for model, entries in moves.items() if entries}


def of_commit(place: Path, sha: str) -> tuple[Clone, Path]:
    """A project of older code, and the programs that it was installed with: its `pvqae` is another module."""
    found = subprocess.run(["git", "-C", str(PROJECT), "archive", sha], capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"the history here is without commit {sha}")
    project = Clone(place / "project")
    (place / "home").mkdir(parents=True)
    with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
        archive.extractall(project.root, filter="data")
    git.git(project.root, "init", "--quiet")
    commit(project, "as it was")
    home = place / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    own = next(home.glob("lib/python*/site-packages"))
    (own / "others.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    scripts = tomllib.loads((project.root / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module, _, function = scripts["pvqae"].partition(":")
    (home / "bin" / "pvqae").write_text(f"#!{home}/bin/python\nfrom {module} import {function}\n{function}()\n")
    (home / "bin" / "pvqae").chmod(0o755)
    for name in ("dvc", "mlflow", "prefect"):
        (home / "bin" / name).symlink_to(Path(sys.executable).parent / name)
    return project, home / "bin"


def upgrade(project: Clone) -> None:
    """Put this working tree's code in the place of the project's, as `git pull` does."""
    for name in NAMES:
        if (project.root / name).is_dir() and name != "data":
            shutil.rmtree(project.root / name)
        if (PROJECT / name).is_dir():
            ignored = shutil.ignore_patterns("raw", "gate", "rows", "*.csv", "__pycache__")
            shutil.copytree(PROJECT / name, project.root / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copyfile(PROJECT / name, project.root / name)
    commit(project, "upgraded")


@pytest.mark.parametrize("sha", OLDER)
def test_a_project_of_older_code_goes_on_with_todays(tmp_path: Path, sha: str) -> None:
    project, programs = of_commit(tmp_path, sha)
    environ = project.environ | {"PATH": f"{programs}:{project.environ['PATH']}"}
    command = [str(programs / "python"), "-m", "flows", "train", *SHORT]
    made = subprocess.run(command, cwd=project.root, env=environ, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    upgrade(project)
    assert "pvqae-demo-brick version 1; 1 of 1 can be loaded" in flows(project, "doctor")
    assert f"is version 2 now: {OLDER[sha]}" in flows(project, "migrate")
    assert champions(project) == {"pvqae-demo-brick": "2"}
    photograph = next((project.root / ".pvqae/runs/demo/data/raw/demo/brick").rglob("*.png"))
    assert "1 images" in flows(project, "score", "pvqae-demo-brick@champion", str(photograph))
    assert REPRODUCED in flows(project, "verify", "pvqae-demo-brick", "1")
    assert "3 challenger (new)" in flows(project, "train", *SHORT)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, list[str]]:
    """Monday: two classes of photographs, a champion of each; and what the command to train them was."""
    place = tmp_path_factory.mktemp("monday")
    project = clone(place)
    found, originals = photographs(place / "demo"), place / "parts"
    for category in ("gravel", "brick"):
        (originals / category / "good").mkdir(parents=True)
        for path in (place / "demo" / category).glob("*/good/*.png"):
            if int(path.stem[4:6]) in FIRST:
                shutil.copyfile(path, originals / category / "good" / path.name)
    settings = [word for one in (*SMALL, f"data.root={originals}", "flow.push=false") for word in ("--set", one)]
    flows(project, "train", *settings)
    land(project.root / "landing" / "gravel", found, project.root / "data" / "raw" / "parts")
    params = project.root / "params.yaml"
    text = params.read_text("utf-8")
    params.write_text(text[: text.index("\nlanding:")] + PRESENT + text[text.index("\ncompute:") :], "utf-8")
    commit(project, "a landing area")
    return project, settings


def files(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def accounted(project: Clone) -> Counter[str]:
    """Where each photograph of gravel is: in the dataset (by split), set aside, or a copy of another."""
    data = project.root / ".pvqae" / "runs" / "parts" / "data"
    rows = list(csv.DictReader((data / "manifest.csv").read_text("utf-8").splitlines()))
    here = [row for row in rows if row["category"] == "gravel" and row["label"] == "normal"]
    for row in here:
        assert (data / row["path"]).is_file() or (project.root / "data" / row["path"]).is_file(), row["path"]
    arrived = (project.root / ".pvqae" / "arrivals" / "parts" / "ledger.jsonl").exists()
    states = ledger(project) if arrived else Counter[str]()
    return Counter(
        dataset=len(here), duplicate=states["duplicate"], quarantined=states["quarantined"], held=states["review"]
    )


def test_a_week_in_one_plant(plant: tuple[Clone, list[str]], tmp_path: Path) -> None:
    project, settings = plant
    originals = project.root.parent / "parts"
    assert champions(project) == {GRAVEL: "1", BRICK: "1"}
    first = accounted(project)
    total = first["dataset"] + 9  # what landed

    # Tuesday: what landed is learnt, and becomes champion.
    flows(project, "retrain", "--dataset", "parts", "--trigger", "samples")
    if champions(project)[GRAVEL] == "1":  # a model this small need not pass
        flows(project, "promote", "run", GRAVEL, "--override", "seen by the line's lead")
    assert champions(project)[GRAVEL] == "2"
    assert accounted(project).total() == total

    # Wednesday: the folder moves, and is copied; the copy never writes into its original.
    moved = Clone(tmp_path / "another hall" / "project")
    (tmp_path / "another hall" / "home").mkdir(parents=True)
    shutil.move(project.root, moved.root)
    photograph = next((moved.root / "landing" / "gravel").glob("cell*.png"))
    assert "1 images" in flows(moved, "score", f"{GRAVEL}@champion", str(photograph))
    copied = Clone(tmp_path / "copy" / "project")
    (tmp_path / "copy" / "home").mkdir(parents=True)
    subprocess.run(["cp", "-a", str(moved.root), str(copied.root)], check=True)
    before = files(moved.root)
    trained = flows(copied, "train", *settings, "--set", "data.categories=[brick]", "--set", "score.top=0.05")
    assert "3 challenger (new)" in trained, trained
    assert files(moved.root) == before
    shutil.rmtree(copied.root)

    # Thursday: an audit pins the champion.
    flows(moved, "promote", "pin", GRAVEL, "--reason", "audit")
    assert "pinned" in flows(moved, "promote", "rollback", GRAVEL, "--reason", "no", expect=1, err=True)
    flows(moved, "promote", "unpin", GRAVEL)

    # Friday: the machine is lost, a new clone on another one gets everything back.
    archive = tmp_path / "plant.tar"
    flows(moved, "backup", str(archive))
    log = flows(moved, "promote", "log", "--json")
    shutil.move(moved.root / "landing", tmp_path / "landing")  # a share of its own: no archive has it
    shutil.rmtree(moved.root)
    other = clone(tmp_path / "elsewhere")
    flows(other, "restore", str(archive))
    shutil.move(tmp_path / "landing", other.root / "landing")
    assert flows(other, "promote", "log", "--json") == log

    # Saturday: version 2 is taken back, and what only it had learnt.
    said = flows(other, "promote", "rollback", GRAVEL, "--reason", "oil on the lens", "--exclude-data")
    assert "images that only version 2 had learnt were taken out of the dataset: DVC version" in said
    assert champions(other)[GRAVEL] == "1"
    assert "NO TRAINING" in flows(other, "retrain", "--dataset", "parts", "--trigger", "schedule")

    # Sunday: bricks are made no more; gravel is trained without what was taken out.
    shutil.rmtree(originals / "brick")
    flows(other, "data", "add", "parts", str(originals))
    assert "retire" in flows(other, "retrain", "--dataset", "parts", "--force", "a clean start", expect=1, err=True)
    flows(other, "promote", "retire", BRICK, "--reason", "made no more")
    assert "version 3 against 1" in flows(other, "retrain", "--dataset", "parts", "--force", "a clean start")

    # Nothing is gone or wrong.
    assert accounted(other).total() == total
    for model, version in ((GRAVEL, "1"), (GRAVEL, "2"), (GRAVEL, "3"), (BRICK, "1"), (BRICK, "2")):
        assert REPRODUCED in flows(other, "verify", model, version), (model, version)
