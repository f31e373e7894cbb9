"""Rebuild a registered version from its lineage alone, in a clean clone, and compare."""

import shlex
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich import box
from rich.table import Table

from flows.adapters import dvc_files, git
from flows.adapters.tracking import Registry
from flows.adapters.versioning import Dvc
from flows.core import environment, lineage
from flows.core.processes import Supervisor
from flows.versions import migration, notes, version_bundles, warm_start
from pvqae.core import config
from pvqae.core.config import Gate
from pvqae.core.errors import PvqaeError
from pvqae.core.files import SUMS, digest, write_text
from pvqae.core.layout import Layout
from pvqae.evaluation.metrics import image_auroc
from pvqae.samples import manifest


@dataclass(frozen=True)
class _Row:
    """One comparison; `same` None where a difference does not count."""

    what: str
    recorded: str
    rebuilt: str
    same: bool | None


@dataclass(frozen=True)
class Verification:
    """`reproduced`: the same bundle, byte for byte. `accepted`: that, or scores within the tolerance."""

    name: str
    version: str
    rows: tuple[_Row, ...]
    reproduced: bool
    accepted: bool
    tolerance: str

    def table(self) -> Table:
        """Return the comparisons in 80 columns: hashes are cut to 12 digits."""
        shown = Table("what", "registered", "rebuilt", "same", box=box.SIMPLE_HEAD, show_edge=False)
        words = {True: "yes", False: "NO", None: "differs, ignored"}
        for row in self.rows:
            shown.add_row(row.what, row.recorded[:12], row.rebuilt[:12], words[row.same])
        return shown

    def sentence(self) -> str:
        """Return the outcome in a sentence."""
        what = f"{self.name} version {self.version}"
        if self.reproduced:
            return f"{what}: reproduced, the rebuilt bundle has the registered hash"
        verdict = "within" if self.accepted else "NOT within"
        return f"{what}: rebuilt with another hash, {verdict} the tolerance ({self.tolerance})"


def run(root: Path, name: str, version: str, say: Callable[[str], None] = lambda line: None) -> Verification:
    """Rebuild version `version` of model `name` and compare it with what is registered.

    Code: a clone at its git_sha. Params, classes and data versions: the commit data_sha of `pvqae/data`. Images: from
    DVC's cache or remote. Every stage runs, none is taken from DVC's run cache. Raises `PvqaeError`.
    """
    from flows.adapters.registry import open_registry

    root = root.resolve()
    params = config.load(root / "params.yaml")
    registry, _ = open_registry(root, params.flow.tracking_uri)
    tags = registry.version_tags(name, version)
    if lacking := lineage.Lineage.missing(tags):
        raise PvqaeError(f"{name} version {version}: its lineage lacks {', '.join(lacking)}; it can't be rebuilt")
    with tempfile.TemporaryDirectory(prefix="pvqae-verify-") as place, Supervisor() as supervisor:
        original = version_bundles.fetch(registry, name, version, Path(place) / "registered")
        clone = Path(place) / "clone"
        dataset = _clone(root, clone, name, tags, registry.owners(name).get(name))
        _own_command(clone)
        dvc = Dvc(clone, supervisor)
        _bring_data(dvc, clone, dataset)
        known = yaml.safe_load((clone / "data" / "classes.yaml").read_text("utf-8"))
        names = notes.names_of(registry, name, name.removeprefix(lineage.model_name(dataset, "")))
        category = next((one for one in names if one in known["classes"]), names[0])
        warm_start.restore(registry, dataset, name, version, clone, known["classes"][category]["network"])
        recorded = clone / "dvc.lock"
        outputs = _outputs(recorded)
        recorded.unlink()  # with it DVC would take results instead of making them
        dvc.rebuild(f"calibrate@{category}", say)
        return _compare(registry, name, version, clone, dataset, category, original, outputs, params.gate)


def _clone(root: Path, clone: Path, name: str, tags: Mapping[str, str], owner: lineage.Owner | None = None) -> str:
    """Make a clone at the version's code with its params, classes, data versions and dvc.lock; return the dataset."""
    for key in ("git_sha", "data_sha"):
        git.needed(root, tags[key], f"{key} of {name}")
    git.check_out(root, clone, tags["git_sha"])
    listed = git.files_of(root, tags["data_sha"])
    datasets = sorted({path.split("/")[0] for path in listed}, key=len, reverse=True)
    possible = [owner.dataset] if owner else [known for known in datasets if name.startswith(f"pvqae-{known}-")]
    dataset = next((known for known in possible if known in datasets), "")
    if not dataset:
        raise PvqaeError(f"{name}: the commit data_sha {tags['data_sha']} has no dataset of it, only {datasets}")
    for path in (path for path in listed if path.startswith(f"{dataset}/")):
        write_text(clone / path.removeprefix(f"{dataset}/"), git.git(root, "show", f"{tags['data_sha']}:{path}") + "\n")
    dvc_files.share(root, clone)
    return dataset


