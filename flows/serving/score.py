"""The score flow: a registered version over a folder or a bucket prefix, and the drift of what it scored.

A report of drift joins the history of reports on the same images, and sends an event on which retraining can start.
"""

import datetime
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

from flows.adapters import landing, notifications
from flows.adapters.landing import Landing, Object
from flows.adapters.notifications import News
from flows.adapters.prefect_client import Notifier, PrefectEvents
from flows.adapters.registry import open_registry
from flows.adapters.tracking import Registry
from flows.core import lineage, shared_files
from flows.versions import history, promotions, version_bundles
from flows.workspace import workspace
from pvqae.cli import stream_command
from pvqae.core import config
from pvqae.core.errors import ConfigError, IntegrityError
from pvqae.core.files import Sealed, whole_folder, write_text
from pvqae.core.progress import tell, working
from pvqae.drift.drift_report import Report
from pvqae.inference import bundle as bundles
from pvqae.serving import batch, batch_cli, batch_source
from pvqae.serving.batch_source import Item

_MODEL = re.compile(rf"({lineage.MODEL.pattern})(?:@(\w+))?")
_EVENT = "pvqae.drift.detected"


@dataclass(frozen=True)
class Judged:
    """`since`: of the present drift, over all reports without a break; "" when there is none."""

    report: Report
    since: str

    @property
    def exit_code(self) -> int:
        """Of the command: 0 no drift, 3 drift, 4 too little to tell."""
        return batch_cli.EXITS[self.report.verdict]


@dataclass(frozen=True)
class Result:
    """What `score` came to. `drift` is None when it was not asked for."""

    model: str
    version: str
    out: Path
    found: batch.Outcome
    drift: Judged | None
    untold: tuple[str, ...] = ()  # lines on messages that did not arrive

    @property
    def lines(self) -> tuple[str, ...]:
        """What was scored and judged, for people."""
        words = (f"{self.model} version {self.version}: {self.found.sentence(self.out)}",)
        if self.drift is None:
            return words
        earlier = self.drift.since != self.drift.report.since
        first = (f"Earlier reports show drift without a break since {self.drift.since}.",) if earlier else ()
        return (*words, self.drift.report.sentence, *first, str(self.out / "drift.html"), *self.untold)


@flow(name="score", persist_result=False)
def score(
    root: str,
    name: str,
    source: str,
    out: str = "",
    heatmaps: bool = False,
    judge_drift: bool = False,
    masks: bool = False,
) -> Result:
    """Score the new images of `source` with the version that `name` means.

    With `judge_drift` compare all that was scored with the version's trusted normals, and send an event if it drifted.
    Raises an error of `pvqae.core.errors` for what the user can repair. A killed run goes on where it was.
    """
    project = Path(root).resolve()
    with workspace.failures_told(project, f"score {name}"):
        return _scored(project, name, source, out, heatmaps, judge_drift, masks)


def _scored(
    project: Path, name: str, source: str, out: str, heatmaps: bool, judge_drift: bool, masks: bool
) -> Result:  # fmt: skip
    log = get_run_logger()
    params = config.load(project / "params.yaml")

    # 1. The version, and the folder of its results; one run per folder at a time.
    registry, _ = open_registry(project, params.flow.tracking_uri)
    model, version = parse(name, registry)
    where = source if "://" in source else str(Path(source).expanduser().resolve())
    folder = Path(out).resolve() if out else _place(project, model, where)
    lock = project / ".pvqae" / "locks" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.score.lock"
    with shared_files.held(lock, waiting=lambda: log.warning("another run writes to %s: waiting for its end", folder)):
        # 2. The scores.
        batch_cli.prepare()
        bundle = bundle_of(project, registry, model, version)
        detector = bundles.parse(bundle)
        for note in detector.notes:
            log.warning("%s", note)
        found = batch.run(detector, _source_of(where), folder, version, heatmaps, masks)
        log.info("%s", found.sentence(folder))

        # 3. Drift.
        judged = _judge(bundle, folder, params.drift, model, version, PrefectEvents()) if judge_drift else None
    if judged is None:
        return Result(model, version, folder, found, None)
    dataset = promotions.owner_of(registry, model).dataset
    history.refresh(registry, project, dataset)
    return Result(model, version, folder, found, judged, _told(project, dataset, model, version, judged))


