"""Measure champion and challenger on the same frozen images, through the one scoring path."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flows.core.processes import Supervisor
from flows.gate import statistics
from flows.gate.rules import Measured
from flows.versions import policy, version_bundles
from flows.workspace.workspace import Workspace
from pvqae.core import config, files
from pvqae.core.errors import DataError, IntegrityError
from pvqae.core.layout import Layout
from pvqae.core.progress import track, working
from pvqae.evaluation.metrics import PixelCounts, count, image_auroc
from pvqae.samples import images, manifest
from pvqae.samples.geometry import mask_of

if TYPE_CHECKING:
    from pvqae.inference.bundle import Detector

_Maps = Mapping[str, list[PixelCounts | None]]  # by side, of each image; None where AUPRO does not count it


@dataclass(frozen=True)
class Pair:
    """Two versions' bundles in local folders; `champion` None when there is none yet."""

    challenger: Path
    champion: Path | None
    tags: Mapping[str, str]  # the challenger's
    flaws: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Findings:
    """`scores` has a row per gate image: sample_id, path, label, kind, group_id, champion, challenger."""

    measured: Measured
    scores: pd.DataFrame
    list_sha256: str  # of the list of gate images with their hashes


def _frozen_rows(space: Workspace, category: str) -> pd.DataFrame:
    """Read the class's gate rows and check each file. Raises `DataError` or `IntegrityError` where they differ."""
    file = space.layout.class_rows(category, "gate")
    rows = manifest.read_rows(space.layout, file)
    listed = _gate_rows(space.layout, files.digest(space.layout.manifest))
    listed = listed[listed["category"] == category]
    if list(rows["sha256"]) != list(listed["sha256"]) or list(rows["sample_id"]) != list(listed["sample_id"]):
        raise IntegrityError(f"{file}: its rows are not the gate rows of {space.layout.manifest}; run dvc repro")
    for row in rows.to_dict("records"):
        path = files.resolve(space.layout.data, row["path"])
        found = files.digest(path) if path.is_file() else "no file"
        if found != row["sha256"]:
            raise IntegrityError(f"{path}: expected sha256 {row['sha256']}, found {found}; run dvc checkout")
    return rows


@lru_cache(maxsize=1)
def _gate_rows(layout: Layout, sha256: str) -> pd.DataFrame:
    """Read the gate rows of all classes once for many verdicts; `sha256` is that of the manifest now."""
    every = manifest.read_rows(layout, layout.manifest)
    return every.loc[every["split"] == "gate", ["sample_id", "category", "sha256"]]


def _list_sha256(rows: pd.DataFrame) -> str:
    """Hash which images are judged and what they hold."""
    return hashlib.sha256("\n".join(f"{a} {b}" for a, b in zip(rows["sample_id"], rows["sha256"])).encode()).hexdigest()  # noqa: B905  # columns of one table


def measure(
    space: Workspace, category: str, pair: Pair, limits: config.Gate, compute: config.Compute, supervisor: Supervisor
) -> Findings:
    """Score all gate images with both bundles; champion and challenger take turns, so that load falls on both."""
    from pvqae.core import runtime
    from pvqae.inference import bundle

    plan = runtime.plan(compute, 1)
    plan.apply()
    rows = _frozen_rows(space, category)
    sides = {"challenger": pair.challenger} | ({"champion": pair.champion} if pair.champion else {})
    detectors = {side: bundle.load(folder) for side, folder in sides.items()}
    table, times, maps = _score(detectors, rows, space.layout.data)
    compared = pair.challenger.parent / "gate-scores.csv"
    manifest.write_csv(table.rename(columns={"challenger": "image_score"}), compared)
    difference = (
        version_bundles.compare_scores(supervisor, space, pair.challenger, compared, plan.threads)
        if len(table)
        else None
    )
    sizes = {side: sum(file.stat().st_size for file in folder.iterdir()) for side, folder in sides.items()}
    with working("comparing champion and challenger"):
        measured = _facts(table, detectors["challenger"], limits, difference, times, maps, sizes, pair.flaws)
    return Findings(measured, table, _list_sha256(rows))


