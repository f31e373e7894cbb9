"""The report's page with the lineage of each version and its comparison with the champion, from the registry.

The page is in the project's `reports/<dataset>/`; its file of versions belongs to no stage, so writing both leaves
`dvc status` as it is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.adapters.tracking import Promotion, Registry
from flows.core import lineage
from flows.versions import promotions, warm_start
from flows.versions.registration import Registered
from pvqae.core.errors import PvqaeError
from pvqae.report.report import Comparison, Fact, Verdict, Version, read_versions, write_versions

_Figures = Mapping[str, float | None]

_LINEAGE = {  # tag → words, whether it is a hash
    "git_sha": ("code (git)", True),
    "data_sha": ("data versions (pvqae/data)", True),
    "data_hash": ("raw data (DVC)", True),
    "manifest_sha256": ("manifest", True),
    "params_sha256": ("params", True),
    "bundle_sha256": ("bundle", True),
    "dvc_lock_sha256": ("dvc.lock", True),
    "environment": ("environment", True),
    "seed": ("seed", False),
    "parent_version": ("champion when trained", False),
    "parent_bundle_sha256": ("bundle given to start from", True),
    "started_from": ("training started from", False),
    "trigger": ("trigger", False),
    "reason": ("reason", False),
    "mlflow_run": ("MLflow run", True),
    "flow_run": ("flow run", True),
}


def publish(
    registry: Registry,
    reports: Path,
    dataset: str,
    found: Sequence[Registered],
    demo: bool,
    others: Mapping[str, dict[str, Any]] = {},
    notes: Sequence[str] = (),
) -> None:
    """Write the versions that `found` names into the dataset's folder of reports, and the page with them.

    `others`: the classes whose versions are as they were; `notes`: what the check of the data warned of.
    """
    metrics = json.loads((reports / "metrics.json").read_text("utf-8"))["classes"]
    names = {item.category: lineage.model_name(dataset, item.category) for item in found}
    known = {
        item.category: _version(registry, names[item.category], item.version, item.reasons, metrics[item.category])
        for item in found
    }
    write_versions(reports, {**others, **known}, demo, notes)


def refresh(registry: Registry, root: Path, dataset: str, category: str = "") -> None:
    """Write the page again after an alias moved or a verdict was given; nothing where the flow has written none.

    `category`: the class that it concerns; without it all are looked up. A page that can't be written (its figures were
    removed) stops no promotion: the next training writes it.
    """
    reports = root / "reports" / dataset
    kept = read_versions(reports)
    if kept is None:
        return
    found = [
        Registered(name, one["number"], False, one["alias"], tuple(one["reasons"]))
        for name, one in kept.classes.items()
        if category in ("", name)
    ]
    try:
        publish(registry, reports, dataset, found, kept.demo, others=kept.classes, notes=kept.notes)
    except PvqaeError as error:
        print(f"{reports}: the page was not written again: {error}")


def _opponent(version: str, tags: Mapping[str, str], champion: str | None, log: Sequence[Promotion]) -> tuple[str, str]:
    """Return the version that another is compared with, and its role; "" for none.

    The one that the gate compared it with; else the present champion; else, when it is that itself, the one before.
    """
    judged = tags.get("gate_champion", "")
    if judged not in ("", lineage.NONE, version):
        return judged, "champion" if judged == champion else "champion at the gate"
    if champion and champion != version:
        return champion, "champion"
    before = [one for one in promotions.champions(log) if one != version]
    return (before[-1], "champion before it") if champion and before else ("", "")


def _version(
    registry: Registry, name: str, number: str, reasons: tuple[str, ...], metrics: Mapping[str, Any]
) -> Version:
    log = registry.promotions(name)
    if number and not registry.exists(name, number):
        number, reasons = "", (f"version {number} was deleted in MLflow",)
    champion = promotions.champion(registry, name)
    tags = registry.version_tags(name, number) if number else {}
    alias = next((one for one in promotions.ALIASES if number and registry.alias(name, one) == number), "")
    return Version(
        model=name,
        number=number,
        alias=alias,
        registered=next((f"{one.when[:19]}Z" for one in log if number and one.to_version == number), ""),
        reasons=tuple(tags.get("decided_reasons", "").split("\n")) if number else reasons,
        lineage=tuple(_facts(tags)),
        comparison=_comparison(registry, name, tags, _opponent(number, tags, champion, log), metrics),
        verdict=_verdict(tags),
    )


def _facts(tags: Mapping[str, str]) -> Iterator[Fact]:
    """Yield the lines of a version's lineage; a bundle that it was given, but could not start from, is none."""
    started = tags.get("started_from", "")
    for key, (words, is_hash) in _LINEAGE.items():
        if key not in tags or (key == "parent_bundle_sha256" and started not in ("", warm_start.PARENT)):
            continue
        yield Fact(words, "that bundle" if tags[key] == warm_start.PARENT else tags[key], is_hash)


def _comparison(
    registry: Registry, name: str, tags: Mapping[str, str], against: tuple[str, str], metrics: Mapping[str, Any]
) -> Comparison | None:
    other, role = against
    if not other or not registry.exists(name, other):
        return None
    theirs = registry.version_tags(name, other)
    own = _figures(tags) or {key: metrics.get(key) for key in lineage.FIGURES}
    same = bool(tags) and theirs.get("manifest_sha256") == tags.get("manifest_sha256")
    return Comparison(other, role, same, own, _figures(theirs))


def _figures(tags: Mapping[str, str]) -> _Figures:
    """Return a version's figures; none for one that was registered before figures were kept with them."""
    return dict(json.loads(tags.get("figures", "{}")))


def _verdict(tags: Mapping[str, str]) -> Verdict | None:
    if "gate_outcome" not in tags:
        return None
    against = tags["gate_champion"]
    return Verdict(tags["gate_outcome"], against, tuple(tags["gate_verdict"].split("\n")))
