"""The service that follows an alias: a new champion is fetched, checked and tried, then takes the old one's place.

Whatever goes wrong meanwhile (the registry is down, a bundle is damaged), the version that answers keeps answering.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.adapters.registry import RegistryError, open_registry
from flows.adapters.tracking import Registry
from flows.core import lineage, shared_files
from flows.serving import score
from pvqae.core import config
from pvqae.serving import server
from pvqae.serving.middleware import Metrics
from pvqae.serving.slot import Keep, LoadFailure, Model, ModelSlot, Shadow, load


@dataclass
class _Follower:
    """Looks at an alias every `seconds` and lets `slot` answer by the version that it names.

    A version that did not load is not tried again until the alias has moved; a registry that did not answer is.
    """

    root: Path
    registry: Registry
    name: str  # MODEL, MODEL@ALIAS or MODEL@NUMBER
    slot: ModelSlot
    seconds: float
    rejected: LoadFailure | None = None
    beside: "_Follower | None" = None  # looks whenever this one does

    def run(self, stop: threading.Event) -> None:
        """Look at once, then every `seconds` until `stop` is set."""
        while not stop.is_set():
            self.look()
            if self.beside:
                self.beside.look()
            stop.wait(self.seconds)

    def look(self) -> None:
        """Look at the alias; exchange the model if there is a new version. Raises nothing: the service has to go on."""
        try:
            model, version = score.parse(self.name, self.registry)
        except Exception as error:  # MLflow's clients raise whatever their transport does
            self.slot.keep("", error, "unreachable")
            return
        current = self.slot.current
        if current is not None and current.version == version:
            self.slot.failure = None
        elif self.rejected and self.rejected.version == version:
            self.slot.failure = self.rejected
        else:
            self._exchange(model, version)

    def _exchange(self, model: str, version: str) -> None:
        try:
            self.slot.put(_fetched(self.root, self.registry, model, version))
            self.rejected = None
        except (RegistryError, OSError) as error:
            self.slot.keep(version, error, "unreachable")
        except Exception as error:  # a damaged bundle can fail anywhere in its loading
            self.slot.keep(version, error)
            self.rejected = self.slot.failure


def _fetched(root: Path, registry: Registry, model: str, version: str) -> Model:
    """Load the registered version, its bundle checked against its lineage and tried with one image.

    Raises `RegistryError` where it can't be fetched, `IntegrityError` where it is not what was evaluated.
    """
    tags = registry.version_tags(model, version)
    bundle = score.bundle_of(root, registry, model, version)
    return load(bundle, version, {key: tags[key] for key in lineage.REQUIRED if key in tags})


def _kept(root: Path, name: str) -> Keep:
    """Return what appends both scores of an image to the file for the model in shadow."""
    file = root / ".pvqae" / "shadow" / f"{name.partition('@')[0]}.jsonl"
    return lambda row: shared_files.append(file, [row])


def serve(
    root: Path, name: str, *, host: str | None, port: int | None, token_file: Path | None,
    shadow: str = "", overrides: tuple[str, ...], tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve what `name` means, now and later, until SIGTERM or Ctrl-C.

    `shadow`: a name whose version scores what was answered, too, into .pvqae/shadow/MODEL.jsonl; no answer waits.
    The first version is loaded while the service already listens: /ready says 503 until then.

    Raises `ConfigError` for a name without a version, a host without a token or a port that is taken.
    """
    params = config.params_here(overrides, root / "params.yaml")
    settings, token = server.settings_of(params, host, port), server.token_of(token_file)
    registry, _ = open_registry(root, params.flow.tracking_uri)
    _, version = score.parse(name, registry)
    metrics = Metrics()
    follower = _Follower(root, registry, name, ModelSlot(metrics), settings.poll)
    words = f"serving {name}, now version {version}, looking for another every {settings.poll:g} s"
    if shadow:
        _, version = score.parse(shadow, registry)
        follower.beside = _Follower(root, registry, shadow, ModelSlot(Metrics()), settings.poll)
        follower.slot.shadow = Shadow(follower.beside.slot, _kept(root, shadow))
        words += f", version {version} in shadow"
    server.run(
        follower.slot, metrics, params, settings, token, lambda where: tell(f"{words}, at {where}"), follower.run
    )
