"""Rivals: a process of another library is handed the images, and its maps are judged; a failure is a row."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flows.experiments import accuracy, benchmark, rivals
from flows.experiments.benchmark import OURS
from flows.experiments.rivals import RIVALS, Rival, RivalError
from flows.experiments.subjects import Subject
from flows.experiments.trial import BenchmarkContext
from pvqae.core import config
from pvqae.core.files import digest
from pvqae.model import backbones
from pvqae.samples import images

NAME = "anomavision_padim"
SIZE = 64
PARAMS = config.parse({"image": {"size": SIZE}, "compute": {"device": "cpu", "precision": "float32"}})
PROJECT = Path(__file__).parents[3]

# A rival that needs numpy only: the deviation from the mean of the normals, and what it was told.
FAKE = f"""
import json, sys
from pathlib import Path
import numpy as np
folder = Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
train, test = (np.fromfile(folder / f"{{n}}.raw", np.float32).reshape(-1, 3, {SIZE}, {SIZE}) for n in ("train", "test"))
maps = np.abs(test - train.mean(0)).mean(1)
maps.tofile(folder / "maps.raw")
maps.max((1, 2)).astype(np.float64).tofile(folder / "scores.raw")
facts = dict(fit_seconds=1.5, milliseconds=[2.0] * len(test), megabytes=0.5, peak_megabytes=7.0)
(folder / "facts.json").write_text(json.dumps(facts | dict(versions=dict(fake="1.0", trained=str(len(train))))))
"""


@pytest.fixture(scope="module")
def cloth(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Ten wide normals, of which two calibrate, and three normals and three defects to test."""
    root, rng, rows = tmp_path_factory.mktemp("cloth"), np.random.default_rng(0), []
    for index in range(16):
        pixels = (0.5 + 0.01 * rng.standard_normal((40, 80, 3))).clip(0, 1).astype(np.float32)
        mask = np.zeros((40, 80), dtype=np.bool_)
        if defect := index >= 13:
            mask[10:20, 30:50] = True
            pixels[mask] = 0.9
            images.write(root / f"{index}_mask.png", mask)
        images.write(root / f"{index}.png", pixels)
        split = "test" if index >= 10 else "calibrate" if index >= 8 else "train"
        facts = {
            "sample_id": f"s{index}",
            "sha256": digest(root / f"{index}.png"),
            "group_id": f"g{index}",
            "category": "cloth",
        }
        facts |= {"path": f"{index}.png", "mask_path": f"{index}_mask.png" if defect else "", "split": split}
        rows.append(facts | {"label": "defect" if defect else "normal", "kind": "spot", "height": 40, "width": 80})
    return Subject("cloth", pd.DataFrame(rows), root)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Install a program as every rival's script, and this Python as its environment."""

    def write(text: str) -> Path:
        file = tmp_path / "script.py"
        file.write_text(text, "utf-8")
        monkeypatch.setattr(rivals, "SCRIPT", file)
        monkeypatch.setattr(rivals, "install", lambda *_: Path(sys.executable))
        return file

    return write


def test_a_rival_sees_all_normals_and_its_maps_are_judged(
    cloth: Subject, script: Callable[[str], Path], tmp_path: Path
) -> None:
    script(FAKE)
    found = benchmark.entry(BenchmarkContext(cloth, PARAMS, tmp_path / "bench"), NAME, 0)
    assert found.facts["image_auroc"] == 1
    assert found.facts["pixel_auroc"] > 0.99
    assert found.facts["versions"] == {"fake": "1.0", "trained": "10"}, "those that calibrate are among them"
    assert found.facts["milliseconds"] > 2, "reading the image counts, too"
    assert found.facts["peak_megabytes"] == 7
    assert len(found.counts) == 6
    assert found.counts[0].normal.sum() == 32 * 64, "the map is that of the image, without the padding"


