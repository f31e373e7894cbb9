"""From a class's bundle to a registered version: export, parity in a fresh process, lineage, decision, alias."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.adapters.tracking import Registry
from flows.core import lineage, shared_files
from flows.core.processes import Supervisor
from flows.versions import card, notes, policy, promotions, version_bundles, warm_start
from flows.versions.card import ModelCard
from flows.versions.version_bundles import compare_scores
from flows.workspace.workspace import Workspace
from pvqae.core import files
from pvqae.core.files import SUMS, digest


@dataclass(frozen=True)
class Registered:
    """`version` "" when the bundle may not be registered; `new` False when an equal version was there already."""

    category: str
    version: str
    new: bool
    alias: str
    reasons: tuple[str, ...]


class Registrar:
    """Registers classes of one workspace. `made_from` has the lineage that all its classes share."""

    def __init__(
        self,
        registry: Registry,
        supervisor: Supervisor,
        space: Workspace,
        made_from: dict[str, str],
        uncommitted: tuple[str, ...],
        threads: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._supervisor = supervisor
        self._space = space
        self._made_from = made_from
        self._uncommitted = uncommitted
        self._threads = threads

    def existing(self, category: str) -> Registered | None:
        """Return the version that is this bundle on this manifest already, with the alias that a kill kept from it."""
        name, layout = lineage.model_name(self._space.params.data.name, category), self._space.layout
        same = {
            "bundle_sha256": digest(layout.bundle(category) / SUMS),
            "manifest_sha256": digest(layout.manifest),
        }
        version = self._registry.find(name, same)
        if version is None:
            return None
        self._complete(name, version)
        return Registered(category, version, False, self._alias_of(name, version), ("an equal version is registered",))

    def register(self, category: str, run: str) -> Registered:
        """Register a new version of the class's model, or return the reasons why not; `run` is the class's run."""
        name, bundle = lineage.model_name(self._space.params.data.name, category), self._space.layout.bundle(category)
        if self._uncommitted:  # known without the parity check, which takes seconds
            reasons = (f"code differs from the commit: {', '.join(self._uncommitted)}",)
            return self._refused(category, run, reasons)
        champion, deleted = self._champion(name)
        tags = self._made_from | {
            "bundle_sha256": digest(bundle / SUMS),
            "mlflow_run": run,
            "parent_version": champion or lineage.NONE,
            "parent_bundle_sha256": warm_start.sha256_of(self._space, category),
            "started_from": warm_start.started_from(self._space, category),
        }
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "bundle"
            version_bundles.export(self._supervisor, self._space, bundle, exported)
            facts = self._facts(category, exported, tags)
            first_auroc = self._space.params.gate.first_auroc
            decision = policy.decide(facts, later=bool(champion or deleted), first_auroc=first_auroc)
            decision = replace(decision, reasons=(*decision.reasons, *filter(None, (deleted,))))
            if decision.alias is None:
                return self._refused(category, run, decision.reasons)
            model = self._registry.log_model(run, exported)
            warm_start.keep(self._registry, run, self._space, category)
            size = sum(file.stat().st_size for file in exported.iterdir())
            figures = lineage.figures(self._metrics(category), size)
            owner, tags = lineage.Owner(self._space.params.data.name, category), tags | figures
            calibration, settings = (read_json(exported / f"{file}.json") for file in ("calibration", "config"))
        made = ModelCard(name, owner, calibration, settings, tags)
        version = self._registry.register(name, run, model, tags | _decision_tags(decision), owner, made.short)
        card.keep(self._registry, run, version, made)
        notes.revive(self._registry, name)
        self._move(name, version, decision)
        return Registered(category, version, True, decision.alias, decision.reasons)

    def _champion(self, name: str) -> tuple[str | None, str]:
        """Return the champion; or what to do where it was deleted and an earlier one is left to go back to."""
        try:
            return promotions.held(self._registry, name), ""
        except promotions.PromotionError as error:
            return None, str(error)

    def _move(self, name: str, version: str, decision: policy.Decision) -> None:
        assert decision.alias is not None
        kind = "initial" if decision.alias == "champion" else "challenger"
        with shared_files.held(promotions.lock_file(self._space.root, self._space.params.data.name)):
            promotions.move(self._registry, name, decision.alias, version, kind=kind, reasons=decision.reasons)

    def _refused(self, category: str, run: str, reasons: tuple[str, ...]) -> Registered:
        self._registry.tag(run, {"never_promotable": "true", "not_registered": "; ".join(reasons)})
        return Registered(category, "", False, "", reasons)

    def _complete(self, name: str, version: str) -> None:
        """Move the alias that was decided when the version was made, if a kill came between the two."""
        promotions.complete(self._registry, name)
        if any(entry.to_version == version for entry in self._registry.promotions(name)):
            return
        decision = _decision_of(self._registry.version_tags(name, version))
        if any(self._champion(name)):  # another became it meanwhile: this one waits for the gate
            decision = replace(decision, alias="challenger")
        self._move(name, version, decision)

    def _alias_of(self, name: str, version: str) -> str:
        return next((alias for alias in ("champion", "challenger") if self._registry.alias(name, alias) == version), "")

    def _facts(self, category: str, exported: Path, tags: dict[str, str]) -> policy.Facts:
        evaluated = self._space.layout.class_report(category) / "images.csv"
        health = read_json(exported / "config.json").get("health", {})
        calibration = read_json(exported / "calibration.json")
        return policy.Facts(
            parity_difference=compare_scores(self._supervisor, self._space, exported, evaluated, self._threads()),
            missing_lineage=lineage.Lineage.missing(tags),
            uncommitted=self._uncommitted,
            level_shares=tuple(health.get("level_shares") or ()),
            codebook_usage=health.get("codebook_usage"),
            image_auroc=self._metrics(category).get("image_auroc"),
            tried=policy.tried_of(calibration),
            no_promise=calibration.get("no_promise", ""),
        )

    def _metrics(self, category: str) -> dict[str, Any]:
        return read_json(self._space.layout.class_report(category) / "metrics.json")


def _decision_tags(decision: policy.Decision) -> dict[str, str]:
    """Return the tags that a version has from its start: a later flow reads there what a killed one had still to do."""
    return {"decided_alias": decision.alias or "", "decided_reasons": "\n".join(decision.reasons)}


def _decision_of(tags: Mapping[str, str]) -> policy.Decision:
    alias: policy.Alias = "champion" if tags["decided_alias"] == "champion" else "challenger"
    return policy.Decision(alias, tuple(tags["decided_reasons"].split("\n")))


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a stage's JSON file. Raises `IntegrityError` when it is missing or damaged."""
    return files.read_json(path, "run again, and `dvc repro --force` if that does not help")
