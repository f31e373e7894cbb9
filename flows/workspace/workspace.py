"""Where the stages of a run work, and with which params: the project itself, or a checkout below .pvqae.

A run with the project's own params works in the project; one with other params or another dataset in a workspace of
its own, with the project's code.
"""

import hashlib
import importlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.adapters import dvc_files, git
from flows.core import classes, environment, shared_files
from flows.core.processes import Supervisor
from pvqae.core import config
from pvqae.core.config import Params
from pvqae.core.errors import ConfigError
from pvqae.core.files import write_text
from pvqae.core.layout import Layout

if TYPE_CHECKING:
    from flows.adapters.versioning import Link

# Where and how fast a run happens, not what comes out of it.
NO_RESULT = ("compute", "flow", "gate", "services", "landing", "retrain", "drift", "service", "notify")
# Params that name an entry of a dict, and the dicts. Most of them are beside code that needs torch.
_NAMED = {
    "data.source": "pvqae.datasets.sources.SOURCES",
    "model.backbone": "pvqae.model.backbones.BACKBONES",
    "train.schedule": "pvqae.training.losses.SCHEDULES",
    "train.richness": "pvqae.features.richness.RICHNESS",
    "prior.grouping": "pvqae.samples.classes.GROUPINGS",
    "score.recon": "pvqae.inference.scoring.RECON",
    "score.prior": "pvqae.inference.measures.PRIOR_MEASURES",
    "score.fusion": "pvqae.inference.scoring.FUSIONS",
    "score.image_scale": "pvqae.inference.scoring.SCALES",
    "score.map_scale": "pvqae.inference.scoring.SCALES",
}
_say = partial(print, flush=True)
_SETTINGS = (".dvc/config", ".dvcignore", ".gitignore")  # besides the code, what DVC reads before it reads dvc.yaml


@dataclass(frozen=True)
class Choice:
    """What a run is asked to do. `own`: with the project's params.yaml as it stands, so in the project itself."""

    params: Params
    own: bool


def choose(root: Path, params_file: str = "", overrides: tuple[str, ...] = ()) -> Choice:
    """Read the params of a run. A new data.source without a data.name is another dataset, so it gets another name.

    Raises `ConfigError` for a key or a value that `pvqae.core.config` does not know, or that no stage could work with.
    """
    file = Path(params_file) if params_file else root / "params.yaml"
    params = config.load(file, overrides)
    keys = {item.partition("=")[0].strip() for item in overrides}
    if "data.source" in keys and "data.name" not in keys:
        name = params.data.source
        if name == "folder" and (folder := params.data.root):  # plain folders: by the folder's own name
            name = re.sub(r"[^a-z0-9_-]+", "-", Path(folder).resolve().name.lower()).strip("-_")[:100] or name
        params = config.load(file, (*overrides, f"data.name={name}"))
    if wrong := [*_unknown_names(params), *_contradictions(params)]:
        raise ConfigError("\n".join(wrong))
    return Choice(params, own=not overrides and file.resolve() == (root / "params.yaml").resolve())


def _unknown_names(params: Params) -> Iterator[str]:
    """Yield what is wrong with the values that name an entry of a dict; a dict is only loaded for another value than
    the default.
    """
    for key, path in _NAMED.items():
        section, name = key.split(".")
        found, usual = (getattr(getattr(one, section), name) for one in (params, Params()))
        if found == usual or (key == "model.backbone" and ":" in found):  # a network of another library
            continue
        module, _, table = path.rpartition(".")
        if found not in (known := getattr(importlib.import_module(module), table)):
            yield f"{key}: expected one of {', '.join(known)}; found {found}; correct --set or params.yaml"


def _contradictions(params: Params) -> Iterator[str]:
    """Yield which values can't be together."""
    shares, score = params.data.shares, params.score
    if (total := shares.calibrate + shares.gate + shares.test) >= 1:
        yield f"data.shares: expected a sum below 1, found {total:g}: nothing is left to learn from; lower one"
    if not params.train.steps and score.reads_network:
        yield (
            "train.steps: 0 trains no network, so expected score.recon memory and score.fusion recon, found "
            f"{score.recon} and {score.fusion}; change them, or train.steps"
        )


