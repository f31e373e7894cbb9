"""A version's model card: Markdown that Hugging Face's own reader takes, whatever a person has written."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard as HubCard

from flows.adapters.fakes import FakeRegistry
from flows.core import lineage
from flows.core.lineage import Owner
from flows.versions import card
from flows.versions.card import ModelCard

BUNDLE = Path(__file__).parents[2] / "pvqae" / "inference" / "version_0_1" / "bundle"
FIGURES = {"image_auroc": 0.98765, "pixel_auroc": None, "aupro": 0.9, "n_normal": 40, "n_defect": 12}


def made(reason: str = "asked for", **tags: str) -> ModelCard:
    calibration, config = (json.loads((BUNDLE / f"{name}.json").read_text()) for name in ("calibration", "config"))
    known = dict.fromkeys(lineage.REQUIRED, "abc") | {"reason": reason} | lineage.figures(FIGURES, 7)
    return ModelCard("pvqae-line-nut", Owner("line", "nut"), calibration, config, known | tags)


def test_the_hub_reads_every_field() -> None:
    found = HubCard(made(gate_outcome="pass", gate_champion="2", gate_verdict="kept: a: b").text("3", "champion"))
    data = found.data
    assert (data.library_name, data.license, data.datasets) == ("pvqae", "unknown", ["line"])
    assert "anomaly-detection" in data.tags
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results == {"image AUROC": 0.98765, "AUPRO up to 30 % false-positive pixels": 0.9}
    assert data.eval_results[0].dataset_split == "test"
    assert data.model_name == "pvqae-line-nut version 3"
    assert "# pvqae-line-nut, version 3 (champion)" in found.text
    assert "A score above 21.08 is a defect" in found.text
    assert "The gate, against version 2: pass" in found.text
    assert "40 good and 12 defective images" in found.text


def test_a_version_without_figures_has_a_card_without_results() -> None:
    found = HubCard(made(figures="{}").text("1"))
    assert found.data.eval_results is None
    assert "## Test split" not in found.text


@pytest.mark.parametrize("reason", ["---\nlicense: mit\n---", "| a | b |\n<script>x</script>", "[x](http://y)", ": {"])
def test_what_a_person_wrote_is_only_text(reason: str) -> None:
    found = HubCard(made(reason).text("1"))
    assert found.data.license == "unknown"
    assert "<script>" not in found.text.replace("\\<", "")
    assert "[x](" not in found.text.replace("\\[", "").replace("\\]", "")


def test_the_description_fits_into_mlflow_and_the_file_into_the_run() -> None:
    assert len(made(gate_outcome="pass", gate_verdict="kept: x: y\n" * 3000).short) < 5000
    registry = FakeRegistry()
    run = registry.start("pvqae-line", "nut")
    card.keep(registry, run, "3", made())
    assert registry.runs[run].artifacts == ["card/version-3/README.md"]
