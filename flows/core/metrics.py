"""The figures of reports/<dataset>/metrics.json as flat, named numbers. Pure."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Metric:
    key: str
    value: float
    step: int = 0


def flatten(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number below `figures` under its dotted key; null (no masks) and text are left out."""
    found: dict[str, float] = {}
    for key, value in figures.items():
        name = prefix + re.sub(r"[^\w.\- ]", "_", str(key))  # what MLflow accepts in a key
        if isinstance(value, Mapping):
            found |= flatten(value, f"{name}.")
        elif isinstance(value, list):
            found |= flatten({str(index): item for index, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def read(path: Path) -> dict[str, Any]:
    """The content of a metrics.json."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def as_metrics(figures: Mapping[str, Any]) -> list[Metric]:
    return [Metric(key, value) for key, value in flatten(figures).items()]
