"""Normals of the gate that the champion scores far above its own: a person should look at them.

Nothing judges what goes to the gate before it is there, as no champion may choose what judges it; so a wrong photograph
comes in, too. Here the champion only chooses what is looked at. What it is, a person says in review.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from flows.core import shared_files
from flows.retrain.ledger import IntakePaths, LabelLog
from pvqae.core.config import Params
from pvqae.core.errors import PvqaeError
from pvqae.core.files import digest, write_text
from pvqae.core.layout import Layout
from pvqae.core.progress import track
from pvqae.datasets import build, sources
from pvqae.datasets.layouts import Found


class Screen(Protocol):
    """What scores a file by the champion of its class: `arrivals.Champions`, or a twin in tests."""

    margin: float

    def version(self, category: str) -> str: ...
    def screen(self, category: str, path: Path) -> tuple[float, float]: ...


@dataclass(frozen=True)
class GateNormal:
    """What the champion `version` says of a normal of the gate: its score, and the `limit` that a new image may reach.

    `path` is below the dataset's folder; `state` is that of the file, `margin` the params' that the limit is of.
    """

    path: str
    state: str
    category: str
    sha256: str
    version: str
    margin: float
    score: float
    limit: float

    @property
    def doubtful(self) -> bool:
        """Whether a person should look at it."""
        return self.score > self.limit


def look(paths: IntakePaths, params: Params, champions: Screen) -> list[GateNormal]:
    """Score the normals of the gate that the present champions have not scored yet; return the `doubtful` ones of which
    no person has said anything.

    Scores are kept in gate.jsonl of the review folder. Classes without a champion, or with one that can't score, are
    left out; the latter is printed.
    """
    raw = Layout(paths.root, paths.dataset).raw
    found = sources.scan(params.data.source, raw, (), params.data)
    chosen = build.splits_of(found, params)
    normals = [one for one in found if one.label == "normal" and chosen[one.sample_id] == "gate"]
    versions = _versions(champions, sorted({one.category for one in normals}))
    before = {_key(one): one for one in _kept(paths)}
    keys = {
        (one.path.relative_to(raw).as_posix(), _state(one.path), versions[one.category], champions.margin): one
        for one in normals
        if one.category in versions
    }
    new = {key: one for key, one in keys.items() if key not in before}
    scored = _scored(new, champions)
    after = [before.get(key) or scored[key] for key in keys if key in before or key in scored]
    if scored or len(after) != len(before):
        write_text(paths.gate_scores, "".join(json.dumps(asdict(one)) + "\n" for one in after))
    said = {sha256 for sha256, found in LabelLog(paths.labels).standing().items() if found.label.label != "skip"}
    return [one for one in doubtful(paths) if one.sha256 not in said]


_Key = tuple[str, str, str, float]  # path, state, version, margin


def _scored(new: dict[_Key, Found], champions: Screen) -> dict[_Key, GateNormal]:
    scored: dict[_Key, GateNormal] = {}
    broken: set[str] = set()
    for key, one in track(new.items(), "normals of the gate", len(new)) if new else ():
        if one.category in broken:
            continue
        try:
            score, limit = champions.screen(one.category, one.path)
            path, state, version, margin = key
            scored[key] = GateNormal(path, state, one.category, digest(one.path), version, margin, score, limit)
        except PvqaeError as error:
            broken.add(one.category)
            print(f"{one.category}: the normals of the gate were not looked at: {error}", file=sys.stderr, flush=True)
    return scored


def doubtful(paths: IntakePaths) -> list[GateNormal]:
    """Return the normals of the gate that want a look, as they were scored last, highest scores first."""
    return sorted((one for one in _kept(paths) if one.doubtful), key=lambda one: (-one.score, one.path))


def _kept(paths: IntakePaths) -> Iterable[GateNormal]:
    return shared_files.records(paths.gate_scores, GateNormal)


def _key(one: GateNormal) -> _Key:
    return one.path, one.state, one.version, one.margin


def _state(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _versions(champions: Screen, categories: Sequence[str]) -> dict[str, str]:
    """Return the champion of each class that has one."""
    found = {}
    for category in categories:
        try:
            found[category] = champions.version(category)
        except PvqaeError:  # a deleted champion, which the intake reports
            continue
    return {category: version for category, version in found.items() if version}
