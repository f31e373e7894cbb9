"""MLflow: runs, models from code without pickle, versions, aliases and the promotion log."""

import datetime
import hashlib
import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import mlflow
from mlflow import entities
from mlflow.exceptions import MlflowException

from flows.adapters.mlflow_client import Client
from flows.adapters.tracking import FLOW, Flown, Listed, Metric, Promotion, Registry, database_of, own_database
from flows.adapters.tracking import RegistryError as RegistryError
from flows.core import lineage
from flows.core.lineage import MODEL, OURS, Owner

_BATCH = 1000  # metrics per request, MLflow's limit
# Characters of a value that MLflow keeps; the rest of a longer one it cuts off, or refuses the whole. A model's tag is
# checked for 100,000, but its column on a server has 5,000.
_PARAM, _TAG, _VERSION_TAG, _MODEL_TAG = 6000, 8000, 100_000, 5000
_PROMOTION = "promotion."
_DATASET, _CATEGORY = "dataset", "class"  # tags of a registered model: whose it is
_MISSING = "RESOURCE_DOES_NOT_EXIST"


class Mlflow:
    """The tracking server or database at `uri`.

    `artifacts`: root of a new experiment's files, absolute (or the server's own when None); MLflow stores absolute
    paths, and a relative one would depend on where a flow started.
    """

    def __init__(self, uri: str, artifacts: Path | None = None) -> None:
        self._client, self._uri = Client(uri), uri
        self._artifacts = artifacts

    def start(self, experiment: str, name: str, parent: str | None = None, tags: Mapping[str, str] = {}) -> str:
        """Open a run, below `parent` if given; return its id."""
        lineage = {"mlflow.parentRunId": parent} if parent else {}
        short = {key: value for key, value in tags.items() if len(value) <= _TAG}
        found = self._client.create_run(self._experiment(experiment), run_name=name, tags={**short, **lineage})
        run = str(found.info.run_id)
        if len(short) < len(tags):
            self.tag(run, tags)
        return run

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found:
            if found.lifecycle_stage == "deleted":  # no other can have its name until it is deleted for good
                print(f"MLflow's experiment {name} was deleted: it is restored, with its runs", flush=True)
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        location = (self._artifacts / name).as_uri() if self._artifacts else None
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except RegistryError:  # another flow made it meanwhile
            found = self._client.get_experiment_by_name(name)
            if not found:
                raise
            return str(found.experiment_id)

    def finish(self, run: str, status: str = "FINISHED") -> None:
        """End a run. `status`: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run, status)

    def end_open(self, experiment: str, tags: Mapping[str, str]) -> None:
        """Mark every run with all of `tags` that was never ended, and those below it, as KILLED."""
        found = self._client.get_experiment_by_name(experiment)
        every = self._open(found.experiment_id, tags) if found else []
        for run in every:  # grows
            every += self._open(found.experiment_id, {"mlflow.parentRunId": run})
        for run in reversed(every):  # a run above goes last: else those below it would not be found again
            self.finish(run, "KILLED")

    def _open(self, experiment_id: str, tags: Mapping[str, str]) -> list[str]:
        where = " and ".join(["attributes.status = 'RUNNING'", *(f"tags.`{key}` = '{tags[key]}'" for key in tags)])
        return [str(run.info.run_id) for run in self._client.search_runs([experiment_id], where)]

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        kept = self._fitting(run, "tags", tags, _TAG)
        self._client.log_batch(run, tags=[entities.RunTag(key, value) for key, value in kept.items()])

    def params(self, run: str, values: Mapping[str, str]) -> None:
        kept = self._fitting(run, "params", values, _PARAM)
        self._client.log_batch(run, params=[entities.Param(key, value) for key, value in kept.items()])

    def _fitting(self, run: str, folder: str, values: Mapping[str, str], most: int) -> dict[str, str]:
        """Return `values` as MLflow keeps them; a longer one becomes an artifact of `run`, and the value says where."""
        kept = dict(values)
        for key, value in ((key, value) for key, value in values.items() if len(value) > most):
            name = f"{hashlib.sha256(value.encode()).hexdigest()[:16]}.txt"
            self._client.log_text(run, value, f"{folder}/{key}/{name}")
            kept[key] = f"{len(value)} characters: artifact {folder}/{key}/{name} of run {run}"
        return kept

    def metrics(self, run: str, values: Sequence[Metric]) -> None:
        now = int(time.time() * 1000)
        rows = [entities.Metric(item.key, item.value, now, item.step) for item in values]
        for start in range(0, len(rows), _BATCH):
            self._client.log_batch(run, metrics=rows[start : start + _BATCH])

    def artifact(self, run: str, path: Path, folder: str = "") -> None:
        """Log a file, or a folder with all in it."""
        if path.is_dir():
            self._client.log_artifacts(run, str(path), "/".join(filter(None, (folder, path.name))))
        else:
            self._client.log_artifact(run, str(path), folder or None)

    def dataset(self, run: str, name: str, digest: str, source: str) -> None:
        """Log the data that a run read: a name and a hash, of which MLflow keeps 36 characters."""
        data = entities.Dataset(name, digest[:36], "local", json.dumps({"uri": source, "sha256": digest}))
        tags = [entities.InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(run, [entities.DatasetInput(data, tags)])

    @contextmanager
    def monitored(self, run: str) -> Iterator[None]:
        """Log processor, memory and GPU use to `run` meanwhile."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor: Any = cast(Any, SystemMetricsMonitor)(run, sampling_interval=2)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_model(self, run: str, bundle: Path) -> str:
        """Log a self-contained bundle as a model of `run`; return the model's address."""
        return self._client.log_bundle(run, bundle)

    def register(
        self, name: str, run: str, model: str, tags: Mapping[str, str], owner: Owner | None = None, text: str = ""
    ) -> str:
        """Make a new version of `name`, with its tags from the start: a kill leaves no version without lineage.

        `owner`: whose the model is from now on; `text`: its description for people. Raises `RegistryError` where it
        is another one's.
        """
        whose = {_DATASET: owner.dataset, _CATEGORY: owner.category} if owner else {}
        try:
            self._client.create_registered_model(name, tags=whose)
        except RegistryError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
            known = self._owner(self._client.get_registered_model(name))
            if owner and known not in (owner, None):
                raise RegistryError(f"{name} is that of {known}, not of {owner}; rename one of them") from None
            for key, value in whose.items():
                self._client.set_registered_model_tag(name, key, value)
        logged = model.rpartition("/")[2] if model.startswith("models:/") else None
        kept = self._fitting(run, "tags", tags, _VERSION_TAG)
        created = self._client.create_model_version(
            name, source=model, run_id=run, tags=kept, description=text or None, model_id=logged
        )
        return str(created.version)

    def find(self, name: str, tags: Mapping[str, str]) -> str | None:
        """Return the newest version of `name` with all of `tags`, None when there is none."""
        quote = '"' if "'" in name else "'"  # a person may have renamed ours to anything
        if quote in name:
            return None
        conditions = [f"name = {quote}{name}{quote}", *(f"tags.`{key}` = '{value}'" for key, value in tags.items())]
        found = self._client.search_model_versions(" and ".join(conditions))
        return max((str(version.version) for version in found), key=int, default=None)

    def versions_of(self, name: str) -> list[Listed]:
        """Return every version of `name` that was not deleted, by its number."""
        if "'" in name:  # none of ours
            return []
        found = self._pages(lambda token: self._client.search_model_versions(f"name = '{name}'", page_token=token))
        listed = [Listed(str(one.version), _utc(one.creation_timestamp), dict(one.tags)) for one in found]
        return sorted(listed, key=lambda one: int(one.number))

    def flows_of(self, experiment: str) -> list[Flown]:
        """Return the runs of whole flows of an experiment, oldest first; none where there is no such experiment."""
        if not (known := self._client.get_experiment_by_name(experiment)):
            return []
        where, order = f"tags.`{FLOW}` != ''", ["attributes.start_time ASC"]
        ids = [known.experiment_id]
        found = self._pages(lambda token: self._client.search_runs(ids, where, order_by=order, page_token=token))
        return [Flown(_utc(run.info.start_time), str(run.info.status), dict(run.data.tags)) for run in found]

    @staticmethod
    def _pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
        page = ask(None)
        yield from page
        while page.token:
            page = ask(page.token)
            yield from page

    def version_tags(self, name: str, version: str) -> dict[str, str]:
        """Return the tags of a version. Raises `RegistryError` when there is no such version."""
        try:
            return dict(self._client.get_model_version(name, version).tags)
        except RegistryError as error:
            raise RegistryError(f"{name} version {version}: not in the registry: {error}", error.code) from None

    def exists(self, name: str, version: str) -> bool:
        try:
            self._client.get_model_version(name, version)
        except RegistryError as error:
            if error.code != _MISSING:
                raise
            return False
        return True

    def astray(self, name: str) -> str:
        """Return what renames a registered model back to `name`; "" where none was renamed."""
        for other, owner in self.owners("").items():
            ours = owner and other != name and lineage.model_name(owner.dataset, owner.category) == name
            if ours and self.promotions(other):
                call = f"from mlflow import MlflowClient as C; C({self._uri!r}).rename_registered_model"
                python = f"{call}({other!r}, {name!r})"
                return (
                    f"it was renamed to {other}; rename it back: {shlex.quote(sys.executable)} -c {shlex.quote(python)}"
                )
        return ""

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        if any(len(value) > _VERSION_TAG for value in tags.values()):
            tags = self._fitting(self._run_of(name, version), "tags", tags, _VERSION_TAG)
        for key, value in tags.items():
            self._client.set_model_version_tag(name, version, key, value)

    def _run_of(self, name: str, version: str) -> str:
        return str(self._client.get_model_version(name, version).run_id)

    def owners(self, prefix: str) -> dict[str, Owner | None]:
        """Return the registered models that begin with `prefix`, sorted, and whose each is.

        None where neither its tags nor its runs say; without a prefix also models that a person has renamed.
        """
        found = {str(model.name): self._owner(model) for model in self._registered(prefix)}
        return dict(sorted(found.items()))

    def _registered(self, prefix: str) -> Iterator[Any]:
        """Compare names here: in the registry's search `_` and `%` stand for others, and on some case is one."""
        page: Any = None
        while page is None or page.token:
            wanted = f"name LIKE '{OURS}%'" if prefix else None
            page = self._client.search_registered_models(wanted, page_token=page and page.token)
            ours = (model for model in page if not prefix or MODEL.fullmatch(model.name))
            yield from (model for model in ours if model.name.startswith(prefix))

    def _owner(self, model: Any) -> Owner | None:
        """Return whose a model is by its tags; without them by its name, if that says, or by its runs."""
        if {_DATASET, _CATEGORY} <= set(model.tags):
            return Owner(model.tags[_DATASET], model.tags[_CATEGORY])
        possible = Owner.possible(model.name) if MODEL.fullmatch(model.name) else []
        if len(possible) == 1:
            return possible[0]
        for version in model.latest_versions:
            with suppress(RegistryError):  # deleted by a person
                run = self._client.get_run(version.run_id)
                dataset = str(self._client.get_experiment(run.info.experiment_id).name).removeprefix(OURS)
                if found := [owner for owner in possible if owner.dataset == dataset]:
                    return found[0]
                if not possible and "stage" in run.data.tags:  # renamed; a class's run names its stage
                    return Owner(dataset, run.data.tags["stage"])
        return None

    def rename(self, name: str, to: str, owner: Owner) -> None:
        """Give a model another name and owner; versions, aliases and the promotion log go along.

        Raises `RegistryError` where there is a model of that name.
        """
        self._client.rename_registered_model(name, to)
        for key, value in {_DATASET: owner.dataset, _CATEGORY: owner.category}.items():
            self._client.set_registered_model_tag(to, key, value)

    def note(self, name: str, key: str, value: str) -> None:
        """Keep a text with a model under `key`; "" removes it."""
        if value:
            self._client.set_registered_model_tag(name, lineage.NOTE + key, value[:_MODEL_TAG])
        elif key in self.notes(name):
            self._client.delete_registered_model_tag(name, lineage.NOTE + key)

    def notes(self, name: str) -> dict[str, str]:
        """Return what `note` kept with a model; nothing where there is none."""
        try:
            tags: dict[str, str] = self._client.get_registered_model(name).tags
        except RegistryError as error:
            if error.code != _MISSING:
                raise
            return {}
        return {key.removeprefix(lineage.NOTE): value for key, value in tags.items() if key.startswith(lineage.NOTE)}

    def download(self, name: str, version: str, out: Path) -> Path:
        """Return the version's bundle, in a folder below `out`, its hashes unchecked. Raises `RegistryError`."""
        try:
            found = mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(out))
            bundle = Path(found) / "artifacts" / "bundle"
            if not bundle.is_dir():
                raise FileNotFoundError(f"no bundle in {self._client.get_model_version_download_uri(name, version)}")
        except (MlflowException, RegistryError, OSError) as error:
            raise RegistryError(
                f"{name} version {version}: its files can't be fetched: {error}; see that the artifacts' store answers"
            ) from None
        return bundle

    def fetch(self, run: str, folder: str, out: Path) -> Path | None:
        """Return a folder of a run's artifacts, below `out`; None where the run has none of that name."""
        try:
            listed = self._client.list_artifacts(run, folder)
        except RegistryError as error:  # the run was deleted for good
            if error.code != _MISSING:
                raise
            return None
        if not listed:
            return None
        out.mkdir(parents=True, exist_ok=True)
        return Path(self._client.download_artifacts(run, folder, str(out)))

    def alias(self, name: str, alias: str) -> str | None:
        """Return the version that `alias` names, None when the alias or the model does not exist."""
        try:
            return str(self._client.get_model_version_by_alias(name, alias).version)
        except RegistryError as error:
            # A missing alias is INVALID_PARAMETER_VALUE, a missing model RESOURCE_DOES_NOT_EXIST.
            if error.code not in ("INVALID_PARAMETER_VALUE", _MISSING):
                raise
            return None

    def promote(self, name: str, alias: str, entry: Promotion) -> None:
        """Log a move, then move the alias: after a kill between them the log shows an intent, never a silent move.

        The log is kept as tags of the registered model, each under a key of its own that is never written again. So
        it is kept with the aliases it explains, is shared by all machines of a tracking server and saved with it; a
        file below .pvqae would know only one machine's moves.
        """
        key = f"{_PROMOTION}{entry.when}.{uuid.uuid4().hex[:8]}"
        text = json.dumps(asdict(entry))
        if len(text) > _MODEL_TAG:
            (told,) = self._fitting(self._run_of(name, entry.to_version), "promotions", {key: text}, 0).values()
            first = "".join(entry.reasons[:1])[:1000]
            text = json.dumps(asdict(replace(entry, reasons=(f"{first} ... ({told})",))))
        self._client.set_registered_model_tag(name, key, text)
        self.set_alias(name, alias, entry.to_version)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Move an alias without an entry in the log: only to make it agree with the log."""
        self._client.set_registered_model_alias(name, alias, version)

    def promotions(self, name: str) -> tuple[Promotion, ...]:
        """Return the log of `name`, oldest first."""
        try:
            tags: dict[str, str] = self._client.get_registered_model(name).tags
        except RegistryError as error:
            if error.code != _MISSING:
                raise
            return ()
        return tuple(_promotion(json.loads(tags[key])) for key in sorted(tags) if key.startswith(_PROMOTION))


def _utc(milliseconds: int) -> str:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _promotion(values: dict[str, Any]) -> Promotion:
    return Promotion(**{**values, "reasons": tuple(values["reasons"])})


def open_registry(project: Path, setting: str) -> tuple[Registry, str]:
    """Open MLflow where the environment or params say, else the project's own database; return it and its address."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "") or ("" if setting == "auto" else setting)
    if named and named != database_of(project):  # which MLflow itself puts into the environment once it is opened
        return Mlflow(named), named
    uri = own_database(project)
    return Mlflow(uri, project / ".pvqae" / "mlflow" / "artifacts"), uri
