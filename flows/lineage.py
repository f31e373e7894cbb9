"""What a model version was made from, as flat tags. Pure: imports no tool."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

NONE = "none"  # said out loud: "no parent" is a fact, an absent tag is a fault


@dataclass(frozen=True)
class Lineage:
    """Every field becomes a tag of the registered version; hashes are lower-case hex."""

    git_sha: str  # the code
    data_sha: str  # the commit on pvqae/data with params.yaml, dvc.lock and .dvc files
    manifest_sha256: str
    data_hash: str  # DVC's, of the raw dataset
    dvc_lock_sha256: str
    params_sha256: str
    bundle_sha256: str
    flow_run: str
    mlflow_run: str
    parent_version: str  # the champion when this one was trained, or "none"
    parent_bundle_sha256: str  # the bundle that the training was given to go on from, or "none"
    seed: str
    environment: str
    trigger: str  # manual | schedule | samples | drift
    reason: str

    def tags(self) -> dict[str, str]:
        return {key: str(value) for key, value in asdict(self).items()}


def model_name(dataset: str, category: str) -> str:
    """The registered model of a class."""
    return f"pvqae-{dataset}-{category}"


def readings(model: str) -> list[tuple[str, str]]:
    """Return every dataset and class that a model of this name can be of: pvqae-a-b-c is one of a and of a-b."""
    words = model.removeprefix(model_name("", "").rstrip("-") + "-").split("-")
    found = [("-".join(words[:i]), "-".join(words[i:])) for i in range(1, len(words))]
    return [(dataset, category) for dataset, category in found if dataset and category[:1].isalnum()]


REQUIRED = tuple(field.name for field in fields(Lineage))
FIGURES = ("image_auroc", "pixel_auroc", "false_alarm_rate", "miss_rate", "latency_ms")  # kept with a version
IDENTITY = ("bundle_sha256", "manifest_sha256")  # a version with equal ones is the same version


def missing(tags: Mapping[str, str]) -> tuple[str, ...]:
    """The required tags that are absent or empty, in the order of `Lineage`."""
    return tuple(key for key in REQUIRED if not str(tags.get(key, "")).strip())


def identity(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags by which an equal version is found again."""
    return {key: tags[key] for key in IDENTITY}


def figures(metrics: Mapping[str, Any], size_bytes: int) -> dict[str, str]:
    """A version's own figures as one tag, for later comparisons; `metrics` those of its class in metrics.json."""
    return {"figures": json.dumps({key: metrics.get(key) for key in FIGURES} | {"size_bytes": size_bytes})}