def _score(
    detectors: Mapping[str, "Detector"], rows: pd.DataFrame, data: Path
) -> tuple[pd.DataFrame, dict[str, list[float]], _Maps]:
    """Return scores per image and side, milliseconds from decoded pixels to score, and what AUPRO counts of the maps.

    It counts normals and defects with a mask, if there are any.
    """
    table = rows[["sample_id", "path", "label", "kind", "group_id", "captured_at"]].copy()
    times: dict[str, list[float]] = {side: [] for side in detectors}
    scores: dict[str, list[float]] = {side: [] for side in detectors}
    maps: dict[str, list[PixelCounts | None]] = {side: [] for side in detectors}
    masked = (rows["mask_path"] != "").any()
    for index, row in enumerate(track(rows.to_dict("records"), "the gate's images", len(rows))):
        every = {
            bits: images.read(row["path"], data, bits) for bits in {d.scorer.image.bits for d in detectors.values()}
        }
        for side, detector in list(detectors.items())[:: -1 if index % 2 else 1]:  # who follows on a warm cache changes
            pixels = every[detector.scorer.image.bits]
            if index == 0:
                detector.scorer.one(pixels)  # warm-up
            begun = time.perf_counter()
            scored = detector.scorer.one(pixels, row["sample_id"])
            times[side].append((time.perf_counter() - begun) * 1000)
            scores[side].append(scored.image_score)
            counted = masked and np.isfinite(scored.image_score) and (row["label"] == "normal" or row["mask_path"])
            maps[side].append(_counts(scored.anomaly_map, row["mask_path"], data) if counted else None)
    return table.assign(**scores), times, maps


def _counts(anomaly_map: NDArray[np.float32], mask_path: str, data: Path) -> PixelCounts:
    return count(anomaly_map, mask_of(mask_path, anomaly_map.shape, data)).coarser()


def _overlap(maps: _Maps, groups: list[str], limits: config.Gate) -> dict[str, Any]:
    """Return the fields of `Measured` about AUPRO."""
    kept = {side: [one for one in counts if one] for side, counts in maps.items()}
    own = [group for group, one in zip(groups, maps["challenger"], strict=True) if one]
    if not own or "champion" not in kept:
        return {"aupro": None, "own_aupro": statistics.aupro(kept["challenger"])}
    seen = statistics.compare_maps(kept["champion"], kept["challenger"], own, limits)
    return {"aupro": seen, "own_aupro": seen.challenger if seen else None}


def _newest(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the newest normals: what arrived after the dataset was first added, then by the camera's own time."""
    normals = table[table["label"] == "normal"]
    arrived = normals["path"].str.contains("/arrived/", regex=False)
    order = normals.assign(arrived=arrived).sort_values(["arrived", "captured_at", "sample_id"], ascending=False)
    return order.head(count)


def _facts(
    table: pd.DataFrame,
    challenger: "Detector",
    limits: config.Gate,
    parity: float | None,
    times: Mapping[str, list[float]],
    maps: _Maps,
    sizes: Mapping[str, int],
    flaws: tuple[str, ...],
) -> Measured:
    """Return what the rules judge. Raises `DataError` for a score that is not finite."""
    defect = (table["label"] == "defect").to_numpy()
    scores: dict[str, NDArray[np.float64]] = {side: table[side].to_numpy(dtype=np.float64) for side in sizes}
    for side, values in scores.items():
        if not np.isfinite(values).all():
            raise DataError(f"{table['path'][~np.isfinite(values)].iloc[0]}: the {side} gives no finite score")
    both, groups, kinds = "champion" in scores, list(table["group_id"]), table["kind"].to_numpy(dtype=str)
    normals, card = _newest(table, limits.newest), challenger.card
    health = challenger.config["health"]
    own = normals["challenger"].to_numpy(dtype=np.float64)
    return Measured(
        **statistics.compared(scores.get("champion"), scores["challenger"], kinds, defect, groups, limits),
        own_auroc=image_auroc(defect, scores["challenger"]),
        **_overlap(maps, groups, limits),
        tried=policy.tried_of(card),
        alarms=statistics.Alarms.of(own, list(normals["group_id"]), challenger.threshold, limits.alarm_confidence)
        if len(normals)
        else None,
        promised=None if card.get("no_promise") else float(card["interval_95"][1]),
        target=float(card["target_rate"]),
        parity=parity,
        level_shares=tuple(health.get("level_shares") or ()),
        codebook_usage=health.get("codebook_usage"),
        latency_ms=(float(np.median(times["champion"])), float(np.median(times["challenger"]))) if both else None,
        size_bytes=(sizes["champion"], sizes["challenger"]) if both else None,
        flaws=flaws,
    )
