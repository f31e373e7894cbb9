"""A scorer fitted on a few textures, and a workspace in which every stage has run once."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from pvqae.calibration import fitting
from pvqae.calibration.calibrate import calibrate
from pvqae.core import config
from pvqae.core.layout import Layout
from pvqae.datasets import build, validation
from pvqae.evaluation import stage
from pvqae.features.examples import prepare
from pvqae.inference.measures import Allocator, Networks
from pvqae.inference.scoring import Scorer
from pvqae.model import backbones
from pvqae.model.autoencoder import Autoencoder
from pvqae.prior import learn
from pvqae.prior.prior import BudgetPrior
from pvqae.report.report import report
from pvqae.samples import classes, images, manifest
from pvqae.training import network

T = TypeVar("T")
Picture = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def picture() -> Picture:
    """`picture(seed, height, width)`: soft waves with a little noise, like a woven sheet."""

    def make(seed: int, height: int = 128, width: int = 128) -> np.ndarray:
        rng = np.random.default_rng(seed)
        waves = np.sin(np.mgrid[:height, :width] * 0.4 + rng.random((2, 1, 1)) * 0.5).sum(0)
        grey = 0.5 + 0.12 * waves + 0.02 * rng.standard_normal((height, width))
        return np.repeat(grey[..., None], 3, axis=2).clip(0, 1).astype(np.float32)

    return make


@contextmanager
def restored_torch() -> Iterator[None]:
    """Stages set torch up for a process of their own."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture(scope="session")
def scorer(picture: Picture, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """128 px, all measures; the networks are as drawn, the memory and the statistics are fitted."""
    root = tmp_path_factory.mktemp("normals")
    for index in range(8):
        images.write(root / f"{index}.png", picture(index))
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(8)], "group_id": [f"g{i // 2}" for i in range(8)]})
    params = config.Params(
        image=config.Image(size=128),
        model=config.Model(width=8, code_dim=4, codes=16),
        memory=config.Memory(codes=64),
        score=config.Score(recon="both", image={"joint": 2.0, "stride16": 1.0, "stride32": 1.0}),
    )
    torch.manual_seed(0)
    backbone = backbones.make(params.model).eval()
    autoencoder = Autoencoder(params.model, backbone.spec).eval().requires_grad_(False)
    examples = prepare(frame, root, params.image, backbone, "none")
    vectors = torch.randn(200, 4)
    autoencoder.codebook.start(vectors)
    learned = BudgetPrior((4, 4), 3, 16).eval().requires_grad_(False)
    found = Networks(backbone, Allocator(autoencoder, learned, params.score.prior), {}, None)
    return fitting.fit(found, examples, fitting.group_numbers(frame, examples), params, "full")


def tiny_params(**sections: object) -> config.Params:
    values: dict[str, object] = {
        "data": {"name": "tiny", "source": "mvtec", "min_normals": 4},
        "image": {"size": 64},
        "model": {"width": 16, "code_dim": 8, "codes": 32},
        "memory": {"codes": 32},
        "train": {"steps": 4, "batch": 4},
        "prior": {"steps": 5, "width": 16},
        "score": {"recon": "both"},  # so that every fold trains a network of its own
        "calibration": {"folds": 2, "false_alarm_rate": 0.2},
        "evaluation": {"pictures": 1},
        "compute": {"device": "cpu", "precision": "float32", "parallel": 1, "threads": 1},
    }
    return config.parse(values | sections)


PER_CLASS = {
    "dataset": "tiny",
    "networks": {name: {"classes": [name]} for name in ("cloth", "plate")},
    "priors": {n: {"classes": [n], "allocations": f"models/tiny/networks/{n}"} for n in ("cloth", "plate")},
    "classes": {name: {"network": name, "prior": name} for name in ("cloth", "plate")},
}


@pytest.fixture(scope="session")
def raw(picture: Picture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in MVTec's layout: 12 good ones to train with, 3 good and 3 dented ones to test; square and 2.5:1."""
    root = tmp_path_factory.mktemp("raw")
    for category, (height, width) in {"cloth": (64, 64), "plate": (40, 100)}.items():
        for folder, count in (("train/good", 12), ("test/good", 3), ("test/dent", 3)):
            for index in range(count):
                seed = 1000 * len(category + folder) + index + height
                image, mask = picture(seed, height, width), np.zeros((height, width), dtype=np.bool_)
                if folder.endswith("dent"):
                    mask[10:24, 12 : 30 + index] = True
                    image[mask] = 0.02
                    images.write(root / category / "ground_truth" / "dent" / f"{index:03}_mask.png", mask)
                images.write(root / category / folder / f"{index:03}.png", image)
    return root


@pytest.fixture(scope="session")
def workspace(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Every stage has run, per class. Do not change it: copy it."""
    layout = Layout(tmp_path_factory.mktemp("workspace"), "tiny")
    layout.raw.parent.mkdir(parents=True)
    shutil.copytree(raw, layout.raw)
    params = tiny_params()
    build.build(layout.root, params)
    layout.classes_file.write_text(yaml.safe_dump(PER_CLASS))
    validation.check(layout, params)
    run_stages(layout, params)
    return layout


def run_stages(layout: Layout, params: config.Params) -> None:
    """What dvc.yaml runs after `validate`, in its order."""
    (layout.root / "params.yaml").write_text(config.dump(params))
    graph = yaml.safe_load(layout.classes_file.read_text())
    with restored_torch():
        for name in graph["networks"]:
            network.train(layout, params, name)
        for group in graph["priors"]:
            learn.train(layout, params, group)
        for category in graph["classes"]:
            calibrate(layout, params, category)
            stage.run(layout, params, category)
        report(layout)


def variant(workspace: Layout, root: Path, graph: dict[str, object], params: config.Params) -> Layout:
    """The same checked images under another graph and other params, all stages run."""
    layout = Layout(root, "tiny")
    shutil.copytree(workspace.data, layout.data)
    layout.classes_file.write_text(yaml.safe_dump(graph))
    known = classes.read(layout.classes_file, "tiny")
    frame = manifest.read(layout.manifest)
    manifest.write_rows(frame[frame["category"].isin(known.classes)], known, layout)
    run_stages(layout, params)
    return layout


class Tiny:
    """What the tests of stages vary."""

    params = staticmethod(tiny_params)
    variant = staticmethod(variant)
    stages = staticmethod(run_stages)

    @staticmethod
    def per_class(name: str) -> dict[str, object]:
        """The graph of one class alone."""
        parts = {key: {name: value[name]} for key, value in PER_CLASS.items() if isinstance(value, dict)}
        return {"dataset": "tiny", **parts}

    @staticmethod
    def run(stage: Callable[..., T], *arguments: object) -> T:
        """One stage, with torch as it was afterwards."""
        with restored_torch():
            return stage(*arguments)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()
