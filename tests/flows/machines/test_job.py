"""A worker's workspace: the order's commit and files, and nothing outside of it."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from flows.adapters.git import GitError
from flows.core import classes
from flows.machines import job
from flows.machines.fan_out import JobSpec
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.core.layout import Layout
from pvqae.samples import manifest

PARAMS = config.parse({"data": {"name": "x", "source": "folder"}})


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, str]:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    remote = r\n['remote \"r\"']\n    url = ../store\n")
    (tmp_path / "code.py").write_text("one")
    git("add", "-A")
    git("commit", "-qm", "one")
    return tmp_path, git("rev-parse", "HEAD").strip()


def order(sha: str, files: dict[str, str] | None = None) -> JobSpec:
    texts = {"params.yaml": config.dump(PARAMS), **(files or {})}
    return JobSpec("x", sha, ("train@a", "prior@a"), texts, {})


def test_it_has_the_commit_and_the_files_and_is_made_anew_for_the_next_order(project: tuple[Path, str]) -> None:
    root, sha = project
    (root / "code.py").write_text("not committed")
    space = job._prepare(root, order(sha, {"data/classes.yaml": "dataset: x"}))
    assert (space / "code.py").read_text() == "one"
    assert (space / "data" / "classes.yaml").read_text() == "dataset: x"
    (space / "code.py").write_text("changed by hand")
    assert (job._prepare(root, order(sha)) / "code.py").read_text() == "one"


def test_a_worker_s_own_threads_change_no_other_param(project: tuple[Path, str]) -> None:
    root, sha = project
    found = config.load(job._prepare(root, order(sha), threads=3) / "params.yaml")
    assert (found.compute.threads, found.compute.parallel) == (3, 1)
    assert found.model_copy(update={"compute": PARAMS.compute}) == PARAMS


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "data/../../outside", ".git/config"])
def test_a_file_outside_is_refused(project: tuple[Path, str], name: str) -> None:
    with pytest.raises(ConfigError, match="inside of the workspace"):
        job._prepare(project[0], order(project[1], {name: "x"}))


def test_an_unknown_commit_is_said(project: tuple[Path, str]) -> None:
    with pytest.raises(GitError, match="which the train flow runs"):
        job._prepare(project[0], order("0" * 40))


def test_inputs_are_the_folders_of_its_classes_and_what_others_have_made(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "x")
    params = config.parse({"data": {"name": "x", "source": "folder"}, "prior": {"grouping": "universal"}})
    layout.data.mkdir()
    layout.classes_file.write_text(yaml.safe_dump(classes.classes(params, ["a", "b"])))
    for name in "ab":
        for part in ("normals", "test"):
            base = dict.fromkeys(manifest.COLUMNS, "x") | dict.fromkeys(manifest.NUMBERS, 8) | {"mask_path": ""}
            images = [base | {"sample_id": n, "path": f"raw/x/{name}/{part}/{n}.png"} for n in "12"]
            if part == "test":
                images[1]["mask_path"] = f"masks/{name}/2.png"  # drawn: not below raw/
            rows = pd.DataFrame(images, columns=list(manifest.COLUMNS))
            layout.class_rows(name, part).parent.mkdir(parents=True, exist_ok=True)
            manifest.write(rows, layout.class_rows(name, part))

    def inputs(*stages: str) -> list[str]:
        return job._inputs(tmp_path, JobSpec("x", "", stages, {}, {}))

    assert inputs("train@a") == ["data/masks/a", "data/raw/x/a/normals", "data/raw/x/a/test"]
    assert inputs("prior@all")[-2:] == ["train@a", "train@b"]
    assert inputs("calibrate@b", "evaluate@b")[3:] == ["prior@all", "train@b"]
