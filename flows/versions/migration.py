"""Versions whose bundles are of an older format, written again in today's: the same scores, the alias goes along.

A later release may read fewer formats. The new version keeps run and lineage of the old one, which stays; the log
says `migration`, and a rollback goes past it to the champion before.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flows.adapters.tracking import Registry
from flows.core import lineage, shared_files
from flows.versions import card, promotions, version_bundles
from flows.versions.card import ModelCard
from flows.versions.policy import PARITY_TOLERANCE
from flows.versions.registration import read_json
from pvqae.core.errors import IntegrityError, PvqaeError

if TYPE_CHECKING:
    from pvqae.core.files import Sealed

_SIZES = ((96, 120), (64, 64), (150, 90))  # of the generated pictures that both bundles score
ORIGINAL = "migrated_bundle_sha256"  # tag of a migrated version: the bundle that was trained


@dataclass(frozen=True)
class Migration:
    """What became of a version that has an alias; `to` "" where it stays, `failed` where it had to."""

    model: str
    alias: str
    version: str
    to: str
    text: str
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.model}@{self.alias} version {self.version}: {self.text}"


def run(
    registry: Registry, root: Path, names: tuple[str, ...] = (), dry_run: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Migration]:  # fmt: skip
    """Migrate every champion and challenger, or those of the models `names`, telling each result at once.

    With `dry_run` only look. Raises `PromotionError` for a name that is not registered.
    """
    found = []
    for name in names or tuple(registry.owners(lineage.OURS)):
        owner = promotions.owner_of(registry, name)
        with shared_files.held(promotions.lock_file(root, owner.dataset)):
            promotions.complete(registry, name)
        for alias, version in _held(registry, name):
            found.append(_migrated(registry, root, owner, name, alias, version, dry_run))
            say(str(found[-1]))
    return found


def _held(registry: Registry, name: str) -> Iterator[tuple[str, str]]:
    """Yield each alias of a model with its version; not what was taken back, which nobody will use."""
    taken_back = {entry.from_version for entry in registry.promotions(name) if entry.kind == "rollback"}
    known: set[str] = set()
    for alias in promotions.ALIASES:
        version = promotions.champion(registry, name) if alias == "champion" else promotions.held(registry, name, alias)
        if version and version not in taken_back | known:
            known.add(version)
            yield alias, version


def _migrated(
    registry: Registry, root: Path, owner: lineage.Owner, name: str, alias: str, version: str, dry_run: bool
) -> Migration:
    from pvqae.inference import bundle as bundles
    from pvqae.inference import formats

    def stays(text: str, failed: bool = False) -> Migration:
        return Migration(name, alias, version, "", text, failed)

    with tempfile.TemporaryDirectory() as place:
        try:
            old = bundles.read(version_bundles.fetch(registry, name, version, Path(place) / "old"))
            before = old.json(formats.CONFIG, bundles.REPAIR).get("format")
            if before == formats.CURRENT:
                version_bundles.check_loads(old.folder)
                return stays(f"format {before}, nothing to do")
            out = Path(place) / "bundle"
            formats.convert(old, out, bundles.REPAIR)
            difference = _difference(old, bundles.read(out))
        except PvqaeError as error:
            return stays(f"can't be migrated: {error}", failed=True)
        what = f"format {before} to {formats.CURRENT}, scores of {len(_SIZES)} pictures differ by {difference:.2g}"
        if not difference <= PARITY_TOLERANCE:
            return stays(f"can't be migrated: {what}, allowed {PARITY_TOLERANCE:g}", failed=True)
        if dry_run:
            return stays(f"would be migrated: {what}")
        to = _registered(registry, owner, name, version, out)
        with shared_files.held(promotions.lock_file(root, owner.dataset)):
            promotions.move(
                registry, name, alias, to, kind="migration", reasons=(f"of version {version}: {what}",),
                expected=version,
            )  # fmt: skip
        return Migration(name, alias, version, to, f"is version {to} now: {what}")


def _difference(old: "Sealed", new: "Sealed") -> float:
    """Return the largest difference of scores and maps of generated pictures."""
    from pvqae.inference import bundle as bundles

    first, second = bundles.parse(old), bundles.parse(new)
    if first.threshold != second.threshold:
        raise IntegrityError(f"{new.folder}: expected threshold {first.threshold}, found {second.threshold}")
    worst = 0.0
    for seed, (height, width) in enumerate(_SIZES):
        noise = np.random.default_rng(seed).normal(0.5, 0.1, (height, width, 1)).clip(0, 1)
        picture = np.repeat(noise, 3, axis=2).astype(np.float32)
        one, other = (detector.score(picture) for detector in (first, second))
        maps = np.abs(one.anomaly_map - other.anomaly_map).max()
        worst = max(worst, abs(one.image_score - other.image_score), float(maps))
    return worst


def _registered(registry: Registry, owner: lineage.Owner, name: str, version: str, bundle: Path) -> str:
    """Return the version of a converted bundle, with the run and the lineage of the old one; made once."""
    tags = registry.version_tags(name, version)
    kept = {key: tags[key] for key in (*lineage.REQUIRED, "figures") if key in tags}
    own = {
        "bundle_sha256": version_bundles.evaluated_sha256(bundle),
        "migrated_from": version,
        ORIGINAL: tags.get(ORIGINAL, tags["bundle_sha256"]),
    }
    if (known := registry.find(name, own)) is not None:  # a killed migration's
        return known
    run = tags["mlflow_run"]
    calibration, settings = (read_json(bundle / f"{file}.json") for file in ("calibration", "config"))
    made = ModelCard(name, owner, calibration, settings, kept | own)
    text = f"Version {version} in today's format, with the same scores.\n\n{made.short}"
    to = registry.register(name, run, registry.log_model(run, bundle), kept | own, owner, text)
    card.keep(registry, run, to, made)
    return to