def _own_command(clone: Path) -> None:
    """Write the `pvqae` that the clone's code was installed as: the module behind it had other names before."""
    scripts = tomllib.loads((clone / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module, _, function = scripts["pvqae"].partition(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    command = clone / environment.COMMANDS / "pvqae"
    write_text(command, f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    command.chmod(0o755)


def _bring_data(dvc: Dvc, clone: Path, dataset: str) -> None:
    """Bring the raw images from the shared cache or the remote; a dataset that a stage makes has no .dvc file."""
    if (clone / "data" / "raw" / f"{dataset}.dvc").exists():
        dvc.pull(dataset)


def _outputs(lock: Path) -> dict[str, str]:
    """Return DVC's hash of every output that a dvc.lock records."""
    stages = (yaml.safe_load(lock.read_text("utf-8")) or {}).get("stages", {})
    return {out["path"]: str(out["md5"]) for stage in stages.values() for out in stage.get("outs", [])}


def _compare(
    registry: Registry,
    name: str,
    version: str,
    clone: Path,
    dataset: str,
    category: str,
    original: Path,
    outputs: Mapping[str, str],
    limits: Gate,
) -> Verification:
    """Compare hashes first, scores only if the bundle is another one."""
    tags, layout = registry.version_tags(name, version), Layout(clone, dataset)
    bundle, made = layout.bundle(category), _outputs(clone / "dvc.lock")
    here = environment.fingerprint()
    rows = [
        _Row("environment", tags["environment"], here, None if tags["environment"] != here else True),
        *(_row(path, outputs[path], made[path], counts=False) for path in sorted(made) if path in outputs),
        _row("manifest", tags["manifest_sha256"], digest(layout.manifest)),
        _row("bundle", tags.get(migration.ORIGINAL, tags["bundle_sha256"]), digest(bundle / SUMS)),
    ]
    same = all(row.same is not False for row in rows)
    tolerance = f"mean score difference {limits.verify_score:g} deviations, image AUROC {limits.verify_auroc:g}"
    if not same:
        rows += _score_rows(original, bundle, layout, category, limits)
    close = [row.same for row in rows if row.what in ("mean score difference", "image AUROC")]
    return Verification(name, version, tuple(rows), same, same or (bool(close) and all(close)), tolerance)


def _row(what: str, recorded: str, rebuilt: str, counts: bool = True) -> _Row:
    """Compare two hashes. Timings differ by their nature, so those of stages do not count; the bundle's does."""
    same = recorded == rebuilt
    return _Row(what, recorded, rebuilt, same if counts or same else None)


def _score_rows(original: Path, rebuilt: Path, layout: Layout, category: str, limits: Gate) -> list[_Row]:
    """Score the rebuilt test and gate images with both bundles, through the one scoring path."""
    from pvqae.inference import bundle

    table = [row for part in ("test", "gate") for row in _records(layout.class_rows(category, part))]
    pairs = [(row["sample_id"], row["path"]) for row in table]
    defect = np.array([row["label"] == "defect" for row in table])
    if defect.all():
        raise PvqaeError(f"{category}: test and gate have no normal images to compare scores on")
    first, second = (
        np.array([scored.image_score for scored in bundle.load(folder).score_many(pairs, layout.data)])
        for folder in (original, rebuilt)
    )
    spread = float(first[~defect].std()) or 1.0
    away = float(np.abs(first - second).mean()) / spread
    before, after = image_auroc(defect, first), image_auroc(defect, second)
    found = [_Row("mean score difference", "0", f"{away:.4g}", away <= limits.verify_score)]
    if before is not None and after is not None:
        near = abs(after - before) <= limits.verify_auroc
        found.append(_Row("image AUROC", f"{before:.4f}", f"{after:.4f}", near))
    return found


def _records(file: Path) -> list[dict[Any, Any]]:
    return manifest.read(file).to_dict("records")
