"""Adapters that work in memory, for tests of what is built on them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.adapters.landing import LandingError, Object
from flows.adapters.prefect_client import Crash, State
from flows.adapters.tracking import FLOW, Flown, Listed, Metric, Promotion, RegistryError
from flows.adapters.versioning import Link, OnLine, Outcome, StageFailed, ignore
from flows.core.lineage import Owner
from pvqae.core.errors import PvqaeError


@dataclass
class FakeVersioning:
    """Stands for `versioning.Dvc`: stages are names; `changed` ones run, and those in `failing` fail with that code."""

    changed: set[str] = field(default_factory=set)
    failing: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    listings: dict[str, frozenset[str]] = field(default_factory=dict)  # by data hash; "" is what is there now
    pushed: int = 0

    def status(self) -> frozenset[str]:
        return frozenset(self.changed)

    def repro(self, stage: str, on_line: OnLine = ignore) -> Outcome:
        self.asked.append(stage)
        if stage in self.failing:
            raise StageFailed(stage, self.failing[stage], "failed on purpose")
        if stage not in self.changed:
            return "unchanged"
        on_line(f"Running stage '{stage}'")
        self.changed.discard(stage)
        self.ran.append(stage)
        return "ran"

    def add_dataset(self, name: str, source: Path, link: Link = "copy") -> bool:
        before, listing = self.hashes.get(name), sorted(p.name for p in source.rglob("*") if p.is_file())
        self.hashes[name] = str(hash(tuple(listing)))
        return self.hashes[name] != before

    def version_dataset(self, name: str) -> bool:
        before = self.hashes.get(name)
        listing = sorted(self.listings.get("", ()))
        self.hashes[name] = hashlib.md5(str(listing).encode(), usedforsecurity=False).hexdigest() + ".dir"
        self.listings[self.hashes[name]] = frozenset(listing)
        return self.hashes[name] != before

    def listing(self, data_hash: str) -> frozenset[str] | None:
        return self.listings.get(data_hash)

    def checkout(self, name: str) -> None:
        assert name in self.hashes

    def push(self) -> None:
        self.pushed += 1

    def data_hash(self, name: str) -> str:
        return self.hashes.get(name, "")


@dataclass
class FakeRun:
    """A run of `FakeRegistry`."""

    name: str
    parent: str | None
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    inputs: list[tuple[str, str]] = field(default_factory=list)
    status: str = "RUNNING"
    experiment: str = ""
    when: str = "2026-01-01T00:00:00Z"


@dataclass
class FakeRegistry:
    """Stands for `registry.Mlflow`."""

    runs: dict[str, FakeRun] = field(default_factory=dict)
    versions: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    log: dict[str, list[Promotion]] = field(default_factory=dict)
    bundles: dict[str, dict[str, bytes]] = field(default_factory=dict)  # model → file → content
    sources: dict[tuple[str, str], str] = field(default_factory=dict)  # (name, version) → model
    texts: dict[tuple[str, str], str] = field(default_factory=dict)  # descriptions of versions
    made: dict[tuple[str, str], str] = field(default_factory=dict)  # (name, version) → when, where a test says so
    owned: dict[str, Owner] = field(default_factory=dict)  # model → whose it is
    folders: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)  # (run, folder) → file → content
    deleted: set[tuple[str, str]] = field(default_factory=set)  # (name, version)
    noted: dict[str, dict[str, str]] = field(default_factory=dict)  # model → notes

    def start(self, experiment: str, name: str, parent: str | None = None, tags: Mapping[str, str] = {}) -> str:
        run = f"run-{len(self.runs)}"
        self.runs[run] = FakeRun(name, parent, dict(tags), experiment=experiment)
        return run

    def finish(self, run: str, status: str = "FINISHED") -> None:
        self.runs[run].status = status

    def end_open(self, experiment: str, tags: Mapping[str, str]) -> None:
        dead = {
            name
            for name, run in self.runs.items()
            if run.status == "RUNNING" and all(run.tags.get(key) == tags[key] for key in tags)
        }
        for name, run in self.runs.items():  # in the order in which they were started
            if name in dead or (run.parent in dead and run.status == "RUNNING"):
                dead.add(name)
                run.status = "KILLED"

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        self.runs[run].tags.update(tags)

    def params(self, run: str, values: Mapping[str, str]) -> None:
        self.runs[run].params.update(values)

    def metrics(self, run: str, values: Sequence[Metric]) -> None:
        self.runs[run].metrics.extend(values)

    def artifact(self, run: str, path: Path, folder: str = "") -> None:
        self.runs[run].artifacts.append(f"{folder}/{path.name}".lstrip("/"))
        if path.is_dir() and not folder:
            self.folders[run, path.name] = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}

    def dataset(self, run: str, name: str, digest: str, source: str) -> None:
        self.runs[run].inputs.append((name, digest))

    @contextmanager
    def monitored(self, run: str) -> Iterator[None]:
        yield

    def log_model(self, run: str, bundle: Path) -> str:
        self.artifact(run, bundle)
        self.bundles[f"models:/{run}"] = {file.name: file.read_bytes() for file in bundle.iterdir()}
        return f"models:/{run}"

    def register(
        self, name: str, run: str, model: str, tags: Mapping[str, str], owner: Owner | None = None, text: str = ""
    ) -> str:
        if owner and self.owned.setdefault(name, owner) != owner:
            raise PvqaeError(f"{name} is {self.owned[name]}, not {owner}")
        self.versions.setdefault(name, []).append(dict(tags))
        version = str(len(self.versions[name]))
        self.sources[name, version], self.texts[name, version] = model, text
        return version

    def find(self, name: str, tags: Mapping[str, str]) -> str | None:
        versions = list(enumerate(self.versions.get(name, []), start=1))
        found = [str(number) for number, have in versions if all(have.get(key) == tags[key] for key in tags)]
        return next((number for number in reversed(found) if self.exists(name, number)), None)

    def versions_of(self, name: str) -> list[Listed]:
        numbers = [str(number) for number, _ in enumerate(self.versions.get(name, ()), start=1)]
        return [
            Listed(number, self.made.get((name, number), "2026-01-01T00:00:00Z"), self.version_tags(name, number))
            for number in numbers
            if self.exists(name, number)
        ]

    def flows_of(self, experiment: str) -> list[Flown]:
        whole = (run for run in self.runs.values() if FLOW in run.tags and run.experiment == experiment)
        return [Flown(run.when, run.status, run.tags) for run in whole]

    def version_tags(self, name: str, version: str) -> dict[str, str]:
        if not self.exists(name, version):
            raise RegistryError(f"{name} version {version}: not in the registry")
        return self.versions[name][int(version) - 1]

    def exists(self, name: str, version: str) -> bool:
        return 0 < int(version) <= len(self.versions.get(name, ())) and (name, version) not in self.deleted

    def delete_version(self, name: str, version: str) -> None:
        """Do what a person may do on MLflow's page; its aliases go with it."""
        self.deleted.add((name, version))
        self.aliases = {key: to for key, to in self.aliases.items() if (key[0], to) != (name, version)}

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        self.versions[name][int(version) - 1].update(tags)

    def owners(self, prefix: str) -> dict[str, Owner | None]:
        return {name: self.owned.get(name) for name in sorted(self.versions) if name.startswith(prefix)}

    def rename(self, name: str, to: str, owner: Owner) -> None:
        if to in self.versions:
            raise RegistryError(f"{to} is there already")
        self.versions[to] = self.versions.pop(name)
        self.log[to], self.noted[to] = self.log.pop(name, []), self.noted.pop(name, {})
        self.owned.pop(name, None)
        self.aliases = {(to if key[0] == name else key[0], key[1]): version for key, version in self.aliases.items()}
        self.sources = {(to if key[0] == name else key[0], key[1]): model for key, model in self.sources.items()}
        self.owned[to] = owner

    def note(self, name: str, key: str, value: str) -> None:
        self.noted.setdefault(name, {})[key] = value
        if not value:
            del self.noted[name][key]

    def notes(self, name: str) -> dict[str, str]:
        return dict(self.noted.get(name, {}))

    def download(self, name: str, version: str, out: Path) -> Path:
        bundle = out / "artifacts" / "bundle"
        bundle.mkdir(parents=True)
        for file, content in self.bundles[self.sources[name, version]].items():
            (bundle / file).write_bytes(content)
        return bundle

    def fetch(self, run: str, folder: str, out: Path) -> Path | None:
        files = self.folders.get((run, folder))
        if files is None:
            return None
        (out / folder).mkdir(parents=True)
        for file, content in files.items():
            (out / folder / file).write_bytes(content)
        return out / folder

    def alias(self, name: str, alias: str) -> str | None:
        return self.aliases.get((name, alias))

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self.version_tags(name, version)
        self.aliases[name, alias] = version

    def promote(self, name: str, alias: str, entry: Promotion) -> None:
        self.log.setdefault(name, []).append(entry)
        self.set_alias(name, alias, entry.to_version)

    def promotions(self, name: str) -> tuple[Promotion, ...]:
        return tuple(self.log.get(name, []))

    def astray(self, name: str) -> str:
        return ""


