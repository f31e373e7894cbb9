"""What a model version was made from, as flat tags. Pure: imports no tool."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

NONE = "none"  # stated: "no parent" is a fact, an absent tag is a fault


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
        """Return the fields as tags."""
        return {key: str(value) for key, value in asdict(self).items()}

    @classmethod
    def missing(cls, tags: Mapping[str, str]) -> tuple[str, ...]:
        """Return the required tags that are absent or empty, in the order of the fields."""
        return tuple(field.name for field in fields(cls) if not str(tags.get(field.name, "")).strip())


OURS = "pvqae-"
NOTE, RETIRED = "pvqae.", "retired"  # how tags that are notes of a model begin; the note of one that is made no more
MODEL = re.compile(OURS + r"[a-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, order=True)
class Owner:
    """Whose model a registered one is, kept as its tags: pvqae-a-b-c can be one of the dataset a, or of a-b."""

    dataset: str
    category: str

    def __str__(self) -> str:
        return f"class {self.category} of dataset {self.dataset}"

    @classmethod
    def possible(cls, model: str) -> list[Self]:
        """Return everything that a model of this name can be of."""
        words = model.removeprefix(OURS).split("-")
        found = [cls("-".join(words[:i]), "-".join(words[i:])) for i in range(1, len(words))]
        return [owner for owner in found if owner.dataset and owner.category[:1].isalnum()]


def model_name(dataset: str, category: str) -> str:
    """Return the name of a class's registered model."""
    return f"{OURS}{dataset}-{category}"


def artifact_key(*words: str) -> str:
    """Return a key as Prefect wants it, of small letters, digits and -; other words have another key."""
    text = "-".join(words)
    key = re.sub("[^a-z0-9-]", "-", text.lower())
    return key if key == text else f"{key}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


REQUIRED = tuple(field.name for field in fields(Lineage))
FIGURES = (  # kept with a version
    *("image_auroc", "pixel_auroc", "aupro", "aupro_005", "pixel_f1_max", "seg_f1"),
    *("false_alarm_rate", "miss_rate", "n_normal", "n_defect", "latency_ms"),
)


def figures(metrics: Mapping[str, Any], size_bytes: int) -> dict[str, str]:
    """Return a version's own figures as one tag, for later comparisons; `metrics` is its class's in metrics.json."""
    return {"figures": json.dumps({key: metrics.get(key) for key in FIGURES} | {"size_bytes": size_bytes})}
