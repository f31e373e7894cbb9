"""What must hold in a project whatever was killed in it: each function returns what is broken, in words."""

import csv
import json
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

import mlflow

from flows.adapters.registry import Mlflow
from flows.adapters.tracking import Promotion
from flows.retrain.ledger import IntakePaths, Ledger
from flows.versions import version_bundles
from pvqae.core.errors import PvqaeError
from pvqae.core.files import digest
from pvqae.core.layout import ARRIVED
from pvqae.inference import bundle as bundles
from tests.chaos.projects import CATEGORY, DATASET, MODEL, Project

ALIASES = ("champion", "challenger")


def registry(project: Project) -> Mlflow:
    return Mlflow(f"sqlite:///{project.database}")


def versions(project: Project) -> dict[str, dict[str, str]]:
    """Tags of each version."""
    client = mlflow.MlflowClient(f"sqlite:///{project.database}")
    return {str(found.version): dict(found.tags) for found in client.search_model_versions(f"name = '{MODEL}'")}


def champion(project: Project) -> str:
    return registry(project).alias(MODEL, "champion") or ""


def log(project: Project) -> tuple[Promotion, ...]:
    return registry(project).promotions(MODEL)


def at_once(project: Project) -> list[str]:
    """What must hold right after a death, before anything is run again."""
    return [*_database(project), *of_log(project, settled=False), *_lines(project)]


def after_rerun(project: Project) -> list[str]:
    """What must hold once the command was run again to its end."""
    found = [*_database(project), *of_log(project, settled=True), *_lines(project), *_one_each(project)]
    return [*found, *_bundles(project), *_leftovers(project), *_samples(project)]


def _database(project: Project) -> list[str]:
    # Not read-only: the first reader after a death rolls back what was half written.
    with sqlite3.connect(f"file:{project.database}?mode=rw", uri=True) as base:
        said = base.execute("pragma quick_check").fetchone()[0]
    base.close()
    return [] if said == "ok" else [f"the tracking database is damaged: {said}"]


def of_log(project: Project, settled: bool) -> list[str]:
    """The log is whole, in order, without a gap, and the aliases are where it says; a death may leave one move open."""
    entries, found = log(project), []
    known = versions(project)
    for alias in ALIASES:
        own = [entry for entry in entries if entry.alias == alias]
        places = ["none", *(entry.to_version for entry in own)]
        if [entry.from_version for entry in own] != places[:-1]:
            found.append(f"the log of {alias} has a gap: {places}")
        present = registry(project).alias(MODEL, alias) or "none"
        if present not in (places[-1:] if settled else places[-2:]):
            found.append(f"{alias} is {present}, the log says {places[-1]}")
    if any(entry.to_version not in known for entry in entries):
        found.append("the log names a version that is not there")
    if [entry.when for entry in entries] != sorted(entry.when for entry in entries):
        found.append("the log is out of order")
    return found


def _one_each(project: Project) -> list[str]:
    """One version per bundle and manifest, each with an entry in the log."""
    known = versions(project)
    pairs = Counter((tags["bundle_sha256"], tags["manifest_sha256"]) for tags in known.values())
    found = [f"{n} versions of the bundle {pair[0][:12]}" for pair, n in pairs.items() if n > 1]
    named = Counter(entry.to_version for entry in log(project) if entry.kind in ("initial", "challenger"))
    return found + [f"version {version} was named {named[version]} times" for version in known if named[version] != 1]


CHECKED: set[str] = set()  # bundles of versions that were read whole before: nothing writes there again


def _bundles(project: Project) -> list[str]:
    found = []
    for version, tags in versions(project).items():
        if tags["mlflow_run"] not in CHECKED:
            with tempfile.TemporaryDirectory() as place:
                try:
                    version_bundles.fetch(registry(project), MODEL, version, Path(place) / "bundle")
                    CHECKED.add(tags["mlflow_run"])
                except PvqaeError as error:
                    found.append(f"version {version}: {error}")
    for folder in [project.space / "models" / DATASET / CATEGORY / "bundle", *project.root.glob(".pvqae/bundles/*")]:
        try:
            bundles.verify(folder)
        except PvqaeError as error:
            found.append(f"{folder}: {error}")
    return found


def _leftovers(project: Project) -> list[str]:
    """Half files and folders that the run to the end did not clean up."""
    found = [path for path in project.root.rglob("*.part") if "mlflow" not in path.parts]
    return [f"half a file: {path.relative_to(project.root)}" for path in found]


def _lines(project: Project) -> list[str]:
    """Results of scoring are whole, and each image has one row."""
    found = []
    for file in project.root.glob("scores/*/scores.jsonl"):
        try:
            paths = Counter(json.loads(line)["path"] for line in file.read_text("utf-8").splitlines())
        except ValueError:
            found.append(f"{file}: half a line")
            continue
        found += [f"{file}: {n} rows of {path}" for path, n in paths.items() if n > 1]
    return found


def _samples(project: Project) -> list[str]:
    """Each object of the landing folder has one decision; what was accepted is in the dataset and manifest once."""
    objects = {path.relative_to(project.root / "landing").as_posix() for path in project.shore.glob("*")}
    entries = Ledger(IntakePaths(project.root, DATASET).ledger).entries()
    keys = Counter(entry.key for entry in entries)
    found = [f"{key}: {keys[key]} decisions" for key in objects | set(keys) if keys[key] != 1]
    for entry in entries:
        wanted = "quarantined" if "-cut" in entry.key else "duplicate" if "-again" in entry.key else "versioned"
        if entry.state != wanted:
            found.append(f"{entry.key}: expected {wanted}, found {entry.state}: {entry.reason}")
    return found + _dataset(project, {entry.sha256: entry.part for entry in entries if entry.state == "versioned"})


def _dataset(project: Project, accepted: dict[str, str]) -> list[str]:
    """`accepted`: sha256 → good or gate."""
    below = project.root / "data" / "raw" / DATASET / ARRIVED
    there = Counter(digest(path) for path in below.rglob("*.png"))
    found = [f"{sha[:12]}: {there[sha]} files in the dataset" for sha in set(there) | set(accepted) if there[sha] != 1]
    manifest = (project.space / "data" / "manifest.csv").read_text("utf-8").splitlines()
    rows = [row for row in csv.DictReader(manifest) if f"/{ARRIVED}/" in row["path"]]
    gates = Counter((row["sha256"], row["split"] == "gate") for row in rows)
    wanted = Counter((sha, part == "gate") for sha, part in accepted.items())
    return found + (
        [f"the manifest differs from the ledger: {gates - wanted}, {wanted - gates}"] if gates != wanted else []
    )
