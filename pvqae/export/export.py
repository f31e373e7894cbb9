"""The verb `pvqae export BUNDLE OUT`: a detector as ONNX or OpenVINO IR that needs neither torch nor this project.

model.onnx   views of an image → scores and maps: the functions of `scoring`, see `onnx_graph`; or
model.xml    and model.bin: the same graph for OpenVINO
card.json    threshold, preprocessing, what goes in and out, where it comes from, how near it is to the bundle
run.py       reads, resizes, runs and stitches with numpy and the graph's runtime alone (Pillow reads the files)
reading.zip  the modules of this project by which it finds and reads images
SHA256SUMS   of all the others

The folder appears only if `run.py`, in a process that knows nothing else, gives the bundle's scores and maps.
"""

import ast
import json
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pvqae.core import config, files, runtime
from pvqae.core.errors import ConfigError
from pvqae.core.files import whole_folder
from pvqae.core.progress import working
from pvqae.export import parity, quantised
from pvqae.export.onnx_graph import Graph, names
from pvqae.export.parity import Parity
from pvqae.inference import bundle
from pvqae.inference.bundle import Detector

_OPSET = 18
_PACKAGE = "pvqae_reading"  # in reading.zip
_BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "vqgan")
_EXPORTER = ("onnx", "onnxscript")  # packages that write any graph
FORMATS = {"onnx": "onnxruntime", "openvino": "openvino"}  # and the package that runs it
_OUTPUTS = {  # shapes by the letters of `onnx_graph`
    "image_score": "B; fused, compared with the threshold",
    "margin": "B; image_score - threshold, above 0 is a defect",
    "anomaly_map": "B x S x S; of the fusion, blurred, in pixels of the view; means nothing where valid is false",
    "s_prior": "B; in deviations of training normals",
    "s_recon": "B; in deviations of training normals",
    "product": "B; the paper's S_prior x S_recon",
    "s_prior_cells": "B x H x W; of an image of several views, all cells make the image score together (run.py)",
    "s_recon_cells": "B x H x W",
    "product_cells": "B x H x W",
    "valid_cells": "B x H x W booleans; false on padding",
    "levels": "B x h x w; resolution level spent, 0 the coarsest, -1 padding",
    "expected_levels": "B x h x w; the level that normal images spend there",
}


def run(
    folder: Path, out: Path, images: Path | None, tell: Callable[[str], None],
    workspaces: Sequence[Path] = (), registered: Mapping[str, Any] | None = None, form: str = "onnx",
) -> Parity:  # fmt: skip
    """Export with parity checked on the images that `parity.sample` finds."""
    with tempfile.TemporaryDirectory() as scratch:
        found = parity.sample(folder, images, Path(scratch), tell, workspaces)
        return export(folder, out, found, tell, registered, form)


def export(
    folder: Path, out: Path, images: Sequence[Path], tell: Callable[[str], None] = print,
    registered: Mapping[str, Any] | None = None, form: str = "onnx",
) -> Parity:  # fmt: skip
    """Write the folder `out`, whole or not at all; `images` are files that parity is checked on.

    `registered`: the model, version and lineage that the bundle is registered as, for the card; `form`: of `FORMATS`.

    Raises `ConfigError` for what can't be exported, before anything is written, `ParityError` where an image's score or
    map differs by more than `parity.LIMITS` allows.
    """
    _refuse_foreign(out)
    detector = bundle.load(folder)
    _refuse(detector, form)
    with whole_folder(out) as part:
        tell("writing the graph (about half a minute)")
        with working("writing the graph", tell):
            _write_graph(detector, part / "model.onnx")
        if form == "openvino":
            _to_openvino(part)
        card = _card(detector, form) | ({"registered": dict(registered)} if registered else {})
        _write_card(part, card)
        _write_program(part)
        files.seal_folder(part)
        found = parity.check(detector, part, images)
        tell(found.words())
        found.insist()
        _write_card(part, card | {"parity": found.facts()})
        files.seal_folder(part)
    tell(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.1f} MB")
    return found


