"""What trials share: a bundle that scores, made in a second without training."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pvqae.calibration import fitting
from pvqae.core import config
from pvqae.features.examples import prepare
from pvqae.inference import bundle
from pvqae.inference.measures import Allocator, Networks
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder
from pvqae.prior.prior import BudgetPrior
from pvqae.samples import images

PARAMS = config.Params(
    data=config.Data(name="tiny", source="mvtec"),
    image=config.Image(size=64),
    model=config.Model(width=8, code_dim=4, codes=16),
    memory=config.Memory(codes=32),
    prior=config.Prior(width=16),
    score=config.Score(recon="both"),
)
CARD = {"threshold": 1.0, "map_threshold": 2.0, "map_scale": [0.0, 4.0]}


STATISTICS = ("brightness", "contrast", "sharpness", "colour", "megapixels")


def make(folder: Path, root: Path, params: config.Params = PARAMS, card: dict[str, object] = CARD) -> Path:
    """A bundle in `folder`, all measures; the networks are as drawn, memory and statistics are fitted to noise that is
    written to `root`."""
    rng, side = np.random.default_rng(0), params.image.size
    for index in range(8):
        images.write(root / f"{index}.png", rng.random((side, side, 3), dtype=np.float32) * 0.2 + 0.4)
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(8)], "group_id": [f"g{i // 2}" for i in range(8)]})
    torch.manual_seed(0)
    backbone = backbones.make(params.model).eval()
    autoencoder = Autoencoder(params.model, backbone.spec).eval().requires_grad_(False)
    autoencoder.codebook.start(torch.randn(200, 4))
    learned = BudgetPrior((side // 32, side // 32), 3, 16).eval().requires_grad_(False)
    found = Networks(backbone, Allocator(autoencoder, learned, params.score.prior), {}, None)
    examples = prepare(frame, root, params.image, backbone, "none")
    scorer = fitting.fit(found, examples, fitting.group_numbers(frame, examples), params, "full")
    profile = {"columns": {"group": [0, 1], "image_score": [0.1, 0.2], **{name: [0.5, 0.6] for name in STATISTICS}}}
    bundle.save(folder, scorer, params, "part", {"level_shares": [0.2, 0.5, 0.3]}, card, profile)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 px. Do not change it: copy it."""
    return make(tmp_path_factory.mktemp("tiny") / "bundle", tmp_path_factory.mktemp("normals"), PARAMS)