def _told(project: Path, dataset: str, model: str, version: str, judged: Judged) -> tuple[str, ...]:
    """Tell people of drift; return what did not reach them."""
    if judged.report.verdict != "drift":
        return ()
    text, since = judged.report.sentence, f"since {judged.since}"
    return notifications.tell(project, News("drifted", dataset, model, text, model, version, (since,)))


def parse(name: str, registry: Registry) -> tuple[str, str]:
    """Return the model and the version that `name` means: MODEL, MODEL@ALIAS or MODEL@NUMBER.

    An alias is what the promotion log says, whatever somebody has moved in MLflow's pages. Raises `ConfigError` for
    another form, or an alias that no version has, `PromotionError` for a champion that was deleted.
    """
    matched = _MODEL.fullmatch(name)
    if not matched:
        raise ConfigError(f"{name}: expected pvqae-DATASET-CLASS@champion, another alias or a version's number")
    model, label = matched[1], matched[2] or "champion"
    version = label if label.isdigit() else promotions.held(registry, model, label)
    if not version:
        way = promotions.way_back(registry, model)
        raise ConfigError(f"{name}: no version of {model} has the alias {label}; {way}")
    return model, version


def _place(root: Path, model: str, where: str) -> Path:
    """Return the folder of what `model` says of a source: one each, so that a rerun finds what is done."""
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", where.rstrip("/").rsplit("/", 1)[-1])[:40].strip("-.") or "images"
    return root / "scores" / model / f"{slug}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"


def bundle_of(root: Path, registry: Registry, model: str, version: str) -> Sealed:
    """Return the files of the registered bundle, checked against its lineage; fetch them once."""
    folder = root / ".pvqae" / "bundles" / f"{model}-{version}"
    expected = registry.version_tags(model, version)["bundle_sha256"]
    if folder.is_dir():
        with suppress(IntegrityError):  # changed since: fetched again
            return version_bundles.check_evaluated(folder, expected)
    with tempfile.TemporaryDirectory() as place, whole_folder(folder) as part:
        fetched = version_bundles.fetch(registry, model, version, Path(place) / "fetched")
        shutil.copytree(fetched, part, dirs_exist_ok=True)
    return version_bundles.check_evaluated(folder, expected)


def _source_of(where: str) -> batch_source.Source:
    """Open the images at s3://bucket/prefix, or in a folder (or a single file) of this machine."""
    if where.startswith("s3://"):
        return _Bucket(landing.open_landing(where), where.rstrip("/"))
    if "://" in where:
        raise ConfigError(f"{where}: expected a folder or s3://bucket/prefix; correct the source")
    return batch_source.Files((Path(where).expanduser(),))


@dataclass(frozen=True)
class _Bucket:
    """The images of a landing area as a source: fetched one at a time, and only what no earlier run has scored."""

    area: Landing
    url: str

    def items(self) -> Iterator[Item]:
        for found in self.area.objects():
            if batch_source.is_image(found.key):
                yield Item(f"{self.url}/{found.key}", f"{found.etag} {found.size} {found.key}")

    def file(self, item: Item, scratch: Path) -> Path:
        etag, size, key = item.identity.split(" ", 2)
        target = scratch / ("image" + Path(key).suffix.lower())
        self.area.fetch(Object(key, etag, int(size)), target)
        return target


