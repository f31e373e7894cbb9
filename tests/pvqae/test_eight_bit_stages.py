"""`model.precision: int8` from the photographs to a bundle and an export."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import pvqae
from pvqae.core.errors import IntegrityError
from pvqae.core.files import seal_folder
from pvqae.export import export
from pvqae.inference import bundle
from tests.pvqae.test_api import SMALL

EIGHT: dict[str, Any] = SMALL | {"model": {"precision": "int8"}}


@pytest.fixture(scope="module")
def detector(raw: Path) -> pvqae.Detector:
    return pvqae.fit(raw / "cloth" / "train" / "good", EIGHT, name="cloth")


def test_a_bundle_of_8_bit_finds_the_dent_and_says_what_it_is(
    detector: pvqae.Detector, raw: Path, tmp_path: Path
) -> None:
    dent, good = (raw / "cloth" / "test" / kind / "000.png" for kind in ("dent", "good"))
    assert detector.score(dent).decision == "defect"
    assert detector.score(dent).score > detector.score(good).score
    saved = detector.save(tmp_path / "bundle")
    facts = json.loads((saved / "config.json").read_text("utf-8"))
    assert facts["model"]["precision"] == "int8"
    assert len(facts["backbone"]["ranges"]) == 16
    assert pvqae.load(saved).score(dent).score == detector.score(dent).score


def test_it_is_fitted_again_to_the_same_bytes_and_not_to_those_of_float32(detector: pvqae.Detector, raw: Path) -> None:
    good, dent = raw / "cloth" / "train" / "good", raw / "cloth" / "test" / "dent" / "000.png"
    assert pvqae.fit(good, EIGHT, name="cloth").sha256 == detector.sha256
    plain = pvqae.fit(good, SMALL, name="cloth")
    assert plain.score(dent).score != detector.score(dent).score


def test_a_bundle_without_its_ranges_is_refused(detector: pvqae.Detector, tmp_path: Path) -> None:
    saved = detector.save(tmp_path / "bundle")
    facts = json.loads((saved / "config.json").read_text("utf-8"))
    facts["backbone"]["ranges"].pop()
    (saved / "config.json").write_text(json.dumps(facts), "utf-8")
    seal_folder(saved)
    with pytest.raises(IntegrityError, match="expects 16 ranges, found 15"):
        bundle.load(saved)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_an_export_computes_in_8_bit_too(detector: pvqae.Detector, raw: Path, tmp_path: Path, form: str) -> None:
    told: list[str] = []
    tests = sorted((raw / "cloth" / "test").glob("*/*.png"))
    found = export.export(detector.save(tmp_path / "bundle"), tmp_path / "out", tests, told.append, form=form)
    assert found.limit == 0.5
    card = json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))
    assert card["precision"] == "int8"
    assert card["parity"]["limit"] == 0.5
    assert "limit 0.5" in "".join(told)
    graph = (tmp_path / "out" / {"onnx": "model.onnx", "openvino": "model.bin"}[form]).stat().st_size
    assert graph < 5.5e6  # in float32 more than 10 MB
    if form == "onnx":
        nodes = [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node]
        assert nodes.count("QuantizeLinear") >= 40
