"""The rows of scored images: one dictionary per image, as a line of scores.jsonl and as a flat row of scores.csv."""

import csv
import json
import shlex
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pvqae.calibration.thresholds import is_defect
from pvqae.core.errors import DataError
from pvqae.core.files import whole_file
from pvqae.drift.profile import STATISTICS, flatten
from pvqae.inference.bundle import Detector
from pvqae.inference.scoring import PARTS

Values = dict[str, Any]
_KEYS = {"path", "taken", "score", "bundle_sha256", "level_shares", "parts", "statistics", "error"}  # readers need them
JSONL, CSV = "scores.jsonl", "scores.csv"


def of(detector: Detector, version: str, path: str, sha256: str, modified: str, record: Values) -> Values:
    """Return a row of the output.

    margin = score - threshold: above 0 is a defect. decision "" means not scored. What is marked is as in
    `geometry.marks`; None where it was not scored, or the bundle has no pixel threshold.
    """
    score, threshold = record.get("score"), detector.threshold
    return {
        "path": path,
        "sha256": sha256,
        "taken": record.get("captured_at") or modified,
        "score": score,
        "threshold": threshold,
        "decision": "" if score is None else "defect" if is_defect(score, threshold) else "normal",
        "margin": None if score is None else score - threshold,
        "pixel_threshold": detector.pixel_threshold,
        "marked_area": record.get("marked_area"),
        "region_count": record.get("region_count"),
        "regions": record.get("regions"),
        "version": version,
        "bundle_sha256": detector.sha256,
        "level_shares": record.get("level_shares"),
        "parts": record.get("parts"),
        "statistics": record.get("statistics"),
        "error": record["error"],
    }


def write(out: Path, found: Iterable[Values], levels: int) -> tuple[int, int]:
    """Write both files, whole or not at all; return the numbers of defects and of failures."""
    defects = failed = 0
    with ExitStack() as stack:
        parts = [stack.enter_context(whole_file(out / name)) for name in (JSONL, CSV)]
        lines, table = (stack.enter_context(part.open("w", encoding="utf-8", newline="")) for part in parts)
        writer = csv.DictWriter(table, columns(levels), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for row in found:
            defects, failed = defects + (row["decision"] == "defect"), failed + bool(row["error"])
            lines.write(as_json(row) + "\n")
            writer.writerow(flatten(row))
    return defects, failed


def as_json(row: Values) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def columns(levels: int) -> list[str]:
    """Return the columns of the CSV."""
    first = ("path", "sha256", "taken", "score", "threshold", "decision", "margin", "version", "bundle_sha256")
    shares = [f"level_{r}" for r in range(levels)]
    marked = ("pixel_threshold", "marked_area", "region_count")
    return [*first, *PARTS, *shares, *STATISTICS, *marked, "heatmap", "mask", "error"]


def read(folder: Path) -> Iterator[Values]:
    """Yield the rows of a folder's scores.jsonl. Raises `DataError` if there is none, or a line is no such row."""
    file = folder / JSONL
    if not file.is_file():
        command = f"pvqae score BUNDLE IMAGES --out {shlex.quote(str(folder))}"
        raise DataError(f"{file}: no scores there; write them with `{command}`")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if (row := _row(line)) is None:
                raise DataError(f"{file}, line {number}: not a scored image; write the file again with `pvqae score`")
            yield row


def _row(line: bytes) -> Values | None:
    """Return the row in a line; None if it is no row of a scores.jsonl."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not found.keys() >= _KEYS:
        return None
    kinds = {"parts": dict, "statistics": dict, "level_shares": list}
    return found if all(isinstance(found[key] or kind(), kind) for key, kind in kinds.items()) else None
