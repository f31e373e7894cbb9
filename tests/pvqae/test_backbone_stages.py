"""Networks of other libraries through every stage, an export and a fresh process; random weights in a file."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save

import pvqae
from pvqae.calibration.calibrate import calibrate
from pvqae.core import config
from pvqae.core.errors import IntegrityError
from pvqae.core.layout import Layout
from pvqae.datasets import build
from pvqae.evaluation import stage
from pvqae.evaluation.metrics import image_auroc
from pvqae.export import export
from pvqae.inference import bundle
from pvqae.model import weights
from pvqae.prior import learn
from pvqae.samples import classes, manifest
from pvqae.training import network
from tests.hub import write_dino
from tests.pvqae.model.test_foreign import packaged_for_timm

if find_spec("timm") is None or find_spec("transformers") is None:
    pytest.skip("the extra pvqae[backbones] is not installed", allow_module_level=True)

FRESH = """
import json, sys
from pvqae.inference import bundle
print(json.dumps([s.image_score for s in bundle.load(sys.argv[1]).score_many([(p, p) for p in sys.argv[2:]])]))
"""
ALL = (
    "resnet18",
    "wide_resnet50_2",
    "convnextv2_atto",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "hf",
)
QUICK = ("resnet18", "hf")


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def written(name: str, folder: Path) -> tuple[str, bytes]:
    """The backbone's name without its sha256, and random weights, read from the file that they were written to."""
    from pvqae.model import foreign

    torch.manual_seed(0)
    if name == "hf":
        write_dino(folder / "dino")
        return f"hf:{folder / 'dino'}", weights.from_folder(folder / "dino")
    file = folder / f"{name}.safetensors"
    network = foreign.library("timm").create_model(name, pretrained=False)
    file.write_bytes(save({key: x.contiguous() for key, x in network.state_dict().items()}))
    return f"timm:{name}", weights.from_file(file)


@pytest.fixture(scope="module")
def images(raw: Path, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """The images of one class, in the manifest; they were checked by other tests."""
    layout = Layout(tmp_path_factory.mktemp("images"), "tiny")
    shutil.copytree(raw / "cloth", layout.raw / "cloth")
    build.build(layout.root, tiny.params())
    layout.classes_file.write_text(yaml.safe_dump(tiny.per_class("cloth")))
    manifest.write_rows(manifest.read(layout.manifest), classes.read(layout.classes_file, "tiny"), layout)
    return layout


EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.integration) for name in ALL]


@pytest.fixture(scope="module", params=EVERY)
def made(
    request: pytest.FixtureRequest, images: Layout, tiny: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Layout, config.Params]:
    """A workspace in which the class cloth was trained and calibrated with a backbone."""
    root = tmp_path_factory.mktemp(request.param)
    name, data = written(request.param, root)
    sha256 = weights.keep(data, {"backbone": name})
    model = {"backbone": f"{name}@{sha256[:16]}", "width": 16, "code_dim": 8, "codes": 32}
    params = tiny.params(model=model, score={"recon": "memory"})
    layout = Layout(root / "workspace", "tiny")
    shutil.copytree(images.data, layout.data)
    for run in (network.train, learn.train, calibrate, stage.run):
        tiny.run(run, layout, params, "cloth")
    return layout, params


def test_a_backbone_by_name_goes_through_every_stage(made: tuple[Layout, config.Params]) -> None:
    layout, params = made
    facts = json.loads((layout.bundle("cloth") / "config.json").read_text())
    name, _, pin = params.model.backbone.rpartition("@")
    about = facts["backbone"]
    assert about["name"] == name
    assert about["sha256"] == facts["backbone_sha256"]
    assert about["sha256"].startswith(pin)
    assert len(about["taps"]) in (3, 4)
    assert about.keys() >= {"mean", "deviation", "side", "interpolation", "library"}
    metrics = json.loads((layout.class_report("cloth") / "metrics.json").read_text())
    assert 0 <= metrics["image_auroc"] <= 1
    size = sum(file.stat().st_size for file in layout.bundle("cloth").iterdir())
    assert size < 4e6, size


def test_an_exported_bundle_scores_alike_in_a_process_that_has_nothing_else(
    made: tuple[Layout, config.Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, params = made
    files = sorted((layout.data / "raw" / "tiny" / "cloth" / "test" / "dent").glob("*.png"))[:2]
    own = [scored.image_score for scored in bundle.load(layout.bundle("cloth")).score_many((str(f), f) for f in files)]
    bundle.export(layout.bundle("cloth"), tmp_path / "packed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    command = [sys.executable, "-W", "ignore", "-c", FRESH, str(tmp_path / "packed"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(own, abs=1e-4)
    if params.model.backbone.startswith("timm:"):  # the folder of hf: is still there
        with pytest.raises(IntegrityError, match="use an exported bundle, which carries its own"):
            bundle.load(layout.bundle("cloth"))


@pytest.mark.integration  # half a minute each
def test_every_family_is_exported_with_parity(made: tuple[Layout, config.Params], tmp_path: Path) -> None:
    layout, _ = made
    images = sorted((layout.data / "raw" / "tiny" / "cloth" / "test").rglob("*.png"))
    export.export(layout.bundle("cloth"), tmp_path / "exported", images)
    assert (tmp_path / "exported" / "model.onnx").is_file()


@pytest.mark.integration  # a real class, twice
def test_the_packaged_weights_through_timm_judge_a_real_class_alike(real_dataset: Callable[[str, str], Path]) -> None:
    root = real_dataset("mvtec", "bottle") / "bottle"
    data = packaged_for_timm()
    weights.keep(data, {"backbone": "timm:tf_efficientnet_lite0"})
    named = f"timm:tf_efficientnet_lite0@{hashlib.sha256(data).hexdigest()[:16]}"
    files = sorted((root / "test").rglob("*.png"))
    defect = np.array([file.parent.name != "good" for file in files])
    found = []
    for name in ("efficientnet_lite0", named):
        detector = pvqae.fit(root / "train" / "good", {"model": {"backbone": name}})
        found.append(image_auroc(defect, np.array([detector.score(file).score for file in files])))
    assert found[0] > 0.99
    assert found[1] == pytest.approx(found[0], abs=0.002)
