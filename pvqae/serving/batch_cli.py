"""The verbs `pvqae score` and `pvqae drift`: what the command line needs around `batch` and `drift_report`."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pvqae.calibration import thresholds
from pvqae.core import config, runtime
from pvqae.core.errors import ConfigError
from pvqae.core.files import Sealed
from pvqae.drift.profile import flatten
from pvqae.inference import bundle as bundles
from pvqae.serving import batch, batch_rows, batch_source

if TYPE_CHECKING:
    from pvqae.drift.drift_report import Report

SOME_FAILED, DRIFTED, INSUFFICIENT = 1, 3, 4
EXITS = {"none": 0, "drift": DRIFTED, "insufficient": INSUFFICIENT}


def prepare() -> None:
    """Set threads and determinism of this process, as the evaluation has them."""
    runtime.plan(config.Compute(), 1).apply()


def score(folder: Path, images: Sequence[Path], out: Path | None, heatmaps: bool, masks: bool, table: bool) -> int:
    """Score to `out`, or to stdout without it; return the exit code."""
    if (heatmaps or masks) and out is None:
        raise ConfigError(f"--{'heatmaps' if heatmaps else 'masks'} needs a folder to write them to; add --out FOLDER")
    prepare()
    detector, source = bundles.load(folder), batch_source.Files(tuple(images))
    small = detector.card.get("smallest_defect")  # bundles of 0.1 don't say
    for note in [*detector.notes, *([thresholds.sentence(small)] if small else [])]:
        print(note, file=sys.stderr)
    if out is not None:
        found = batch.run(detector, source, out, heatmaps=heatmaps, masks=masks)
        print(found.sentence(out))
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


def judge(bundle: Sealed, scores: Path, settings: config.Drift, name: str) -> "Report":
    """Judge the scores below `scores` against the profile of a `bundle` (its files); writes drift.json and drift.html
    there.
    """
    from pvqae.drift import drift_report, profile  # its statistics and charts: not for a score

    threshold = bundles.threshold(bundle)
    normals, found = profile.read(bundle), drift_report.table(batch_rows.read(scores), bundle.sha256)
    report = drift_report.Report.of(normals, found, threshold, settings)
    report.write(normals, found, threshold, name, scores)
    return report


def drift(folder: Path, scores: Path, settings: config.Drift, as_json: bool = False) -> int:
    """Print the verdict, or drift.json; return the exit code."""
    bundle = bundles.read(folder)
    facts = bundle.json("config.json", bundles.REPAIR)
    report = judge(bundle, scores, settings, f"{facts.get('dataset')}/{facts.get('category')}")
    if as_json:
        print((scores / "drift.json").read_text("utf-8"), end="")
    else:
        print(report.sentence, scores / "drift.html", sep="\n")
    return EXITS[report.verdict]
