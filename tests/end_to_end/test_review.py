"""A person reviews in a browser: keys, labels, Apply, a version of the data, and a retraining that counts it."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from PIL import Image

from flows.adapters import git
from tests.clones import Clone, clone
from tests.end_to_end.test_retrain import TINY, command, photographs

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.integration

PRESENT = "\nlanding: {url: landing}\nretrain: {min_new: 200, screen_margin: 2.0, gate_share: 0.0}\n"


def stained(source: Path, target: Path, side: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as good:
        good.paste(255, (30, 30, 30 + side, 30 + side))
        good.save(target)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A trained dataset, two held images, and a scored folder of four."""
    place = tmp_path_factory.mktemp("review")
    made, found = clone(place), photographs(place / "demo")
    originals = place / "parts" / "gravel"
    (originals / "good").mkdir(parents=True)
    for name, path in found.items():
        if int(name[4:6]) < 10:
            shutil.copyfile(path, originals / "good" / path.name)
    shutil.copytree(place / "demo" / "gravel" / "test" / "blur", originals / "blur")
    command(made, "train", *(w for s in (*TINY, f"data.root={originals.parent}") for w in ("--set", s)))
    params = made.root / "params.yaml"
    text = params.read_text("utf-8")
    params.write_text(text[: text.index("\nlanding:")] + PRESENT + text[text.index("\ncompute:") :], "utf-8")
    for cell, side in ((12, 60), (13, 70)):
        stained(found[f"crop{cell}_1"], made.root / "landing" / "gravel" / f"stain{cell}.png", side)
    command(made, "retrain", "--dataset", "parts")
    belt = place / "belt"
    belt.mkdir()
    for cell in (10, 11, 14, 15):
        shutil.copyfile(found[f"crop{cell}_2"], belt / f"cell{cell}__belt.png")
    command(made, "score", "pvqae-parts-gravel@champion", str(belt))
    return made


@contextmanager
def reviewing(project: Clone) -> Iterator[str]:
    """The page's address; ends as Ctrl-C does, and cleanly."""
    words = ["review", "--dataset", "parts", "--port", "0", "--no-browser"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", *words],
        cwd=project.root,
        env=project.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        yield process.stdout.readline().split()[-1]
        process.send_signal(signal.SIGINT)
        assert "labels wait" in process.communicate(timeout=60)[0]
        assert process.returncode == 0


def data_hash(project: Clone) -> str:
    outs = yaml.safe_load((project.root / "data" / "raw" / "parts.dvc").read_text("utf-8"))["outs"]
    return str(outs[0]["md5"])


def test_labels_become_a_version_that_the_next_retraining_counts(project: Clone, browser: "Browser") -> None:
    before = data_hash(project)
    with reviewing(project) as address:
        page = browser.new_page()
        page.goto(address)
        page.locator("#heatmap").wait_for()
        page.fill("#who", "Ada Lovelace")
        page.locator("#who").blur()
        for key, name, left in (("d", "held", 1), ("g", "held", 0)):
            page.keyboard.press(key)
            page.locator(f"[data-queue={name}] b:text-is('{left}')").wait_for()
        page.keyboard.press("2")
        for left in (3, 2):
            page.keyboard.press("g")
            page.locator(f"[data-queue=near] b:text-is('{left}')").wait_for()
        assert page.evaluate("document.querySelector('#heatmap').naturalWidth") > 0
        page.click("#apply")
        page.click("#yes")
        page.locator("#said:not([hidden])").wait_for(timeout=300_000)
        said = page.inner_text("#said")
        page.close()
    assert "4 images came into the dataset (1 gravel/defect/reviewed, 3 gravel/good)" in said
    log = (project.root / ".pvqae/review/parts/labels.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["label"] for line in log] == ["defect", "good", "good", "good", *["applied"] * 4]
    assert data_hash(project) != before
    message = git.git(project.root, "log", "-1", "--format=%B", "pvqae/data")
    assert "parts: 4 images labelled" in message
    assert message.count("by Ada Lovelace at 20") == 4
    assert data_hash(project) in git.git(project.root, "show", "pvqae/data:parts/data/raw/parts.dvc")
    rows = csv.DictReader((project.root / "data/raw/parts/arrived/labels.csv").read_text("utf-8").splitlines())
    assert sorted(row["label"] for row in rows) == ["defect", "good", "good", "good"]
    told = command(project, "retrain", "--dataset", "parts", "--dry-run")
    line = next(one for one in told.splitlines() if "new normals since version 1" in one)
    counts = re.findall(r"(\d+) (?:new normals|for the test split)", line)  # which is which, by hash
    assert sum(map(int, counts)) == 3
    assert "nothing to apply" in command(project, "review", "--dataset", "parts", "--apply")


def test_a_dataset_that_a_stage_makes_takes_no_label(project: Clone) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows", "review", "--apply"],
        cwd=project.root,
        env=project.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "demo is made by a stage, so no label can come into it" in done.stderr
