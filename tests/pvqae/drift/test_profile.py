"""The profile in a real bundle, and the verbs that score and judge with it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from pvqae.cli import main
from pvqae.core import config
from pvqae.core.layout import Layout
from pvqae.drift import drift, profile
from pvqae.drift.profile import flatten
from pvqae.inference import bundle
from pvqae.samples import images, manifest
from pvqae.serving import batch, batch_cli, batch_source


@pytest.fixture(scope="module")
def category(workspace: Layout) -> str:
    return next(path.parent.name for path in sorted(workspace.models.glob("*/bundle")))


def test_the_profile_is_of_the_normals_that_calibration_judged(workspace: Layout, category: str) -> None:
    folder = workspace.bundle(category)
    found, card = profile.read(bundle.read(folder)), json.loads((folder / "calibration.json").read_text())
    assert sorted(found[profile.SCORE]) == pytest.approx(card["scores"], rel=1e-5)
    assert found[profile.GROUP].nunique() == card["n_groups"]
    shares = found[[name for name in found.columns if name.startswith("level_")]]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert np.isfinite(found.to_numpy(float)).all()
    assert profile.FILE in (folder / "SHA256SUMS").read_text()


def test_its_features_are_those_of_scoring(workspace: Layout, category: str) -> None:
    """What drift compares is measured alike on both sides."""
    folder = workspace.bundle(category)
    rows = manifest.read(workspace.class_rows(category, "normals"))
    source = batch_source.Files(tuple(workspace.data / path for path in rows["path"]))
    again = [flatten(row) for row in batch.rows(bundle.load(folder), source)]
    names = [name for name in drift._names(profile.read(bundle.read(folder))) if name != profile.SCORE]
    ours = profile.read(bundle.read(folder))[names].sort_values(names).to_numpy()
    theirs = pd.DataFrame(again)[names].sort_values(names).to_numpy()
    nearest = np.abs(ours[:, None] - theirs[None]).max(axis=2).min(axis=1)
    assert nearest.max() < 0.05  # a cell's level may tip: features of the profile are half precision


def test_verbs(workspace: Layout, category: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Score normals, then the same washed out: no drift, then drift with its sentence."""
    monkeypatch.setattr(batch_cli, "prepare", lambda: None)  # torch's settings belong to a process of its own
    monkeypatch.chdir(workspace.root)
    monkeypatch.setattr(config, "load", lambda *_: config.Params(drift=config.Drift(min_images=10, draws=300)))
    monkeypatch.setattr("pvqae.drift.drift.SMALLEST_GROUPS", 2)
    rows = manifest.read(workspace.class_rows(category, "normals"))
    for name, factor in (("same", 1.0), ("washed", 0.5)):
        for number, path in enumerate(rows["path"]):
            pixels = images.read(path, workspace.data)
            images.write(tmp_path / name / f"{number:03}.png", (pixels * factor + (1 - factor)).astype(np.float32))
    folder, verdicts = str(workspace.bundle(category)), []
    for name in ("same", "washed"):
        out = str(tmp_path / f"out-{name}")
        done = CliRunner().invoke(main.app, ["score", folder, str(tmp_path / name), "--out", out, "--heatmaps"])
        assert done.exit_code == 0, done.output
        verdicts.append(CliRunner().invoke(main.app, ["drift", folder, out]))
    assert [done.exit_code for done in verdicts] == [0, 3]
    assert "brightness rose" in verdicts[1].output
    assert list((tmp_path / "out-same" / "heatmaps").glob("*.webp"))


def test_drift_needs_no_params(
    workspace: Layout, category: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main.app, ["drift", str(workspace.bundle(category)), str(tmp_path)])
    assert done.exit_code == 2
    assert "scores.jsonl: no scores there" in done.output
