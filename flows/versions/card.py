"""The model card of a version: Markdown with the fields in YAML that Hugging Face and others read.

MLflow shows its text as the version's description, and the whole file is an artifact of the version's run. It is not in
the bundle, whose hash says what scores.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.adapters.tracking import Registry
from flows.core.lineage import Owner
from pvqae.core import plain_yaml
from pvqae.core.files import write_text

_LIBRARY = "pvqae"
_TAGS = ("anomaly-detection", "defect-detection", "visual-inspection", "vector-quantization", "pvqae")
_METRICS = {  # figure → its type on Hugging Face, words
    "image_auroc": ("roc_auc", "image AUROC"),
    "pixel_auroc": ("roc_auc", "pixel AUROC"),
    "aupro": ("aupro", "AUPRO up to 30 % false-positive pixels"),
    "aupro_005": ("aupro", "AUPRO up to 5 % false-positive pixels"),
    "pixel_f1_max": ("f1", "best pixel F1"),
    "seg_f1": ("f1", "pixel F1 at the pixel threshold"),
    "false_alarm_rate": ("false_positive_rate", "good parts stopped at the threshold"),
    "miss_rate": ("false_negative_rate", "defects missed at the threshold"),
}
_MADE_FROM = {
    "git_sha": "code (git)", "data_sha": "data versions (pvqae/data)", "data_hash": "raw data (DVC)",
    "manifest_sha256": "manifest (SHA-256)", "params_sha256": "params (SHA-256)", "bundle_sha256": "bundle (SHA-256)",
    "seed": "seed", "parent_version": "champion when trained", "trigger": "trigger", "reason": "reason",
}  # fmt: skip
_LONGEST = 4900  # characters of a description: MLflow's column on a server has 5000


@dataclass(frozen=True)
class ModelCard:
    """What a card is made of: a bundle's calibration.json and config.json, and the tags of its version."""

    model: str
    owner: Owner
    calibration: Mapping[str, Any]
    config: Mapping[str, Any]
    tags: Mapping[str, str]

    @property
    def body(self) -> str:
        """Return the Markdown for people; the calibration comes first."""
        parts = [self._purpose(), description(self.calibration, self._figures, self.tags), self._table()]
        return "\n\n".join(filter(None, [*parts, self._gate(), self._lineage(), _LICENCE]))

    @property
    def short(self) -> str:
        """Return the body as a description in MLflow holds it."""
        return self.body if len(self.body) <= _LONGEST else f"{self.body[:_LONGEST]}\n..."

    def text(self, version: str, alias: str = "") -> str:
        """Return the whole card of a version, which may have an alias."""
        head = plain_yaml.dump(self._fields(version)).strip()
        title = f"# {self.model}, version {version}{f' ({alias})' if alias else ''}"
        return f"---\n{head}\n---\n\n{title}\n\n{self.body}\n"

    @property
    def _figures(self) -> dict[str, Any]:
        return dict(json.loads(self.tags.get("figures", "{}")))

    def _fields(self, version: str) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "license": "unknown",
            "library_name": _LIBRARY,
            "pipeline_tag": "image-classification",
            "tags": list(_TAGS),
            "datasets": [self.owner.dataset],
        }
        known = {key: value for key, value in self._figures.items() if key in _METRICS and value is not None}
        if not known:
            return fields
        metrics = [{"type": _METRICS[k][0], "name": _METRICS[k][1], "value": value} for k, value in known.items()]
        dataset = {
            "type": self.owner.dataset,
            "name": f"{self.owner.dataset}, class {self.owner.category}",
            "split": "test",
            "revision": self.tags.get("data_hash", ""),
        }
        task = {"type": "image-classification", "name": "Visual anomaly detection"}
        result = {"task": task, "dataset": dataset, "metrics": metrics}
        fields["metrics"] = list(dict.fromkeys(one["type"] for one in metrics))
        fields["model-index"] = [{"name": f"{self.model} version {version}", "results": [result]}]
        return fields

    def _purpose(self) -> str:
        size, backbone = self.config.get("image", {}).get("size"), self.config.get("model", {}).get("backbone")
        by = f" It reads them at {size} pixels through the network {backbone}." if size and backbone else ""
        return (
            f"Tells defective parts of class `{self.owner.category}` from good ones in photographs, and marks where."
            f"{by} It learnt from good parts only, those of dataset `{self.owner.dataset}`: for parts, cameras or "
            "light that this dataset does not show it was not calibrated; watch for drift."
        )

    def _table(self) -> str:
        known = [(words, self._figures.get(key)) for key, (_, words) in _METRICS.items()]
        rows = [f"| {words} | {value:.4f} |" for words, value in known if value is not None]
        if not rows:
            return ""
        n = {key: self._figures.get(key) for key in ("n_normal", "n_defect")}
        of = f" ({n['n_normal']} good and {n['n_defect']} defective images)" if None not in n.values() else ""
        return "\n".join([f"## Test split{of}", "", "| figure | value |", "|---|---|", *rows])

    def _gate(self) -> str:
        if "gate_outcome" not in self.tags:
            return ""
        lines = [f"* {_plain(line)}" for line in self.tags.get("gate_verdict", "").split("\n")]
        against, outcome = self.tags.get("gate_champion", "none"), self.tags["gate_outcome"]
        return "\n".join([f"## The gate, against version {against}: {outcome}", "", *lines])

    def _lineage(self) -> str:
        rows = [f"| {words} | {_plain(self.tags[key])} |" for key, words in _MADE_FROM.items() if self.tags.get(key)]
        return "\n".join(["## Made from", "", "| what | which |", "|---|---|", *rows])


_LICENCE = (
    "## Licence\n\nThe card can't know it: the images that a detector learnt from, and the network that it reads them "
    "with, have their own. The code of pvqae is under Apache-2.0."
)


def description(card: Mapping[str, Any], metrics: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Return a calibration card in sentences, with its figures and what it was made from.

    Nothing for a card without a threshold, which no calibration writes.
    """
    if "threshold" not in card:
        return ""
    low, high = card["interval_95"]
    promise = (
        f"Of good parts {card['target_rate']:.1%} are meant to be stopped; by {card['n']} unseen normals of "
        f"{card['n_groups']} parts it is between {low:.1%} and {high:.1%} with 95 % confidence."
    )
    if nothing := card.get("no_promise"):
        promise = f"It {nothing}."
    figures = [
        f"{words} {metrics[key]:.3f}"
        for words, key in (("image AUROC", "image_auroc"), ("pixel AUROC", "pixel_auroc"), ("AUPRO", "aupro"))
        if metrics.get(key) is not None
    ]
    return "\n\n".join(
        [
            f"A score above {card['threshold']:.4g} is a defect: {card['rule']}.",
            promise,
            f"On the test split: {', '.join(figures) or 'no labelled defects'}.",
            f"Code {tags['git_sha'][:12]}, data {tags['data_sha'][:12]}; {tags['trigger']}: {_plain(tags['reason'])}",
        ]
    )


def _plain(text: str) -> str:
    """Return a person's text as one line that makes no table, HTML or link of its own."""
    line = " ".join(text.split())
    for sign in "\\`*_[]<>|":
        line = line.replace(sign, f"\\{sign}")
    return line


def keep(registry: Registry, run: str, version: str, card: ModelCard) -> None:
    """Keep a version's card as card/version-N/README.md of its run."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "README.md"
        write_text(file, card.text(version))
        registry.artifact(run, file, f"card/version-{version}")
