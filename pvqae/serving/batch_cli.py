"""The verbs `pvqae score` and `pvqae drift`: what the command line needs around `batch` and `drift_report`."""

import csv
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pvqae.core import config, runtime
from pvqae.core.errors import ConfigError, DataError
from pvqae.core.files import Sealed
from pvqae.drift import drift_report, profile
from pvqae.drift.drift import flatten
from pvqae.drift.drift_report import Report
from pvqae.inference import bundle as bundles
from pvqae.serving import batch, batch_rows, batch_source

SOME_FAILED, DRIFTED, INSUFFICIENT = 1, 3, 4
EXITS = {"none": 0, "drift": DRIFTED, "insufficient": INSUFFICIENT}


def prepare() -> None:
    """Threads and determinism of this process, as the evaluation has them."""
    runtime.apply(runtime.plan(config.Compute(), 1))


def score(folder: Path, images: Sequence[Path], out: Path | None, heatmaps: bool, table: bool) -> int:
    """Score to `out`, or to stdout without it; returns the exit code."""
    if heatmaps and out is None:
        raise ConfigError("--heatmaps: expected a folder to write them to, found none; add --out FOLDER")
    prepare()
    detector, source = bundles.load(folder), batch_source.Files(tuple(images))
    if out is not None:
        found = batch.run(detector, source, out, heatmaps=heatmaps)
        print(sentence(found, out))
        return SOME_FAILED if found.failed else 0
    failed = 0
    writer = csv.DictWriter(
        sys.stdout, batch_rows.columns(detector.config["model"]["levels"]), lineterminator="\n", extrasaction="ignore"
    )
    if table:
        writer.writeheader()
    for row in batch.rows(detector, source):
        failed += bool(row["error"])
        if table:
            writer.writerow(flatten(row))
        else:
            print(batch_rows.as_json(row), flush=True)
    return SOME_FAILED if failed else 0


def sentence(found: batch.Outcome, out: Path) -> str:
    return (
        f"{found.images} images: {found.scored} scored now, {found.defects} above the threshold, {found.failed} not "
        f"scored (column error of {out / batch_rows.CSV})"
    )


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a folder's scores.jsonl. Raises `DataError` when it has none, or a line is no such row."""
    file = folder / batch_rows.JSONL
    if not file.is_file():
        command = f"pvqae score BUNDLE IMAGES --out {shlex.quote(str(folder))}"
        raise DataError(f"{file}: expected scores, found no file; write it with `{command}`")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if (row := _row(line)) is None:
                raise DataError(f"{file}, line {number}: expected a scored image; write it again with `pvqae score`")
            yield row


def _row(line: bytes) -> dict[str, Any] | None:
    """None where the line is no row of a scores.jsonl."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not found.keys() >= batch_rows.KEYS:
        return None
    kinds = {"parts": dict, "statistics": dict, "level_shares": list}
    return found if all(isinstance(found[key] or kind(), kind) for key, kind in kinds.items()) else None


def judge(bundle: Sealed, scores: Path, settings: config.Drift, name: str) -> Report:
    """Judge the scores below `scores` against the profile of a `bundle` (its files); writes drift.json and drift.html
    there."""
    threshold = bundles.threshold(bundle)
    normals, found = profile.read(bundle), drift_report.table(rows(scores), bundle.sha256)
    report = drift_report.assess(normals, found, threshold, settings)
    drift_report.write(report, normals, found, threshold, name, scores)
    return report


def drift(folder: Path, scores: Path, settings: config.Drift, as_json: bool = False) -> int:
    """Print the verdict, or drift.json; returns the exit code."""
    bundle = bundles.read(folder)
    facts = bundle.json("config.json", bundles.REPAIR)
    report = judge(bundle, scores, settings, f"{facts.get('dataset')}/{facts.get('category')}")
    if as_json:
        print((scores / "drift.json").read_text("utf-8"), end="")
    else:
        print(report.sentence, scores / "drift.html", sep="\n")
    return EXITS[report.verdict]
