"""Warm starts and kept features through the real stages."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from flows.experiments.warm_chain import warm_chain
from pvqae.calibration.calibrate import calibrate
from pvqae.core.errors import ConfigError
from pvqae.core.layout import Layout
from pvqae.datasets import splits
from pvqae.inference import bundle
from pvqae.prior import learn
from pvqae.samples import manifest
from pvqae.training import network, warm


@pytest.fixture
def copied(workspace: Layout, tmp_path: Path) -> Layout:
    """The workspace with class cloth's own bundle as its parent."""
    layout = Layout(tmp_path / "copied", "tiny")
    shutil.copytree(workspace.root, layout.root)
    warm.keep(layout.network("cloth"), tmp_path / "kept")
    warm.place(layout.bundle("cloth"), tmp_path / "kept", layout.data / "parents" / "cloth")
    graph = yaml.safe_load(layout.classes_file.read_text())
    graph["networks"]["cloth"]["parent"] = "data/parents/cloth"
    layout.classes_file.write_text(yaml.safe_dump(graph))
    return layout


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_every_fit_goes_on_from_its_own_in_a_third_of_the_steps(copied: Layout, workspace: Layout, tiny: Any) -> None:
    tiny.run(network.train, copied, tiny.params(train={"steps": 9, "batch": 4}), "cloth")
    origin = read(copied.network("cloth") / "origin.json")
    assert origin == {
        "parent_bundle_sha256": bundle.sha256_of(workspace.bundle("cloth")),
        "fits": dict.fromkeys(("full", "fold-0", "fold-1"), "parent"),
    }
    rows = [json.loads(line) for line in (copied.network("cloth") / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["fold"] == "full"] == [0, 1, 2]
    assert read(workspace.network("cloth") / "origin.json")["parent_bundle_sha256"] == "none"


def test_fits_that_learned_from_a_part_that_is_no_longer_normal_start_from_scratch(copied: Layout, tiny: Any) -> None:
    file = copied.network_rows("cloth")
    rows = manifest.read(file)
    lost = splits._fold_of(rows["group_id"].iloc[0], 2)
    manifest.write(rows.iloc[1:], file)
    (copied.rows / "SHA256SUMS").unlink(missing_ok=True)  # as if they had been checked so
    tiny.run(network.train, copied, tiny.params(), "cloth")
    fits = read(copied.network("cloth") / "origin.json")["fits"]
    assert fits[f"fold-{lost}"] == "parent"  # it never learned from it
    for name in ("full", f"fold-{1 - lost}"):
        assert fits[name].startswith("scratch: the parent has learned from 1 parts")


def test_another_model_is_named_before_anything_is_read(copied: Layout, tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.codes 32 there, 16 in params"):
        tiny.run(network.train, copied, tiny.params(model={"width": 16, "code_dim": 8, "codes": 16}), "cloth")


@pytest.mark.parametrize("gigabytes", [0, 1])
def test_the_bundle_is_the_same_with_and_without_kept_features(
    copied: Layout, workspace: Layout, tiny: Any, gigabytes: int
) -> None:
    graph = yaml.safe_load(workspace.classes_file.read_text())
    copied.classes_file.write_text(yaml.safe_dump(graph))
    compute = {"device": "cpu", "precision": "float32", "parallel": 1, "threads": 1, "cache_gb": gigabytes}
    params = tiny.params(compute=compute)
    tiny.run(network.train, copied, params, "cloth")
    tiny.run(learn.train, copied, params, "cloth")
    assert tiny.run(calibrate, copied, params, "cloth") == bundle.sha256_of(workspace.bundle("cloth"))
    hits = read(copied.timing("cloth"))["reading"]["cache_hits"]
    assert hits == (len(manifest.read(copied.network_rows("cloth"))) if gigabytes else 0)


def test_a_chain_decodes_each_image_once_and_ends_where_scratch_does(
    workspace: Layout, tiny: Any, tmp_path: Path
) -> None:
    parts = [manifest.read(workspace.class_rows("cloth", part)) for part in ("normals", "test", "gate")]
    calibration = {"kfold_below": 0, "false_alarm_rate": 0.2, "promise_from": 0}  # the first link has five normals
    params = tiny.params(train={"steps": 6, "batch": 4}, calibration=calibration)
    table = tiny.run(warm_chain, params, pd.concat(parts), workspace.data, tmp_path, 2)
    assert list(table["link"]) == ["link-1", "link-2", "scratch"]
    assert list(table["warm"]) == [0, 1, 0]
    assert list(table["steps"]) == [6, 2, 6]
    new = table["normals"].diff().fillna(table["normals"].iloc[0]).astype(int)
    assert list(table["decoded"]) == list(table["backbone_views"]) == list(new)
    assert list(table["decoded"] + table["cache_hits"]) == list(table["normals"])
    assert table["image_auroc"].iloc[1:].min() > 0.8  # dents are black
    again = tiny.run(warm_chain, params, pd.concat(parts), workspace.data, tmp_path, 2)
    assert again.equals(table)
