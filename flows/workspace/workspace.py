"""Where the stages of a run work: the project itself, or a checkout below .pvqae for other params or data."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from flows.adapters import dvc_files, git
from flows.core import classes
from flows.workspace import choices
from pvqae.core import config
from pvqae.core.config import Params
from pvqae.core.errors import ConfigError
from pvqae.core.files import write_text
from pvqae.core.layout import Layout

# Beside the code, what DVC reads before it reads dvc.yaml.
SETTINGS = (".dvc/config", ".dvcignore", ".gitignore")
DVC_LOCK = "dvc.lock"


@dataclass(frozen=True)
class Workspace:
    """`path` is where the stages run, `root` the project; the same folder when the project's own params are used."""

    root: Path
    path: Path
    params: Params

    @property
    def layout(self) -> Layout:
        return Layout(self.path, self.params.data.name)

    @property
    def own(self) -> bool:
        return self.path == self.root

    @property
    def dvc_file(self) -> Path:
        """Of the raw dataset; a dataset made on the spot has none."""
        return self.layout.raw.parent / f"{self.params.data.name}.dvc"


def lock_file(root: Path, dataset: str) -> Path:
    return root / ".pvqae" / "locks" / f"{dataset}.lock"


def prepare(root: Path, choice: choices.Choice) -> Workspace:
    """The workspace of `choice`, with the project's present code and the effective params in it.

    The caller holds the dataset's lock. Raises `ConfigError` when the project has no commit to check out.
    """
    if choice.own:
        return Workspace(root, root, choice.params)
    space = Workspace(root, root / ".pvqae" / "runs" / choice.params.data.name, choice.params)
    _check_out(space)
    _sync_code(space)
    dvc_files.share(root, space.path)
    write_text(space.path / "params.yaml", config.dump(choices.without_root(choice.params)))
    return space


def bring_dvc_file(space: Workspace) -> bool:
    """Copy the dataset's .dvc file from the project; returns whether the files themselves have to be checked out."""
    source = space.root / space.dvc_file.relative_to(space.path)
    if space.own or not source.exists():
        return False
    same = space.dvc_file.exists() and space.dvc_file.read_bytes() == source.read_bytes()
    write_text(space.dvc_file, source.read_text("utf-8"))
    return not same or not space.layout.raw.is_dir()


def publish_reports(space: Workspace) -> Path:
    """Put the reports where people look, replaced whole; returns the project's folder of them."""
    target = Layout(space.root, space.params.data.name).reports
    if space.own or not space.layout.reports.is_dir():
        return target
    beside, old = (target.with_name(f".{target.name}.{side}") for side in ("new", "old"))
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(space.layout.reports, beside, copy_function=_copy_writable)
    if target.exists():
        target.rename(old)
    beside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _copy_writable(source: str, target: str) -> None:
    """DVC's files are read-only links into its cache; a copy for people is theirs to change."""
    shutil.copyfile(source, target)
    Path(target).chmod(0o644)


def _check_out(space: Workspace) -> None:
    """The files of HEAD. Its dvc.lock outlives the refresh: it says what this workspace has made."""
    head = git.commit_of(space.root, "HEAD")
    if not head:
        repair = f"cd {shlex.quote(str(space.root))} && git add -A . && git commit -m start"
        raise ConfigError(f"{space.root}: --set, --params and other datasets need a first commit; run: {repair}")
    lock = space.path / DVC_LOCK
    made = lock.read_bytes() if lock.exists() else None
    git.check_out(space.root, space.path, head, again=False)
    if made is not None:
        lock.write_bytes(made)
    elif _dataset_of(space.root) != space.params.data.name:
        lock.unlink(missing_ok=True)  # another dataset's


def _dataset_of(root: Path) -> str:
    return str(classes.read(root / "data" / "classes.yaml").get("dataset", ""))


def _sync_code(space: Workspace) -> None:
    """The project's present code over that of the commit, so that what runs is what DVC hashes and the report says."""
    wanted = [*git.code_files(space.root), *(name for name in SETTINGS if (space.root / name).is_file())]
    for name in set(git.code_files(space.path)) - set(wanted):
        (space.path / name).unlink()
    for name in wanted:
        source, target = space.root / name, space.path / name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
