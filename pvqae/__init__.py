"""PVQAE: unsupervised visual defect detection with patch-aware vector quantisation (arXiv 2501.09187).

The names of `__all__` are the public interface; everything else is private by convention. Each is imported when it is
first used, so that `import pvqae` loads no torch.

    detector = pvqae.fit("photos/good")  # or pvqae.load("bundle")
    found = detector.score("part.png")
    print(found.decision, found.score, found.threshold, found.map.shape, found.regions)
    detector.save("bundle")
"""

import importlib
from typing import TYPE_CHECKING

from pvqae import moved

if TYPE_CHECKING:
    from pvqae.api import Detector, Verdict, fit, load
    from pvqae.calibration.calibrate import calibrate
    from pvqae.core.config import Params
    from pvqae.core.config import load as load_params
    from pvqae.core.config import parse as parse_params
    from pvqae.core.errors import (
        CalibrationError,
        ConfigError,
        DataError,
        FormatError,
        IntegrityError,
        ParityError,
        PvqaeError,
        ValidationFailed,
    )
    from pvqae.core.layout import Layout
    from pvqae.datasets.build import build as build_manifest
    from pvqae.datasets.validation import check as check_manifest
    from pvqae.evaluation.stage import run as evaluate
    from pvqae.export.export import export as export_onnx
    from pvqae.inference.bundle import export as export_bundle
    from pvqae.inference.bundle import verify as verify_bundle
    from pvqae.inference.scoring import Scored
    from pvqae.prior.learn import train as train_prior
    from pvqae.report.report import report as merge_reports
    from pvqae.samples.images import read as read_image
    from pvqae.serving.batch import run as score_folder
    from pvqae.serving.batch_source import Files
    from pvqae.training.network import train as train_network

__version__ = "0.3.0"
__all__ = [
    "CalibrationError",
    "ConfigError",
    "DataError",
    "Detector",
    "Files",
    "FormatError",
    "IntegrityError",
    "Layout",
    "Params",
    "ParityError",
    "PvqaeError",
    "Scored",
    "ValidationFailed",
    "Verdict",
    "build_manifest",
    "calibrate",
    "check_manifest",
    "evaluate",
    "export_bundle",
    "export_onnx",
    "fit",
    "load",
    "load_params",
    "merge_reports",
    "parse_params",
    "read_image",
    "score_folder",
    "train_network",
    "train_prior",
    "verify_bundle",
]
_PUBLIC = {  # name → where it is
    "CalibrationError": "core.errors.CalibrationError",
    "ConfigError": "core.errors.ConfigError",
    "DataError": "core.errors.DataError",
    "Detector": "api.Detector",
    "Files": "serving.batch_source.Files",
    "FormatError": "core.errors.FormatError",
    "IntegrityError": "core.errors.IntegrityError",
    "Layout": "core.layout.Layout",
    "Params": "core.config.Params",
    "ParityError": "core.errors.ParityError",
    "PvqaeError": "core.errors.PvqaeError",
    "Scored": "inference.scoring.Scored",
    "ValidationFailed": "core.errors.ValidationFailed",
    "Verdict": "api.Verdict",
    "build_manifest": "datasets.build.build",
    "calibrate": "calibration.calibrate.calibrate",
    "check_manifest": "datasets.validation.check",
    "evaluate": "evaluation.stage.run",
    "export_bundle": "inference.bundle.export",
    "export_onnx": "export.export.export",
    "fit": "api.fit",
    "load": "api.load",
    "load_params": "core.config.load",
    "merge_reports": "report.report.report",
    "parse_params": "core.config.parse",
    "read_image": "samples.images.read",
    "score_folder": "serving.batch.run",
    "train_network": "training.network.train",
    "train_prior": "prior.learn.train",
    "verify_bundle": "inference.bundle.verify",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pvqae' has no attribute {name!r}")
    module, _, own = _PUBLIC[name].rpartition(".")
    return getattr(importlib.import_module(f"pvqae.{module}"), own)


moved.register()