def _refuse_foreign(out: Path) -> None:
    """Raise `ConfigError` for a folder that is no earlier export: it would be replaced whole."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.exists() and not (out.is_dir() and (not names or names & {"model.onnx", "model.xml"})):
        raise ConfigError(f"{out}: neither a new folder nor an earlier export; name another")


def _refuse(detector: Detector, form: str) -> None:
    if form not in FORMATS:
        raise ConfigError(f"export: expected a format of {', '.join(FORMATS)}, found {form}")
    if missing := [name for name in (*_EXPORTER, FORMATS[form]) if find_spec(name) is None]:
        raise ConfigError(f"export: the packages {', '.join(missing)} are missing; install pvqae[export]")
    backbone = detector.config["model"]["backbone"]
    if backbone not in _BACKBONES and ":" not in backbone:
        raise ConfigError(
            f"model.backbone: export knows {', '.join(_BACKBONES)}, timm:, hf:, found {backbone}; use the bundle, or "
            "add the backbone to pvqae.export.export._BACKBONES and check the parity report"
        )


def _write_graph(detector: Detector, path: Path) -> None:
    """Write ONNX of opset `_OPSET` with a dynamic batch; inputs pixels (B x 3 x S x S) and valid (B x S x S)."""
    graph = Graph(detector.scorer, config.Model(**detector.config["model"]), detector.threshold)
    side, batch = detector.scorer.image.size, torch.export.Dim("batch", min=1)
    example = torch.rand(2, 3, side, side), torch.ones(2, side, side, dtype=torch.bool)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator that ONNX lacks
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                opset_version=_OPSET,
                input_names=["pixels", "valid"],
                output_names=list(names(detector.scorer)),
                dynamic_shapes=({0: batch}, {0: batch}),
                verbose=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert program is not None  # it raises where it fails
    program.save(str(path))
    quantised.round_convolutions(path, detector.scorer.networks.backbone)


def _to_openvino(folder: Path) -> None:
    """Write model.xml and model.bin in place of model.onnx; weights stay float32."""
    library, source = runtime.openvino(), folder / "model.onnx"
    model = library.Core().read_model(source)
    library.save_model(model, folder / "model.xml", compress_to_fp16=False)
    source.unlink()


def _write_card(folder: Path, card: Mapping[str, Any]) -> None:
    (folder / "card.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", "utf-8")


def _write_program(folder: Path) -> None:
    """Write run.py, and into reading.zip all of this project that it imports, as a package of another name.

    Even where pvqae is installed, an export then reads images as it did when it was checked. The same code gives the
    same bytes.
    """
    own = Path(__file__).parents[1]
    program = own / "export" / "run_exported.py"
    (folder / "run.py").write_text(_renamed(program), "utf-8")
    with zipfile.ZipFile(folder / "reading.zip", "w") as packed:
        for file in _imported(own, program):
            for package in reversed(file.relative_to(own).parents):
                name = f"{_PACKAGE}/{package / '__init__.py'}"
                if name not in packed.namelist():
                    packed.writestr(zipfile.ZipInfo(name), "")
            packed.writestr(zipfile.ZipInfo(f"{_PACKAGE}/{file.relative_to(own).as_posix()}"), _renamed(file))


def _renamed(file: Path) -> str:
    return re.sub(r"^(\s*from) pvqae\b", rf"\1 {_PACKAGE}", file.read_text("utf-8"), flags=re.MULTILINE)


def _imported(own: Path, program: Path) -> list[Path]:
    """Return the modules of the package at `own` that `program` imports, and those that they import."""
    found: list[Path] = []
    left = [program]
    while left:
        for node in ast.parse(left.pop().read_text("utf-8")).body:
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != own.name:
                continue
            place = own.joinpath(*(node.module or "").split(".")[1:])
            names = [place / f"{name.name}.py" for name in node.names] if place.is_dir() else [place.with_suffix(".py")]
            new = [file for file in names if file not in found]
            found, left = found + new, left + new
    return sorted(found)


def _card(detector: Detector, form: str) -> dict[str, Any]:
    """Return what someone needs who has only this folder; the same for the same bundle and packages."""
    scorer, facts = detector.scorer, detector.config
    scales = {name: [scale.mean, scale.deviation] for name, scale in scorer.scales.items()}
    return {
        "format": form,
        "precision": config.Model(**facts["model"]).precision,
        **{key: facts[key] for key in ("dataset", "category")},
        **{key: detector.card[key] for key in ("threshold", "map_threshold", "map_scale")},
        **{key: detector.card[key] for key in ("no_promise",) if key in detector.card},
        "pixel_threshold": detector.pixel_threshold,
        "smallest_defect": detector.card.get("smallest_defect"),
        "preprocessing": {
            **scorer.image.model_dump(mode="json"),
            "colour": "RGB, grey repeated, alpha on white",
            "range": "float32 in [0, 1]; the graph normalises",
            "resize": "antialiased bilinear (run.py)",
            "padding": "repeats the border; valid is false there",
        },
        "image_score": {"fusion": scorer.score.fusion, "top": scorer.score.top, "scales": scales},
        "inputs": {"pixels": "B x 3 x S x S float32, B any, S size", "valid": "B x S x S booleans, false on padding"},
        "outputs": {name: _OUTPUTS[name] for name in names(scorer)},
        "bundle_sha256": detector.sha256,
        "opset": _OPSET,
        "versions": {name: version(name) for name in ("pvqae", "torch", *_EXPORTER, FORMATS[form], "numpy")},
    }
