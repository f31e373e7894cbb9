"""`train.steps: 0`: memory and calibration alone, and everything downstream copes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.core.layout import Layout
from pvqae.drift import profile
from pvqae.export import onnx_graph
from pvqae.inference import bundle
from pvqae.samples import manifest
from pvqae.serving import batch
from pvqae.training import network, warm

NOTHING = {"steps": 0}
MEMORY = {"recon": "memory"}


@pytest.fixture(scope="module")
def untrained(workspace: Layout, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    params = tiny.params(train=NOTHING, score=MEMORY)
    found: Layout = tiny.variant(workspace, tmp_path_factory.mktemp("untrained"), tiny.per_class("plate"), params)
    return found


@pytest.fixture(scope="module")
def trained(workspace: Layout, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    params = tiny.params(score=MEMORY)
    found: Layout = tiny.variant(workspace, tmp_path_factory.mktemp("trained"), tiny.per_class("plate"), params)
    return found


def _images(layout: Layout) -> pd.DataFrame:
    return pd.read_csv(layout.class_report("plate") / "images.csv")


def test_scores_and_threshold_are_those_of_a_trained_network_that_nothing_reads(
    untrained: Layout, trained: Layout
) -> None:
    pd.testing.assert_series_equal(_images(untrained)["image_score"], _images(trained)["image_score"])
    cards = [bundle.load(layout.bundle("plate")).threshold for layout in (untrained, trained)]
    assert cards[0] == cards[1]


def test_no_network_and_no_prior_are_left_behind(untrained: Layout) -> None:
    assert {p.name for p in untrained.network("plate").iterdir()} == {"rows.csv", "history.jsonl", "origin.json"}
    assert {p.name for p in untrained.prior("plate").iterdir()} == {"facts.json", "history.jsonl"}
    facts = json.loads((untrained.prior("plate") / "facts.json").read_text())
    assert facts == {"plate": {"prior_cross_entropy": None, "frequency_cross_entropy": None}}
    assert (untrained.bundle("plate") / "weights.safetensors").stat().st_size < 100


def test_a_score_has_the_memory_s_part_and_no_levels(untrained: Layout) -> None:
    detector = bundle.load(untrained.bundle("plate"))
    file = untrained.data / manifest.read(untrained.manifest)["path"].iloc[0]
    row, scored = batch.one(detector, file.read_bytes(), "part.png")
    assert scored is not None
    assert not scored.allocates
    assert row["parts"].keys() == {"s_recon"}
    assert row["level_shares"] is None
    assert row["decision"] in {"normal", "defect"}
    assert profile.flatten(row)["s_recon"] == row["score"]


def test_the_report_says_that_no_network_was_trained(untrained: Layout, trained: Layout) -> None:
    pages = [(layout.reports / "index.html").read_text("utf-8") for layout in (untrained, trained)]
    assert ["No network was trained" in page for page in pages] == [True, False]
    assert ["expected resolution" in page for page in pages] == [False, True]
    found = json.loads((untrained.reports / "metrics.json").read_text())["classes"]["plate"]
    assert found["s_recon_image_auroc"] == found["image_auroc"]
    assert found["s_prior_image_auroc"] is None
    assert found["level_shares"] == []
    assert "s_prior" not in _images(untrained)


def test_drift_is_judged_without_levels(untrained: Layout, trained: Layout) -> None:
    profiles = [profile.read(bundle.read(layout.bundle("plate"))) for layout in (untrained, trained)]
    assert set(profiles[1]) - set(profiles[0]) == {"level_0", "level_1", "level_2"}
    assert len(profiles[0]) == len(profiles[1])


def test_the_graph_has_the_outputs_that_there_are(untrained: Layout, trained: Layout) -> None:
    names = [onnx_graph.names(bundle.load(layout.bundle("plate")).scorer) for layout in (untrained, trained)]
    assert names[0] == ("image_score", "margin", "anomaly_map", "s_recon", "s_recon_cells", "valid_cells")
    assert names[1] == onnx_graph.Outputs._fields


def test_a_training_goes_on_from_scratch_after_it(untrained: Layout, tiny: Any, tmp_path: Path) -> None:
    warm.keep(untrained.network("plate"), tmp_path / "kept")
    warm.place(untrained.bundle("plate"), tmp_path / "kept", tmp_path / "parent")
    parent = warm.Parent.load(tmp_path / "parent", tiny.params())
    rows = manifest.read_rows(untrained, untrained.network_rows("plate")).assign(fold=0)
    assert "no network" in warm.obstacle(parent, rows, "full")


@pytest.mark.parametrize(
    "other", [{"score": {"recon": "both"}}, {"score": {"fusion": "gated"}}, {"model": {"backbone": "vqgan"}}]
)
def test_what_needs_a_network_is_told_before_anything_is_written(
    untrained: Layout, tiny: Any, tmp_path: Path, other: dict[str, dict[str, object]]
) -> None:
    layout = Layout(tmp_path, "tiny")
    shutil.copytree(untrained.data, layout.data)
    params: config.Params = tiny.params(train=NOTHING, **{"score": MEMORY, **other})
    with pytest.raises(ConfigError, match=r"train\.steps: 0 trains no network"):
        network.train(layout, params, "plate")
    assert not layout.network("plate").exists()


def test_weights_that_were_taken_out_are_not_an_untrained_network(trained: Layout, tmp_path: Path) -> None:
    """The whole bundle is sealed: without its network it is refused, not scored in another way."""
    shutil.copytree(trained.bundle("plate"), tmp_path / "bundle")
    (tmp_path / "bundle" / "weights.safetensors").unlink()
    with pytest.raises(Exception, match=r"weights\.safetensors"):
        bundle.load(tmp_path / "bundle")
