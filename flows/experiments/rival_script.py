"""Fit and score with another library, in that library's own environment: `python rival_script.py FOLDER`.

`bench accuracy` writes FOLDER: job.json, and train.raw and test.raw, n x 3 x S x S pixels in [0, 1] of single
precision. This writes scores.raw (n), maps.raw (n x S x S) and facts.json, last. Nothing of this project is imported.
Every library keeps its defaults but for the network: its layers 1 to 4 are blocks 2, 4, 10 and 15 of our frozen
EfficientNet-Lite0.
"""

import json
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_NETWORK = "tf_efficientnet_lite0"
_LAYERS = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")  # timm's stages that end strides 4, 8, 16 and 32
_CHANNELS = (24, 40, 112, 320)
_KEPT: list[Any] = []  # operators are declared for as long as what declared them lives
_BATCH = 32  # images at once while fitting, as both libraries have it
_Predict = Callable[[Tensor], tuple[Tensor, Tensor]]  # 1 x 3 x S x S → 1 score, 1 x S x S map
_Fit = Callable[["_Images"], _Predict]
_Method = tuple[nn.Module, nn.Module, _Fit]  # all that is kept, the frozen network in it, how it is fitted


class _Images:
    """Images of a file, a batch at a time, as the network reads them: the file never is in memory as a whole."""

    def __init__(self, file: Path, side: int, batch: int):
        self._file, self._side, self._batch = file, side, batch
        self.count = file.stat().st_size // (12 * side**2)

    def __len__(self) -> int:
        return -(-self.count // self._batch)

    def __iter__(self) -> Iterator[Tensor]:
        with self._file.open("rb") as stream:
            for _ in range(len(self)):
                flat = np.fromfile(stream, np.float32, self._batch * 3 * self._side**2)
                pixels = torch.from_numpy(flat).view(-1, 3, self._side, self._side)
                # timm's own configuration has mean and spread 0.5, which is slightly off for these weights.
                yield (pixels * 255 - 127) / 128


def use_torchvision() -> None:
    """Import torchvision; beside a CPU build of torch two operators that no rival calls have to be declared first."""
    try:
        import_module("torchvision")
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    declare: Any = torch.library.Library
    _KEPT.append(library := declare("torchvision", "DEF"))
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_module("torchvision")


def load_weights(network: nn.Module, checkpoint: str) -> None:
    """Give timm's network the packaged weights: both list the same tensors in the same order under other names."""
    given = {name: torch.from_numpy(values) for name, values in np.load(checkpoint, allow_pickle=False).items()}
    own = network.state_dict()
    pairs = list(zip(own.items(), given.items(), strict=False))
    for (name, mine), (other, theirs) in pairs:
        if mine.shape != theirs.shape:
            raise ValueError(
                f"{checkpoint}: expected {tuple(mine.shape)} for {name}, found {other} {tuple(theirs.shape)}"
            )
    network.load_state_dict({name: theirs for (name, _), (_, theirs) in pairs})


def _anomalib(module: str, name: str, checkpoint: str, layers: slice, **options: Any) -> Any:
    use_torchvision()
    made = getattr(import_module(f"anomalib.models.image.{module}.torch_model"), name)(
        backbone=_NETWORK, layers=list(_LAYERS[layers]), pre_trained=False, **options
    )
    load_weights(made.feature_extractor.feature_extractor, checkpoint)
    return made.train()


def _anomalib_predict(model: nn.Module) -> _Predict:
    model.eval()

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        found = model(x)
        return found.pred_score, found.anomaly_map

    return predict


def _anomalib_patchcore(job: dict[str, Any]) -> _Method:
    model = _anomalib("patchcore", "PatchcoreModel", job["weights"], slice(1, 3))

    def fit(train: _Images) -> _Predict:
        for batch in train:
            model(batch)
        model.subsample_embedding(job["share"])
        return _anomalib_predict(model)

    return model, model.feature_extractor, fit


def _anomalib_mh_patchcore(job: dict[str, Any]) -> _Method:
    model = _anomalib("mh_patchcore", "MHPatchcoreModel", job["weights"], slice(1, 3))

    def fit(train: _Images) -> _Predict:
        before = (nn.Identity(), model.pca, nn.Sequential(model.pca, model.covariance))
        for part, prepare in zip((model.pca, model.covariance, model.memory_bank), before, strict=True):
            for batch in train:
                part.update(prepare(model(batch)))
            part.finalize()
        return _anomalib_predict(model)

    return model, model.feature_extractor, fit


def _anomalib_padim(job: dict[str, Any]) -> _Method:
    model = _anomalib("padim", "PadimModel", job["weights"], slice(0, 3), n_features=100)

    def fit(train: _Images) -> _Predict:
        for batch in train:
            model(batch)
        model.fit()
        return _anomalib_predict(model)

    return model, model.feature_extractor, fit


class _AsResnet(nn.Module):
    """The network under the names that AnomaVision calls a ResNet's parts by."""

    def __init__(self, network: Any):
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = network.conv_stem, network.bn1, nn.Identity(), nn.Identity()
        blocks = network.blocks
        self.layer1, self.layer2, self.layer3, self.layer4 = blocks[:2], blocks[2], blocks[3:5], blocks[5:]


def anomavision(module: str, name: str, checkpoint: str) -> Any:
    """Return a detector of AnomaVision that has our network for its ResNet."""
    use_torchvision()
    network = import_module("timm").create_model(_NETWORK, pretrained=False)
    load_weights(network, checkpoint)
    extraction = import_module("anomavision.algorithm.common.feature_extraction")
    extraction.BACKBONES["resnet18"] = (lambda **_: _AsResnet(network), None)
    algorithm = import_module(f"anomavision.algorithm.{module}.{module}")
    if hasattr(algorithm, "BACKBONE_FEATURE_SIZES"):
        algorithm.BACKBONE_FEATURE_SIZES["resnet18"] = OrderedDict((i, [c]) for i, c in enumerate(_CHANNELS))
    return getattr(algorithm, name)(backbone="resnet18")


def _anomavision(module: str, name: str) -> Callable[[dict[str, Any]], _Method]:
    def make(job: dict[str, Any]) -> _Method:
        model = anomavision(module, name, job["weights"])
        blur = import_module("anomavision.utils").adaptive_gaussian_blur

        def predict(x: Tensor) -> tuple[Tensor, Tensor]:
            scores, maps = model.predict(x)
            return scores, blur(maps, kernel_size=33, sigma=4)  # as its own evaluation does

        def fit(train: _Images) -> _Predict:
            model.fit(train)
            return predict

        return model, model.embeddings_extractor, fit

    return make


_METHODS: dict[str, Callable[[dict[str, Any]], _Method]] = {
    "anomalib_patchcore": _anomalib_patchcore,
    "anomalib_mh_patchcore": _anomalib_mh_patchcore,
    "anomalib_padim": _anomalib_padim,
    "anomavision_patchcore": _anomavision("patchcore", "PatchCore"),
    "anomavision_padim": _anomavision("padim", "Padim"),
}


def _size(module: nn.Module) -> int:
    """Count the bytes of all tensors of a module, those of plain attributes included, each once."""
    found: dict[int, int] = {}
    for part in module.modules():
        for x in [*part.parameters(recurse=False), *part.buffers(recurse=False), *vars(part).values()]:
            if isinstance(x, Tensor):
                found[x.data_ptr()] = x.numel() * x.element_size()
    return sum(found.values())


def peak_megabytes() -> float:
    """Return the most memory that this program had; getrusage would count the process that started it, too."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _run(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text("utf-8"))
    torch.set_num_threads(1)
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])  # anomalib's coreset draws from scikit-learn's, which is numpy's
    train, test = (_Images(folder / f"{part}.raw", job["side"], n) for part, n in (("train", _BATCH), ("test", 1)))
    scores, times = [], []
    with torch.no_grad(), (folder / "maps.raw").open("wb") as maps:
        model, network, fit = _METHODS[job["fit"]](job)  # imports, which are nobody's own time
        begun = time.process_time()
        predict = fit(train)
        fitted = time.process_time() - begun
        predict(next(iter(test)))  # the first call prepares what the others find
        for x in test:
            begun = time.process_time()
            score, anomaly_map = predict(x)
            times.append((time.process_time() - begun) * 1000)
            scores.append(float(score))
            np.asarray(anomaly_map, dtype=np.float32).tofile(maps)
    np.array(scores).tofile(folder / "scores.raw")
    facts = {
        "fit_seconds": round(fitted, 2),
        "milliseconds": times,
        "megabytes": (_size(model) - _size(network)) / 1e6,
        "peak_megabytes": peak_megabytes(),
        "versions": {name: metadata.version(name) for name in (job["package"], "torch", "timm")},
    }
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
