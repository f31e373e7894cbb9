"""New images come in: a folder dataset of the demo, a landing folder, a new version, the gate."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from flows.adapters import git
from pvqae.datasets import demo
from tests.clones import Clone, clone

pytestmark = pytest.mark.integration

# The file names of the demo say the cell of the photograph. What arrives is of other cells than the first dataset.
FIRST = range(10)
TINY = (
    *("data.source=folder", "data.name=parts", "image.size=96", "model.width=16", "train.steps=20", "prior.steps=10"),
    *("memory.codes=256", "calibration.folds=2", "evaluation.pictures=1", "compute.threads=1", "train.kappa=0.01"),
)
PRESENT = "\nlanding: {url: landing}\nretrain: {min_new: 2, screen_margin: 2.0}\n"


def photographs(place: Path) -> dict[str, Path]:
    """The demo's normals of gravel by name."""
    demo.make(place)
    return {path.stem: path for path in sorted((place / "gravel").glob("*/good/*.png"))}


def command(project: Clone, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flows", *words],
        cwd=project.root,
        env=project.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,  # the same machine may be training elsewhere
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def land(shore: Path, found: dict[str, Path], raw: Path) -> None:
    """One new photograph per cell, and what must not come in."""
    shore.mkdir(parents=True)
    for cell in range(len(FIRST), 16):
        shutil.copyfile(found[f"crop{cell:02}_0"], shore / f"cell{cell}__first.png")
    (shore / "cut.png").write_bytes(found["crop12_1"].read_bytes()[:2000])
    Image.open(raw / "gravel" / "good" / "crop03_0.png").save(shore / "again.jpg", quality=80)
    with Image.open(found["crop13_2"]) as good:  # what no screening of so small a model may let pass
        good.paste(255, (30, 30, 90, 90))
        good.save(shore / "defect.png")


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str, str]:
    """A project after a first training and a retraining; what the two dry and real runs said."""
    place = tmp_path_factory.mktemp("retrain")
    project, made = clone(place), place / "demo"
    found, originals = photographs(made), place / "parts"
    (originals / "gravel" / "good").mkdir(parents=True)
    for name, path in found.items():
        if int(name[4:6]) in FIRST:
            shutil.copyfile(path, originals / "gravel" / "good" / path.name)
    shutil.copytree(made / "gravel" / "test" / "blur", originals / "gravel" / "blur")
    settings = [word for setting in (*TINY, f"data.root={originals}") for word in ("--set", setting)]
    command(project, "train", *settings)

    land(project.root / "landing" / "gravel", found, project.root / "data" / "raw" / "parts")
    params = project.root / "params.yaml"
    text = params.read_text("utf-8")
    own = text[: text.index("\nlanding:")] + PRESENT + text[text.index("\ncompute:") :]
    params.write_text(own, "utf-8")
    dry = command(project, "retrain", "--dataset", "parts", "--dry-run")
    return project, dry, command(project, "retrain", "--dataset", "parts", "--trigger", "samples")


def ledger(project: Clone) -> Counter[str]:
    lines = (project.root / ".pvqae" / "arrivals" / "parts" / "ledger.jsonl").read_text("utf-8").splitlines()
    last = {json.loads(line)["key"]: json.loads(line)["state"] for line in lines}
    return Counter(last.values())


def test_the_dry_run_says_what_would_come(retrained: tuple[Clone, str, str]) -> None:
    assert "a dry run: 9 images would be looked at: 9 gravel" in retrained[1]


def test_good_images_come_in_and_the_others_do_not(retrained: tuple[Clone, str, str]) -> None:
    project, _, text = retrained
    assert ledger(project) == {"versioned": 6, "quarantined": 1, "duplicate": 1, "review": 1}, text
    arrived = sorted((project.root / "data" / "raw" / "parts" / "arrived").rglob("*.png"))
    assert len(arrived) == 6
    assert {path.name.split("__")[0] for path in arrived} == {f"cell{cell}" for cell in range(10, 16)}
    held = list(csv.DictReader((project.root / ".pvqae/review/parts/review.csv").read_text("utf-8").splitlines()))
    assert [row["object"] for row in held] == ["gravel/defect.png"]
    bad = (project.root / ".pvqae/arrivals/parts/quarantine/quarantine.csv").read_text("utf-8")
    assert "gravel/cut.png" in bad


def test_the_version_of_the_data_says_what_came_in(retrained: tuple[Clone, str, str]) -> None:
    project = retrained[0]
    messages = git.git(project.root, "log", "--format=%B", "pvqae/data")
    assert "parts: 6 images arrived" in messages
    assert "from gravel/cell12__first.png" in messages
    assert git.git(project.root, "show", "pvqae/data:parts/data/raw/parts.dvc").startswith("outs:")


def test_it_trains_a_version_on_them_and_the_gate_judges_it(retrained: tuple[Clone, str, str]) -> None:
    project, _, text = retrained
    assert "TRAIN: gravel:" in text
    assert "new normals since version 1" in text
    assert "pvqae-parts-gravel version 2 against 1" in text
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/.pvqae/mlflow/mlflow.db")
    tags = client.get_model_version("pvqae-parts-gravel", "2").tags
    assert (tags["trigger"], tags["parent_version"]) == ("samples", "1")
    assert tags["gate_outcome"] in ("pass", "refused", "insufficient")
    experiment = client.get_experiment_by_name("pvqae-parts")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.decision = 'train'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    manifest = (project.root / ".pvqae/runs/parts/data/manifest.csv").read_text("utf-8").splitlines()
    rows = [row for row in csv.DictReader(manifest) if "/arrived/" in row["path"] and row["label"] == "normal"]
    assert len(rows) == 6
    assert all((row["split"] == "gate") == ("/gate/" in row["path"]) for row in rows)


def test_the_next_run_has_nothing_to_do(retrained: tuple[Clone, str, str]) -> None:
    project = retrained[0]
    text = command(project, "retrain", "--dataset", "parts", "--trigger", "schedule")
    assert "no new objects" in text
    assert "NO TRAINING" in text
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/.pvqae/mlflow/mlflow.db")
    assert len(client.search_model_versions("name = 'pvqae-parts-gravel'")) == 2