def test_a_kept_result_needs_no_rival_and_other_code_does(
    cloth: Subject, script: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = BenchmarkContext(cloth, PARAMS, tmp_path / "bench")
    script(FAKE)
    first = benchmark.entry(context, NAME, 0)
    script("raise SystemExit('not again')")
    assert benchmark.entry(context, NAME, 0).facts == first.facts
    with pytest.raises(RivalError, match="not again"):
        benchmark.entry(context, NAME, 1)
    changed = Rival(**{**vars(RIVALS[NAME]), "environment": "anomalib"})
    monkeypatch.setitem(RIVALS, NAME, changed)
    with pytest.raises(RivalError, match="not again"):
        benchmark.entry(context, NAME, 0)


def test_a_failing_rival_is_a_row_with_its_reason(
    cloth: Subject, script: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("raise ValueError('no such layer')")
    told: list[str] = []
    twin, methods = Subject("twin", cloth.rows, cloth.root), ("control", NAME)
    found = accuracy.run([cloth, twin], PARAMS, (0,), tmp_path / "bench", 20, methods, tell=told.append)
    by = {(line.category, line.method): line for line in found.lines}
    assert by["cloth", NAME].failed == "failed with exit code 1: ValueError: no such layer"
    assert by["mean", NAME].failed == "failed on cloth, twin"
    assert by["mean", "control"].figures["image_auroc"] is not None
    found.write(tmp_path / "out")
    assert "| AnomaVision PaDiM | none: failed with exit code 1" in (tmp_path / "out/accuracy.md").read_text("utf-8")
    assert any("no such layer" in words for words in told)


def test_ours_minus_a_rival_is_shown_with_its_interval(
    cloth: Subject, script: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control stands for ours: what is compared is the table's matter."""
    script(FAKE)
    monkeypatch.setattr(accuracy, "OURS", "control")
    found = accuracy.run([cloth], PARAMS, (0,), tmp_path / "bench", 30, ("control", NAME), tell=lambda words: None)
    gaps = {gap.figure: gap for gap in found.gaps}
    assert list(gaps) == ["image_auroc", "pixel_auroc", "aupro", "aupro_05"]
    lines = {line.method: line.figures["aupro_05"] for line in found.lines}
    assert (ours := lines["control"]) is not None
    assert (other := lines[NAME]) is not None
    assert gaps["aupro_05"].difference.value == pytest.approx(ours.value - other.value)
    assert gaps["aupro_05"].cells()[2] == accuracy.NAMES[NAME]
    assert found.notes == ["AnomaVision PaDiM: fake 1.0, trained 10; blocks 2, 4"]


@pytest.mark.parametrize(
    ("text", "minutes", "reason"),
    [
        ("import time; time.sleep(60)", 0.01, "not finished after 0.01 minutes; give it longer with --rival-minutes"),
        (FAKE.replace("maps.tofile", "maps[1:].tofile"), 1, "expected scores and maps of 6 views, found 6 scores"),
        ("import os; os.kill(os.getpid(), 9)", 1, "exit code -9: it said nothing"),
    ],
)
def test_what_a_rival_may_not_do(
    text: str, minutes: float, reason: str, cloth: Subject, script: Callable[[str], Path], tmp_path: Path
) -> None:
    script(text)
    with pytest.raises(RivalError, match=reason):
        benchmark.entry(BenchmarkContext(cloth, PARAMS, tmp_path), NAME, 0, minutes)


def test_rivals_stand_on_the_frozen_network(cloth: Subject, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"model": config.Model(backbone="vqgan")})
    with pytest.raises(RivalError, match=r"found model\.backbone=vqgan"):
        benchmark.entry(BenchmarkContext(cloth, params, tmp_path), NAME, 0)


def test_an_environment_is_made_once_and_again_after_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for uv that writes down what it is asked."""
    uv, asked = tmp_path / "bin" / "uv", tmp_path / "asked.txt"
    uv.parent.mkdir()
    uv.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\ntest ! -e {tmp_path}/broken || {{ echo no network >&2; exit 2; }}\n'
    )
    uv.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: str(uv))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    told: list[str] = []
    (tmp_path / "broken").touch()
    with pytest.raises(RivalError, match=r"anomavision: could not be installed; check the network .*: no network"):
        rivals.install(RIVALS[NAME], tmp_path / "home", told.append)
    (tmp_path / "broken").unlink()
    for _ in range(2):
        assert rivals.install(RIVALS[NAME], tmp_path / "home", told.append) == tmp_path / "home/anomavision/bin/python"
    words = asked.read_text("utf-8").splitlines()
    assert [line.split()[0] for line in words] == ["venv", "venv", "pip"]
    assert "--no-deps" in words[2]
    assert "anomavision==3.6.2" in words[2]
    assert "--torch-backend cpu" in words[2]
    assert len(told) == 2
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(RivalError, match="expected the program uv, found none"):
        rivals.install(RIVALS["anomalib_padim"], tmp_path / "home", told.append)


@pytest.mark.parametrize("environment", ["anomalib", "anomavision"])
def test_an_installed_rival_reads_the_features_that_ours_reads(environment: str, tmp_path: Path) -> None:
    python = PROJECT / ".pvqae" / "rivals" / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{environment} is not installed; python -m flows bench accuracy --rivals installs it")
    x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    rivals.write_weights(tmp_path / "weights.npz")
    np.save(tmp_path / "x.npy", ((x * 255 - 127) / 128).numpy())
    code = f"""
import sys; sys.path.insert(0, {str(PROJECT / "flows/experiments")!r})
import numpy as np, rival_script, torch
x = torch.from_numpy(np.load({str(tmp_path / "x.npy")!r}))
method = {{"anomalib": "anomalib_padim", "anomavision": "anomavision_padim"}}[{environment!r}]
_, network, _ = rival_script._METHODS[method]({{"weights": {str(tmp_path / "weights.npz")!r}}})
with torch.no_grad():
    found = network(x)
tensors = found.values() if isinstance(found, dict) else [found[0]]
np.savez({str(tmp_path / "found.npz")!r}, *[t.numpy() for t in tensors])
"""
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    found = list(np.load(tmp_path / "found.npz").values())
    network = backbones.make(config.Params().model).eval().network
    ours = [t.numpy() for t in network(x, (2, 4, 10))]
    if environment == "anomalib":
        for own, other in zip(ours, found, strict=True):
            np.testing.assert_allclose(other, own, atol=2e-4)
    else:  # all of its layers on the grid of the first
        np.testing.assert_allclose(found[0][0, :, :24], ours[0][0].reshape(24, -1).T, atol=2e-4)


def test_every_rival_has_pins_and_names_its_blocks() -> None:
    for rival in RIVALS.values():
        assert any(pin.startswith(f"{rival.environment}==") for pin in rival.pins)
        assert all(pin.count("==") == 1 for pin in rival.pins)
        assert set(rival.layers.split(", ")) <= {"2", "4", "10", "15"}
    assert json.loads(json.dumps(sorted(RIVALS))) == sorted(RIVALS)
    assert OURS not in RIVALS
