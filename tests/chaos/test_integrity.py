"""One flipped bit in any file that something is loaded from: refused by name, or computed again to the same result."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from flows.gate import measure
from pvqae.core import files
from pvqae.core.errors import IntegrityError, PvqaeError
from pvqae.core.layout import Layout
from pvqae.datasets import build
from pvqae.evaluation import stage
from pvqae.features.examples import prepare
from pvqae.features.features import Store
from pvqae.inference import bundle
from pvqae.model import backbones, efficientnet
from pvqae.samples import classes, images, manifest
from pvqae.training import network, run, warm
from pvqae.training.run import start
from tests.chaos.conftest import PARAMS
from tests.chaos.figures import Figure, record, size

SEED = 61
HOW_OFTEN = size(2, 24)  # bits per file


def flips(folder: Path, check: Callable[[Path], str]) -> tuple[int, list[str]]:
    """Flip one bit at a time in every file of `folder`; `check` says what is wrong with what came of it. Tried, lost.

    Files are put back afterwards.
    """
    tried, lost = 0, []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        data = path.read_bytes()
        rng = random.Random(f"{SEED}/{path.name}")
        for _ in range(min(HOW_OFTEN, len(data))):
            place, bit = rng.randrange(len(data)), rng.randrange(8)
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            tried += 1
            if what := check(path):
                lost.append(f"{path.name}, byte {place}, bit {bit}: {what}")
            path.write_bytes(data)
    return tried, lost


def refused(load: Callable[[], object]) -> Callable[[Path], str]:
    """A check: `load` must raise an `IntegrityError` that names the file or its folder."""

    def check(path: Path) -> str:
        try:
            load()
        except IntegrityError as error:
            return "" if path.name in str(error) or path.parent.name in str(error) else f"not named: {error}"
        except PvqaeError as error:
            return f"{type(error).__name__}: {error}"
        return "used"

    return check


def judge(name: str, what: str, begun: float, tried: int, lost: list[str]) -> None:
    record(Figure(f"integrity-{name}", what, tried, tried - len(lost), len(lost), time.monotonic() - begun))
    assert lost == []
    assert tried


@pytest.fixture
def dataset(tmp_path: Path, tiny_mvtec: Path) -> Layout:
    """A workspace with checked rows."""
    layout = Layout(tmp_path / "project", "tiny")
    layout.raw.parent.mkdir(parents=True)
    tiny_mvtec.rename(layout.raw)
    build.build(layout.root, PARAMS)
    one = {"part": {"classes": ["part"]}}
    graph = {"dataset": "tiny", "networks": one, "classes": {"part": {"network": "part", "prior": "part"}}}
    graph["priors"] = {"part": {"classes": ["part"], "allocations": "models/tiny/networks/part"}}
    layout.classes_file.write_text(yaml.safe_dump(graph))
    manifest.write_rows(manifest.read(layout.manifest), classes.read(layout.classes_file, "tiny"), layout)
    return layout


def test_bundles_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    own = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    bundle.export(own, tmp_path / "exported")
    found = [flips(folder, refused(lambda f=folder: bundle.load(f))) for folder in (own, tmp_path / "exported")]
    tried, lost = sum(n for n, _ in found), [item for _, items in found for item in items]
    bundle.load(own)
    judge("bundle", "bit flipped in a bundle or an exported one: not loaded", begun, tried, lost)


def test_an_unlisted_or_irregular_file_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (own / "profile.json").unlink()
    (own / "profile.json").mkdir()
    with pytest.raises(IntegrityError, match=r"profile\.json"):
        bundle.load(own)
    shutil.rmtree(own / "profile.json")
    (own / "config.json").unlink()
    bundle.seal(own)
    with pytest.raises(IntegrityError, match="no config"):
        bundle.load(own)


def test_a_parent_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    begun, kept = time.monotonic(), tmp_path / "kept"
    kept.mkdir()
    table = pd.DataFrame({"sample_id": ["a"], "category": ["part"], "group_id": ["g"], "split": ["train"], "fold": [0]})
    manifest.write_csv(table, kept / "rows.csv")
    shutil.copyfile(tiny_bundle / "weights.safetensors", kept / "fold-0.safetensors")
    files.seal_folder(kept)
    warm.place(tiny_bundle, kept, tmp_path / "parent")
    assert warm.Parent.load(tmp_path / "parent", PARAMS) is not None
    tried, lost = flips(tmp_path / "parent", refused(lambda: warm.Parent.load(tmp_path / "parent", PARAMS)))
    judge("parent", "bit flipped in what a training goes on from: not loaded", begun, tried, lost)


def test_checked_rows_and_the_gate_are_refused(dataset: Layout) -> None:
    begun, space = time.monotonic(), SimpleNamespace(layout=dataset)
    assert len(measure._frozen_rows(space, "part"))  # type: ignore[arg-type]

    def load() -> None:
        manifest.read_rows(dataset, dataset.manifest)
        for part in manifest.PARTS:
            manifest.read_rows(dataset, dataset.class_rows("part", part))
        manifest.read_rows(dataset, dataset.network_rows("part"))
        measure._frozen_rows(space, "part")  # type: ignore[arg-type]

    folder = dataset.data / "rows"
    tried, lost = flips(folder, refused(load))
    more, also = flips_of([dataset.manifest], refused(load))
    listed = manifest.read(dataset.class_rows("part", "gate"))["path"].head(size(4, 40))
    again, too = flips_of([dataset.data / path for path in listed], refused(load))
    judge(
        "gate",
        "bit flipped in checked manifest, rows or gate image: not used",
        begun,
        tried + more + again,
        lost + also + too,
    )


def flips_of(files: list[Path], check: Callable[[Path], str]) -> tuple[int, list[str]]:
    """`flips` of some files, each alone in a folder of the same name."""
    tried, lost = 0, []
    for file in files:
        data, rng = file.read_bytes(), random.Random(f"{SEED}/{file.name}")
        for _ in range(HOW_OFTEN):
            place = rng.randrange(len(data))
            file.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
            tried += 1
            if what := check(file):
                lost.append(f"{file.name}, byte {place}: {what}")
        file.write_bytes(data)
    return tried, lost


def test_images_that_changed_since_the_manifest_are_not_learned_from_nor_judged(dataset: Layout) -> None:
    begun, frame = time.monotonic(), manifest.read(dataset.manifest)
    some = frame[frame["split"].isin(["train", "test"])].groupby("split").head(2)
    network = backbones.make(PARAMS.model).eval()

    def load() -> None:
        list(stage._listed(some, dataset.data))
        prepare(some, dataset.data, PARAMS.image, network, "none")

    load()
    tried, lost = flips_of([dataset.data / path for path in some["path"]], refused(load))
    judge("images", "bit flipped in an image since the manifest: neither trained on nor evaluated", begun, tried, lost)


def small(seed: int) -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimisers: dict[str, torch.optim.Optimizer] = {"optimiser": torch.optim.AdamW(module.parameters())}
    module(torch.ones(4, 3)).square().sum().backward()
    optimisers["optimiser"].step()
    return module, optimisers


def test_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    begun, file = time.monotonic(), tmp_path / "work" / "checkpoint.safetensors"
    run._save_checkpoint(file, *small(0), {"step": 3, "spent": 0.25})
    assert run._restore_checkpoint(file, *small(1)) == {"step": 3, "spent": 0.25}

    def check(_: Path) -> str:
        module, optimisers = small(1)
        before = [x.clone() for x in module.state_dict().values()]
        if run._restore_checkpoint(file, module, optimisers) is not None:
            return "used"
        same = all(torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True))
        return "" if same else "half used"

    tried, lost = flips(tmp_path / "work", check)
    data, rng = file.read_bytes(), random.Random(SEED)
    for place in rng.sample(range(len(data)), min(len(data), size(40, 300))):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        tried, lost = tried + 1, lost + ([f"byte {place}: {what}"] if (what := check(file)) else [])
    judge("checkpoint", "bit flipped in a checkpoint: training begins again", begun, tried, lost)


def test_kept_features_are_computed_again(tmp_path: Path) -> None:
    begun, rng = time.monotonic(), np.random.default_rng(SEED)
    for number in range(2):
        images.write(tmp_path / f"{number}.png", rng.random((64, 64, 3), dtype=np.float32))
    frame = pd.DataFrame({"path": ["0.png", "1.png"]})
    network = backbones.make(PARAMS.model).eval()

    def read() -> list[torch.Tensor]:
        found = prepare(frame, tmp_path, PARAMS.image, network, "variance", store=Store(tmp_path / "kept", 1))
        assert found.features is not None
        return [*found.features.levels, found.features.target, found.cost, found.valid]

    plain = read()

    def check(_: Path) -> str:
        return "" if all(torch.equal(a, b) for a, b in zip(read(), plain, strict=True)) else "another result"

    tried, lost = flips(tmp_path / "kept", check)
    judge("features", "bit flipped in kept features: computed again, same result", begun, tried, lost)


def test_kept_backbone_weights_are_converted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    begun, file = time.monotonic(), efficientnet._cached_weights()
    sha256 = files.digest(file)

    def check(_: Path) -> str:
        return "" if files.digest(efficientnet._cached_weights()) == sha256 else "used"

    tried, lost = flips_of([file, file.with_suffix(".sha256")], check)
    judge("backbone", "bit flipped in the kept backbone: converted again", begun, tried, lost)


def test_finished_weights_that_changed_are_trained_again(dataset: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a fit that was done when its stage was killed."""
    folder, trained = dataset.root / "fit", []

    def train(run: object, examples: object, folder: Path, what: str) -> None:
        trained.append(what)

    monkeypatch.setattr(network.loop, "fit", train)
    plan = network.runtime.plan(PARAMS.compute, 1)

    def fit() -> bytes:
        return network._fit(PARAMS, plan, "full", None, folder, "part", None)  # type: ignore[arg-type]

    assert start(PARAMS, plan, "full").modules is not None
    first = fit()
    assert fit() == first
    assert len(trained) == 1
    file = folder / "weights.safetensors"
    file.write_bytes(first[:-3] + bytes([first[-3] ^ 1]) + first[-2:])
    assert fit() == first
    assert len(trained) == 2


def test_what_is_not_a_number_is_never_a_threshold(tiny_bundle: Path, tmp_path: Path) -> None:
    """Nothing is above NaN: every part would pass as good."""
    for number, value in enumerate(("NaN", "Infinity", "1e999", "1" + "0" * 400, '"1.0"', "null", "[1]")):
        own = Path(shutil.copytree(tiny_bundle, tmp_path / str(number)))
        card = json.loads((own / "calibration.json").read_text()) | {"threshold": "HERE"}
        (own / "calibration.json").write_text(json.dumps(card).replace('"HERE"', value))
        bundle.seal(own)
        for load in (bundle.load, lambda folder: bundle.threshold(bundle.read(folder))):
            with pytest.raises(IntegrityError, match=str(own)):
                load(own)
