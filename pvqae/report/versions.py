"""Which registered versions a report shows: where they came from, and how they compare. Written by whoever registers.

`versions.json` lies beside the page and is no output of the stage `report`: a version names the hash of dvc.lock, so
DVC can't track a file that names the version.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pvqae.core.files import write_text

Values = dict[str, Any]

FILE = "versions.json"


@dataclass(frozen=True)
class Fact:
    """One line of a lineage; `is_hash`: shown in short, whole on request."""

    name: str
    value: str
    is_hash: bool = False


@dataclass(frozen=True)
class Comparison:
    """Figures of this version beside those of `other`; keys as in metrics.json, and size_bytes; absent: not known."""

    other: str  # a version's number
    role: str  # of the other, in words: "champion", "champion before it"
    same_images: bool  # both were evaluated on the same manifest
    this_figures: Mapping[str, float | None]
    other_figures: Mapping[str, float | None]


@dataclass(frozen=True)
class Verdict:
    """Of the promotion gate; `lines` are "kept | broken | undecided: rule: figures"."""

    outcome: str
    against: str  # a version's number
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Version:
    """Of one class; `number` "" when its bundle was not registered, `reasons` say why or why not."""

    model: str
    number: str
    alias: str
    registered: str  # ISO 8601 in UTC, "" when not known
    reasons: tuple[str, ...]
    lineage: tuple[Fact, ...]
    comparison: Comparison | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Known:
    """What versions.json holds: class → the fields of `Version`; `demo`: the page makes no quality claim."""

    classes: dict[str, Values]
    demo: bool


def write(reports: Path, versions: Mapping[str, Version | Values], demo: bool) -> None:
    """versions.json in a dataset's folder of reports, for the metrics.json that lies there; by class.

    A class whose version is as it was is given as `read` found it.
    """
    classes = {name: asdict(one) if isinstance(one, Version) else one for name, one in versions.items()}
    found = {"metrics_sha256": _sha256(reports), "demo": demo, "classes": classes}
    write_text(reports / FILE, json.dumps(found, indent=1, allow_nan=False) + "\n")


def read(reports: Path) -> Known | None:
    """None when no versions were written, or when they belong to other figures than those that lie there now."""
    try:
        found: Values = json.loads((reports / FILE).read_text("utf-8"))
        same = found["metrics_sha256"] == _sha256(reports)
    except FileNotFoundError:
        return None
    return Known(found["classes"], found["demo"]) if same else None


def _sha256(reports: Path) -> str:
    return hashlib.sha256((reports / "metrics.json").read_bytes()).hexdigest()
