"""Find modules where 0.1 had them, so that scripts of 0.1 keep working until 0.4.

`pvqae.errors` stays: models that 0.1 has registered carry code that imports it.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    **{f"pvqae.{name}": f"pvqae.core.{name}" for name in ("config", "errors", "files", "layout", "runtime", "seeding")},
    **{f"pvqae.datasets.{name}": f"pvqae.samples.{name}" for name in ("classes", "geometry", "images", "manifest")},
    "pvqae.inference.memory": "pvqae.inference.measures",
    "pvqae.inference.readout": "pvqae.inference.scoring",
    "pvqae.model.codebook": "pvqae.model.autoencoder",
    **{f"pvqae.training.{name}": f"pvqae.features.{name}" for name in ("examples", "features", "richness")},
    "pvqae.evaluation.batch": "pvqae.serving.batch",
    "pvqae.evaluation.report": "pvqae.report.report",
    "pvqae.inference.calibrate": "pvqae.calibration.calibrate",
    "pvqae.inference.export": "pvqae.export.export",
    **{f"flows.{name}": f"flows.core.{name}" for name in ("classes", "lineage")},
    "flows.locks": "flows.core.shared_files",
    **{f"flows.{name}": f"flows.versions.{name}" for name in ("promotions", "registration", "verify")},
    "flows.parents": "flows.versions.warm_start",
    "flows.arrivals": "flows.retrain.arrivals",
    "flows.arrivals_index": "flows.retrain.index",
    "flows.arrivals_ledger": "flows.retrain.ledger",
    "flows.arrivals_places": "flows.retrain.ledger",
    "flows.promote": "flows.gate.promote",
    "flows.score": "flows.serving.score",
}


class _Finder(MetaPathFinder, Loader):
    """Finder of the module at its new place by the old name, with a `DeprecationWarning`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is {new} now; the old name goes in 0.4", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old name's there


def register() -> None:
    """Ask for moved modules last, once per process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