@dataclass
class FakeLanding:
    """Stands for `landing.Bucket`: key → bytes; objects in `failing` do not arrive, of a `dead` one nothing does."""

    content: dict[str, bytes] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    dead: bool = False
    fetched: list[str] = field(default_factory=list)

    def objects(self) -> Iterator[Object]:
        if self.dead:
            raise LandingError("dead on purpose")
        for key, data in sorted(self.content.items()):
            yield Object(key, hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data))

    def fetch(self, item: Object, target: Path) -> None:
        self.fetched.append(item.key)
        if self.dead or item.key in self.failing:
            raise LandingError(f"{item.key}: failed on purpose")
        target.write_bytes(self.content[item.key])


@dataclass
class FakePool:
    """Stands for `prefect_client.PrefectPool`: each asked run goes through `course`, one state for each look."""

    course: list[State] = field(default_factory=lambda: [State("waiting"), State("running"), State("done")])
    online: int = 1
    asked: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    looks: dict[str, int] = field(default_factory=dict)

    def ask(self, parameters: Mapping[str, Any], key: str, title: str) -> str:
        self.asked.append(dict(parameters))
        return f"run-{len(self.asked)}"

    def state(self, run: str) -> State:
        look = self.looks[run] = self.looks.get(run, -1) + 1
        return self.course[min(look, len(self.course) - 1)]

    def cancel(self, run: str) -> None:
        self.cancelled.append(run)

    def workers(self) -> int:
        return self.online


