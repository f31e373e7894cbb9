"""Three lines of Python on real files, and what the notebook shows."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import pvqae
from pvqae.core.errors import ConfigError, DataError, IntegrityError, ValidationFailed
from pvqae.core.layout import Layout
from pvqae.inference import bundle
from pvqae.samples import images

Picture = Callable[..., np.ndarray]
SMALL = {
    "image": {"size": 64},
    "memory": {"codes": 32},
    "data": {"min_normals": 4},
    "calibration": {"folds": 2, "false_alarm_rate": 0.2},
    "compute": {"device": "cpu", "threads": 1, "parallel": 1},
    "train": {"steps": 0},
}


@pytest.fixture(scope="module")
def detector(raw: Path) -> pvqae.Detector:
    return pvqae.fit(raw / "cloth" / "train" / "good", SMALL, name="cloth")


def test_a_dent_is_a_defect_and_is_where_it_is(detector: pvqae.Detector, raw: Path) -> None:
    file = raw / "cloth" / "test" / "dent" / "000.png"
    found = detector.score(file)
    assert found.decision == "defect"
    assert found.score > found.threshold == detector.threshold
    assert found.map.shape == (64, 64)
    assert found.mask is not None
    assert found.mask.shape == (64, 64)
    dent = images.read_mask(raw / "cloth" / "ground_truth" / "dent" / "000_mask.png")
    assert found.map[dent].mean() > 2 * found.map[~dent].mean()
    assert (found.mask & dent).sum() > 0.5 * dent.sum()
    assert found.regions
    assert found.regions[0]["peak"] == pytest.approx(found.anomaly_map.max(), rel=1e-4)


def test_good_parts_are_mostly_normal(detector: pvqae.Detector, raw: Path) -> None:
    decisions = [detector.score(file).decision for file in sorted((raw / "cloth" / "test" / "good").iterdir())]
    assert decisions.count("normal") >= 2


def test_what_was_saved_is_a_bundle_and_scores_the_same(detector: pvqae.Detector, raw: Path, tmp_path: Path) -> None:
    file = raw / "cloth" / "test" / "dent" / "001.png"
    saved = detector.save(tmp_path / "bundle")
    assert bundle.verify(saved) == detector.sha256
    assert pvqae.load(saved).score(file).score == detector.score(file).score
    assert pvqae.load(detector.save(saved)).sha256 == detector.sha256  # over an earlier bundle
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="expected a new folder or a bundle to replace"):
        detector.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_files_frames_and_arrays_teach_what_their_folder_does(
    detector: pvqae.Detector, raw: Path, tmp_path: Path
) -> None:
    files = sorted((raw / "cloth" / "train" / "good").iterdir())
    arrays = [np.rint(images.read(file) * 255).astype(np.uint8) for file in files]
    assert pvqae.fit(files, SMALL, name="cloth").sha256 == detector.sha256
    parts = pd.DataFrame({"path": files, "part": [f"p{number // 2}" for number in range(len(files))]})
    assert pvqae.fit(parts, SMALL, name="cloth").card["n_groups"] == len(files) // 2
    other = pvqae.fit(arrays, SMALL, name="cloth")  # their names differ, so other folds judge them
    file = raw / "cloth" / "test" / "dent" / "002.png"
    assert other.score(file).decision == "defect"
    whole = np.rint(images.read(file) * 255).astype(np.uint8)
    assert other.score(whole).score == pytest.approx(other.score(file).score, abs=1e-5)
    assert other.score(whole / 255).score == pytest.approx(other.score(file).score, abs=1e-4)
    assert other.score(whole[..., 0]).score == pytest.approx(other.score(file).score, abs=1e-5)  # it is grey


def test_the_stages_of_a_pipeline_give_the_same_bundle(
    detector: pvqae.Detector, raw: Path, tmp_path: Path, tiny: Any
) -> None:
    """Same files, same params, same bytes: the stages are called one by one here."""
    layout = Layout(tmp_path, "python")
    for file in (raw / "cloth" / "train" / "good").iterdir():
        images.write(layout.raw / "cloth" / "good" / file.name, images.read(file))
    alone = tiny.per_class("cloth") | {"dataset": "python"}
    alone["priors"] = {"cloth": {"classes": ["cloth"], "allocations": "models/python/networks/cloth"}}
    layout.classes_file.write_text(yaml.safe_dump(alone))
    data = {"name": "python", "source": "folder", "min_normals": 4, "shares": {"gate": 0.0, "test": 0.0}}
    params = pvqae.parse_params({**SMALL, "data": data})
    pvqae.build_manifest(layout.root, params)
    pvqae.check_manifest(layout, params, judged=False)
    tiny.run(pvqae.train_network, layout, params, "cloth")
    tiny.run(pvqae.train_prior, layout, params, "cloth")
    assert tiny.run(pvqae.calibrate, layout, params, "cloth") != ""
    of_stages, of_fit = pvqae.load(layout.bundle("cloth")), detector
    file = raw / "cloth" / "test" / "dent" / "000.png"
    assert of_stages.score(file).score == of_fit.score(file).score
    assert of_stages.threshold == of_fit.threshold


def test_a_notebook_shows_pictures_and_plain_words(detector: pvqae.Detector, raw: Path) -> None:
    found = detector.score(raw / "cloth" / "test" / "dent" / "000.png", "<b>part</b>")
    page = found._repr_html_()
    assert page.count("data:image/webp;base64,") == 2
    assert "&lt;b&gt;part&lt;/b&gt; defect: score" in page
    assert "region" in repr(found)
    assert "12 photographs of 12 good parts" in detector._repr_html_()
    assert "cloth" in repr(detector)


def test_the_process_is_as_it_was(detector: pvqae.Detector, raw: Path) -> None:
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode(), set(Path(tempfile.gettempdir()).iterdir())
    with pytest.raises(ValidationFailed, match="expected at least 4 normals to train with; 1 not: part: 2"):
        pvqae.fit(sorted((raw / "cloth" / "train" / "good").iterdir())[:2], SMALL)
    assert (torch.get_num_threads(), torch.get_deterministic_debug_mode()) == before[:2]
    assert not [path for path in Path(tempfile.gettempdir()).glob("pvqae-fit-*") if path not in before[2]]


@pytest.mark.parametrize(
    ("normals", "words"),
    [
        ("nowhere", "nowhere: expected a folder of photographs of good parts, found none"),
        (["nowhere.png"], "nowhere.png: expected the file of a photograph"),
        (pd.DataFrame({"file": []}), "expected a frame with the column path, found file"),
        (np.zeros((8, 8)), "expected several photographs, found one array"),
        ([np.zeros((8, 8, 5))], r"normals\[0\]: expected H x W or H x W x 3 pixels"),
        ([np.full((8, 8), 255.0)], r"normals\[0\]: .*found floats from 255 to 255; divide"),
        ([np.full((8, 8), np.nan)], r"normals\[0\]: .*found floats from nan"),
        ([np.zeros((8, 8), dtype=np.int64)], r"found int64 of shape \(8, 8\)"),
        (None, "expected a folder, several photographs or a frame, found None"),
        ([], "normals: expected photographs of good parts, found none"),
        (pd.DataFrame({"path": [np.nan]}), r"normals\[0\]: .*found nan"),
    ],
)
def test_what_is_no_photograph_is_told(normals: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        pvqae.fit(normals, SMALL)


def test_a_folder_without_photographs_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match=rf"^{tmp_path}: expected photographs of good parts, found none of \.bmp"):
        pvqae.fit(tmp_path, SMALL)


@pytest.mark.parametrize("whole", [False, True])
def test_messages_name_what_was_given(raw: Path, tmp_path: Path, whole: bool) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes((raw / "cloth" / "train" / "good" / "000.png").read_bytes()[:200])
    with pytest.raises(DataError) as told:
        pvqae.fit(tmp_path if whole else [torn], SMALL)
    assert f"\n  {torn}: expected a readable image" in str(told.value)
    assert "params.yaml" not in str(told.value)
    images.write(torn, np.zeros((64, 64, 3)))
    with pytest.raises(ValidationFailed) as told:
        pvqae.fit(tmp_path if whole else [torn], SMALL | {"data": {"min_normals": 1}})
    assert f"({torn})" in str(told.value)
    assert "python -m flows" not in str(told.value)


def test_what_taught_nothing_is_warned_of(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "cloth" / "train" / "good", tmp_path / "all")
    shutil.copy(tmp_path / "all" / "000.png", tmp_path / "all" / "again.png")
    (tmp_path / "all" / "ng").mkdir()
    shutil.copy(raw / "cloth" / "test" / "dent" / "000.png", tmp_path / "all" / "ng")
    with pytest.warns(UserWarning, match="taught nothing|not looked at") as told:
        pvqae.fit(tmp_path / "all", SMALL)
    words = sorted(str(one.message) for one in told)
    assert len(words) == 2
    assert words[0] == f"{tmp_path}/all/again.png taught nothing: duplicate of {tmp_path}/all/000.png"
    assert words[1].endswith(f": {tmp_path}/all/ng/000.png")


def test_a_file_to_score_that_is_not_there_is_told(detector: pvqae.Detector) -> None:
    with pytest.raises(DataError, match=r"^nowhere\.png: expected an image, found no file; correct the path"):
        detector.score("nowhere.png")


def test_wrong_params_and_names_are_told() -> None:
    with pytest.raises(ConfigError, match=r"image\.sise"):
        pvqae.fit([], {"image": {"sise": 64}})
    with pytest.raises(ConfigError, match="expected Params or a mapping of sections, found list"):
        pvqae.fit([], [1])
    with pytest.raises(ConfigError, match="name: expected"):
        pvqae.fit([], name="a/b")
    with pytest.raises(IntegrityError):
        pvqae.load("nowhere")