def _without_root(params: Params) -> Params:
    """Return the params as a workspace and a registered run keep them: without where the images came from."""
    return params.model_copy(update={"data": params.data.model_copy(update={"root": ""})})


def params_sha256(params: Params) -> str:
    """Return the hash of all params that can change a result."""
    values = {
        key: value for key, value in _without_root(params).model_dump(mode="json").items() if key not in NO_RESULT
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def flat_params(params: Params) -> dict[str, str]:
    """Return dotted keys and printed values, as MLflow wants them; addresses without name and password."""
    values = _without_root(params).model_dump(mode="json")

    def at(key: str) -> object:
        found: object = values
        for part in key.split("."):
            assert isinstance(found, dict)
            found = found[part]
        return found

    return {key: environment.shown(json.dumps(at(key))) for key in config.known_keys()}


@dataclass(frozen=True)
class Workspace:
    """`path` is where the stages run, `root` the project; the same folder when the project's own params are used."""

    root: Path
    path: Path
    params: Params

    @property
    def layout(self) -> Layout:
        """The files of the dataset in this workspace."""
        return Layout(self.path, self.params.data.name)

    @property
    def params_text(self) -> str:
        """The text of its params.yaml, which says nothing of where the images came from."""
        return config.dump(_without_root(self.params))

    @property
    def own(self) -> bool:
        """Whether the stages run in the project itself."""
        return self.path == self.root

    @property
    def dvc_file(self) -> Path:
        """The .dvc file of the raw dataset; a dataset made on the spot has none."""
        return self.layout.raw.parent / f"{self.params.data.name}.dvc"

    def bring_dvc_file(self) -> bool:
        """Copy the dataset's .dvc file from the project; return whether the files themselves have to be checked out."""
        source = self.root / self.dvc_file.relative_to(self.path)
        if self.own or not source.exists():
            return False
        same = self.dvc_file.exists() and self.dvc_file.read_bytes() == source.read_bytes()
        write_text(self.dvc_file, source.read_text("utf-8"))
        return not same or not self.layout.raw.is_dir()

    def placed(self, text: str) -> str:
        """Return a text with the tables that it names where they are below the project: a run with --set has its own
        folder.
        """
        for file in (self.layout.quarantine, self.layout.ignored):
            text = text.replace(file.relative_to(self.path).as_posix(), file.relative_to(self.root).as_posix())
        return text

    def publish_reports(self) -> Path:
        """Put the reports where people look, replaced whole; return the project's folder of them."""
        target = Layout(self.root, self.params.data.name).reports
        if self.own or not self.layout.reports.is_dir():
            return target
        new, old = (target.with_name(f".{target.name}.{side}") for side in ("new", "old"))
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(self.layout.reports, new, copy_function=_copy_writable)
        for file in (new / "validation.json", new / "data_docs" / "index.html"):
            if file.is_file():
                write_text(file, self.placed(file.read_text("utf-8")))
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        return target


def lock_file(root: Path, dataset: str) -> Path:
    """Return the file whose lock a flow holds while it works on the dataset."""
    return root / ".pvqae" / "locks" / f"{dataset}.lock"


@contextmanager
def quiet(root: Path) -> Iterator[list[Path]]:
    """Hold every lock of the project's flows, so that none starts meanwhile; yield the files that others hold."""
    with ExitStack() as stack:
        files = sorted((root / ".pvqae" / "locks").glob("*.lock"))
        yield [file for file in files if not stack.enter_context(shared_files.tried(file))]


@contextmanager
def working_on(root: Path, dataset: str, say: Callable[[str], object] = _say) -> Iterator[Supervisor]:
    """Hold the dataset's lock, and yield a supervisor whose commands inherit it; `say` is told of a wait, once."""
    waiting = f"a flow, or what is left of a killed one, works on {dataset}: waiting for its end"
    with shared_files.held(lock_file(root, dataset), lambda: say(waiting)) as held, Supervisor([held]) as supervisor:
        yield supervisor


_within: ContextVar[bool] = ContextVar("within a flow that tells of its failure", default=False)


@dataclass
class Attempt:
    """A flow that may fail: which, of which dataset, as soon as that is known."""

    flow: str
    dataset: str = ""


@contextmanager
def failures_told(root: Path, flow: str, dataset: str = "") -> Iterator[Attempt]:
    """Tell people of an error that ends the block, once: a flow that another one called leaves that to its caller."""
    attempt = Attempt(flow, dataset)
    if _within.get():
        yield attempt
        return
    token = _within.set(True)
    try:
        yield attempt
    except Exception as error:
        from flows.adapters import notifications  # mail and the like: not for a flow that goes well

        notifications.failed(root, flow, attempt.dataset, error)
        raise
    finally:
        _within.reset(token)


def prepare(root: Path, choice: Choice) -> Workspace:
    """Return the workspace of `choice`, with the project's present code and the effective params in it.

    The caller holds the dataset's lock. Raises `ConfigError` when the project has no commit to check out.
    """
    if choice.own:
        return Workspace(root, root, choice.params)
    space = Workspace(root, root / ".pvqae" / "runs" / choice.params.data.name, choice.params)
    _check_out(space)
    _sync_code(space)
    dvc_files.share(root, space.path)
    write_text(space.path / "params.yaml", space.params_text)
    return space


def _copy_writable(source: str, target: str) -> None:
    """Copy a file that DVC keeps as a read-only link into its cache; the copy is for people to change."""
    shutil.copyfile(source, target)
    Path(target).chmod(0o644)


def _check_out(space: Workspace) -> None:
    """Put the files of HEAD there. A dvc.lock outlives the refresh: it says what this workspace has made."""
    head = git.commit_of(space.root, "HEAD")
    if not head:
        repair = f"cd {shlex.quote(str(space.root))} && git add -A . && git commit -m start"
        raise ConfigError(f"{space.root}: --set, --params and other datasets need a first commit; run: {repair}")
    lock = space.path / dvc_files.LOCK
    made = lock.read_bytes() if lock.exists() else None
    git.check_out(space.root, space.path, head, again=False)
    if made is not None:
        lock.write_bytes(made)
    elif classes.read(space.root / "data" / "classes.yaml").get("dataset", "") != space.params.data.name:
        lock.unlink(missing_ok=True)  # another dataset's


def _sync_code(space: Workspace) -> None:
    """Put the project's present code over that of the commit: what runs is what DVC hashes and the report says."""
    wanted = [*git.code_files(space.root), *(name for name in _SETTINGS if (space.root / name).is_file())]
    for name in set(git.code_files(space.path)) - set(wanted):
        (space.path / name).unlink()
    for name in wanted:
        source, target = space.root / name, space.path / name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def add_dataset(root: Path, name: str, source_root: Path, source: str = "", link: "Link" = "copy") -> str:
    """Version `source_root` as data/raw/<name>; return sentences that say what happened and which files nothing uses.

    A layout that is known, from `source` or from the project's params.yaml where it names this dataset, is checked
    before anything is copied. In the latter case data/classes.yaml is written, too.
    Raises `ConfigError` and `DataError`.
    """
    from flows.adapters.versioning import Dvc

    params = config.load(root / "params.yaml")
    config.parse({"data": {"name": name}}, where=f"dataset name {name}")
    if name in classes.read(root / "data" / "classes.yaml").get("made", {}):
        raise ConfigError(f"{name} is the name of a dataset that the project makes itself; choose another name")
    own = params.data.name == name
    told = _told(source_root.expanduser(), source or params.data.source * own, params.data if own else config.Data())
    with working_on(root, name) as supervisor:
        dvc = Dvc(root, supervisor)
        new = dvc.add_dataset(name, source_root.expanduser(), link)
        version = dvc.data_hash(name)
        if own:
            layout = Layout(root, name)
            classes.write(layout.classes_file, classes.classes(params, classes.wanted(params, layout.raw)))
    did = "new version" if new else "unchanged, version"
    return "\n".join([f"data/raw/{name}: {did} {version}", *told, f"commit it with: git add data/raw/{name}.dvc"])


def _told(root: Path, source: str, data: config.Data) -> list[str]:
    """Say what a dataset has and which of its files nothing uses; nothing where its layout is not known."""
    from pvqae.datasets import leftover, sources

    if not source or not root.is_dir():
        return []
    found, left = sources.survey(source, root, data.categories, data)
    warnings = [f"warning: {text}" for text in leftover.told(left)]
    return [leftover.folders(found, root), leftover.total(left), *warnings]