def _judge(
    bundle: Sealed, scores: Path, settings: config.Drift, model: str, version: str, notifier: Notifier
) -> Judged:
    """Judge the scores below the folder `scores` by a bundle's files; note it in drift.jsonl; report drift."""
    report = batch_cli.judge(bundle, scores, settings, model)
    facts = bundle.json("config.json", bundles.REPAIR)
    file = scores / "drift.jsonl"
    past = [one for one in shared_files.records(file, dict) if {"verdict", "since"} <= one.keys()]
    since = _began(past, report)
    entry = {
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": version,
        "verdict": report.verdict,
        "since": since,
        "sentence": report.sentence,
        "n": report.comparison.n if report.comparison else None,
        "above": report.comparison.share.above if report.comparison else None,
    }
    write_text(file, "".join(json.dumps(one) + "\n" for one in [*past, entry]))
    if report.verdict == "drift":
        payload = _figures(report, facts["category"], model, version, since)
        notifier.emit(_EVENT, f"pvqae.dataset.{facts['dataset']}", payload)
    return Judged(report, since)


def _began(past: list[dict[str, Any]], report: Report) -> str:
    """Return when the present drift was first seen, over all latest reports without a break; "" without drift."""
    if report.verdict != "drift":
        return ""
    since = report.since
    for entry in reversed(past):
        if entry["verdict"] == "none":
            break
        since = min(since, entry["since"] or since)
    return since


def _figures(report: Report, category: str, model: str, version: str, since: str) -> dict[str, Any]:
    """Return the event's payload: what a program or a person decides by."""
    found = report.comparison
    assert found is not None
    return {
        "class": category,
        "model": model,
        "version": version,
        "since": since,
        "sentence": report.sentence,
        "drifted": list(found.drifted),
        "n": found.n,
        "ks": {f.name: round(f.ks, 4) for f in found.figures},
        "limits": {f.name: round(f.limit, 4) for f in found.figures},
        "above_threshold": found.share.above,
    }


def stream(root: Path, name: str, source: str, options: stream_command.Options) -> int:
    """Score a source as it comes with the version that `name` means now; return the exit code.

    Raises errors of `pvqae.core.errors`, as `stream_command.stream`.
    """
    registry, _ = open_registry(root, config.load(root / "params.yaml").flow.tracking_uri)
    model, version = parse(name, registry)
    tell(f"{model} version {version}")
    batch_cli.prepare()
    detector = bundles.parse(bundle_of(root, registry, model, version))
    bucket = _source_of(source) if source.startswith("s3://") else None
    return stream_command.stream(detector, source.rstrip("/") if bucket else source, options, version, bucket)


@dataclass(frozen=True)
class Exported:
    """What was written, of which version, and on how many images its parity was checked."""

    model: str
    version: str
    alias: str  # that the version was asked for by; "" for a number
    out: Path
    images: int
    difference: float


def export(
    root: Path, name: str, out: str, images: Path | None, tell: Callable[[str], None], form: str = "onnx"
) -> Exported:
    """Write the version that `name` means to `out`, by default exported/MODEL; its card says which it is.

    `images`: a folder for the parity check instead of the class's test images; `form`: of
    `pvqae.export.export.FORMATS`. Raises errors of `pvqae.core.errors`.
    """
    from pvqae.export import export as exports  # imports torch

    registry, _ = open_registry(root, config.load(root / "params.yaml").flow.tracking_uri)
    model, version = parse(name, registry)
    alias = "" if re.search(r"@\d+$", name) else name.partition("@")[2] or "champion"
    owner = promotions.owner_of(registry, model)
    tell(f"{model} version {version}" + f", {alias}" * bool(alias))
    with working("fetching its bundle", tell):
        bundle = bundle_of(root, registry, model, version).folder
    folder = Path(out) if out else root / "exported" / model
    tags = registry.version_tags(model, version)
    kept = {key: tags[key] for key in lineage.REQUIRED if key in tags}
    about = {"model": model, "version": version, "alias": alias, "lineage": kept}
    workspaces = (root, root / ".pvqae" / "runs" / owner.dataset)
    found = exports.run(bundle, folder, images, tell, workspaces=workspaces, registered=about, form=form)
    return Exported(model, version, alias, folder, found.images, float(max(found.score, found.anomaly_map)))
