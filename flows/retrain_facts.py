"""The facts of the retraining decision, from the registry, the versions of the data and the ledger of arrivals."""

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flows import lineage, promotions
from flows.adapters.tracking import Registry
from flows.adapters.versioning import Versioning
from flows.arrivals import Taken
from flows.arrivals_ledger import Ledger
from flows.arrivals_places import Places
from flows.retrain_policy import ClassFacts, Facts
from pvqae.config import Params
from pvqae.datasets.layouts import Found
from pvqae.layout import Layout

HELD_OUT = ("test", "gate")  # splits set by the source or by a person: nothing there is trained on


def facts_of(
    asked: Facts,
    registry: Registry,
    dvc: Versioning,
    params: Params,
    found: Sequence[Found],
    ledger: Ledger,
    places: Places,
    taken: Taken,
) -> Facts:
    """The facts of every class, from the registry, the data versions and the ledger."""
    name, raw, now = params.data.name, Layout(places.root, params.data.name).raw, datetime.datetime.now(datetime.UTC)
    held = Counter(e.category for e in ledger.entries("review") if (file := places.file(e)) and file.exists())

    def facts(category: str) -> ClassFacts:
        model = lineage.model_name(name, category)
        champion = promotions.champion(registry, model) or ""
        normals = [f for f in found if f.category == category and f.label == "normal" and f.official not in HELD_OUT]
        seen = dvc.listing(registry.version_tags(model, champion)["data_hash"]) if champion else None
        fresh = taken.waiting.get(f"{category}, a dry run", 0)
        trained, judged = ("", False) if fresh else of_this_data(registry, model, dvc.data_hash(name))
        return ClassFacts(
            category=category,
            champion=champion,
            age_days=age_days(registry, model, champion, now) if champion else None,
            new_normals=None if seen is None else fresh + sum(_below(f, raw) not in seen for f in normals),
            in_review=held[category],
            trained=trained,
            judged=judged,
        )

    return replace(asked, classes=tuple(facts(category) for category in sorted({f.category for f in found})))


def of_this_data(registry: Registry, model: str, data_hash: str) -> tuple[str, bool]:
    """The newest version made of a version of the data, and whether the gate is done with it; "" for none.

    A version without any alias and verdict does not count: a training that was killed then has still to name it.
    """
    version = registry.find(model, {"data_hash": data_hash}) or ""
    if not version:
        return "", False
    if promotions.champion(registry, model) == version or registry.version_tags(model, version).get("gate_outcome"):
        return version, True
    return (version, False) if promotions.held(registry, model, "challenger") == version else ("", False)


def _below(found: Found, raw: Path) -> str:
    return found.path.relative_to(raw).as_posix()


def age_days(registry: Registry, model: str, version: str, now: datetime.datetime) -> float | None:
    """Days since `version` first got an alias, which is when it was registered; None when the log does not say."""
    moves = sorted(entry.when for entry in registry.promotions(model) if entry.to_version == version)
    if not moves:
        return None
    return (now - datetime.datetime.fromisoformat(moves[0])).total_seconds() / 86400