@dataclass
class FakeNotifier:
    """Stands for `prefect_client.PrefectEvents`: keeps what was sent."""

    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def emit(self, event: str, resource: str, payload: Mapping[str, Any]) -> None:
        self.events.append((event, resource, dict(payload)))


@dataclass
class FakeCrashes:
    """Stands for `prefect_client.HttpCrashes`: what crashed, and what was asked for again."""

    crashed: list[Crash] = field(default_factory=list)
    asked: list[Crash] = field(default_factory=list)
    ill: bool = False

    def unanswered(self) -> list[Crash]:
        if self.ill:
            raise ConnectionError("the server is away")
        return [crash for crash in self.crashed if crash not in self.asked]

    def ask_again(self, crash: Crash) -> None:
        self.asked.append(crash)


@dataclass
class FakeProbe:
    """Stands for `probes.ServerProbe`: addresses that answer, pools, champions, and what is wrong with the remote."""

    up: tuple[str, ...] = ()
    known_pools: dict[str, int] = field(default_factory=dict)
    known_champions: dict[str, str] = field(default_factory=dict)
    known_retired: frozenset[str] = frozenset()
    wrong: str = ""

    def answers(self, url: str) -> bool:
        return url.startswith(self.up)

    def pools(self, api: str) -> dict[str, int]:
        return self.known_pools

    def champions(self, uri: str) -> dict[str, str]:
        return self.known_champions

    def retired(self, uri: str) -> frozenset[str]:
        return self.known_retired

    def trouble(self, remote: Mapping[str, str]) -> str:
        return self.wrong
