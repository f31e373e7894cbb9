"""DVC, by its command: which stages changed, run one, version a dataset.

A folder of images comes to data/raw/<name> whole or not at all, the originals untouched.
"""

import errno
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from flows.adapters import dvc_files
from flows.core import environment
from flows.core.processes import Supervisor
from pvqae.core import progress
from pvqae.core.errors import DataError, PvqaeError
from pvqae.core.files import write_text
from pvqae.core.layout import ARRIVED

Outcome = Literal["ran", "restored", "unchanged"]
OnLine = Callable[[str], None]
# Copy by default (reflink where the file system can: no space, no time, and independent files). A hard link shares
# the inode: DVC makes it read-only, so the *original* becomes read-only too, and an in-place edit of the original
# would change our version without a trace. So hard links only when asked for.
Link = Literal["copy", "hardlink"]

# What DVC says to a person at a keyboard after every command.
_HINTS = ("To track the changes with git", "\tgit add", "To enable auto staging", "\tdvc config", "Use `dvc push`")
_LOCKED = ("is busy, it is being blocked by", "Unable to acquire lock", "unable to acquire lock")
COMMAND = Path(__file__).with_name("dvc_command.py")
_PAUSE = 0.5  # seconds before a command that met a lock runs again, doubled each time
_BAD_INPUT = 2  # exit code of `pvqae` for what a user has to repair
_REFUSED = ("validate", 1)  # the check's verdict on the data: the same each time
_JUNK = (".git", ".dvc", "__pycache__", ".DS_Store", "Thumbs.db", "desktop.ini", "._*")
_FICLONE = 0x40049409  # ioctl: share the blocks until one side writes (btrfs, XFS)
_CLONE_REFUSED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)


def ignore(line: str) -> None:
    """Drop a line of output."""


class VersioningError(PvqaeError):
    """DVC failed; the text has the end of its output."""


class StageFailed(VersioningError):  # noqa: N818 - what happened, not a fault of the code
    """A stage's command failed. `code` is its exit status, None where DVC did not say."""

    def __init__(self, stage: str, code: int | None, output: str) -> None:
        super().__init__(f"stage {stage} failed" + (f" (exit {code})" if code is not None else "") + f":\n{output}")
        self.stage, self.code = stage, code

    @property
    def repeatable(self) -> bool:
        """Whether another try may help: not after bad input, nor where the check refuses it or DVC itself failed."""
        return self.code not in (None, _BAD_INPUT) and (self.stage, self.code) != _REFUSED


class Versioning(Protocol):
    """What the flows need of DVC; `Dvc`, or `fakes.FakeVersioning` in tests."""

    def status(self) -> frozenset[str]: ...
    def repro(self, stage: str, on_line: OnLine = ignore) -> Outcome: ...
    def add_dataset(self, name: str, source: Path, link: Link = "copy") -> bool: ...
    def version_dataset(self, name: str) -> bool: ...
    def listing(self, data_hash: str) -> frozenset[str] | None: ...
    def checkout(self, name: str) -> None: ...
    def push(self) -> None: ...
    def data_hash(self, name: str) -> str: ...


class Handover(Protocol):
    """What a flow that has stages done on other machines needs of DVC."""

    def push(self) -> None: ...
    def fetch_results(self) -> None: ...


class Dvc:
    """DVC in `workspace`. `supervisor` ends its processes with the flow; a command that met a lock runs again.

    `pull`: stages that other machines have done take their results from the remote.
    """

    def __init__(self, workspace: Path, supervisor: Supervisor, lock_retries: int = 2, pull: bool = False) -> None:
        self._workspace = workspace
        self._elsewhere = ("--pull",) if pull else ()
        self._supervisor = supervisor
        self._retries = lock_retries

    def status(self) -> frozenset[str]:
        """Return the stages (`train@bottle`) that DVC would run now; those below them are not known to change yet.

        A stage that never ran, or whose outputs are gone, is among them. .dvc files are not: they are no stages.
        """
        output = self._checked("status", "--json")
        lines = [line for line in output.splitlines() if line.startswith("{")]  # warnings may come before
        found = json.loads(lines[-1]) if lines else {}
        return frozenset(name for name in found if not name.endswith(".dvc"))

    def repro(self, stage: str, on_line: OnLine = ignore) -> Outcome:
        """Run one stage (`dvc repro -s`: without -s parallel runs block each other). Raises `StageFailed`."""
        code, output = self._dvc("repro", *self._elsewhere, "-s", stage, on_line=on_line)
        if code:
            found = re.search(r"exited with (-?\d+)", output)
            raise StageFailed(stage, int(found[1]) if found else None, _tail(output))
        if "is cached - skipping run" in output:
            return "restored"
        return "ran" if f"Running stage '{stage}'" in output else "unchanged"

    def add_dataset(self, name: str, source: Path, link: Link = "copy") -> bool:
        """Bring `source` into data/raw/<name> as a DVC version; return whether it is a new version.

        The originals are not touched. Raises `DataError` for a source that can't be one.
        """
        if not bring(self._workspace, name, source, link, known=bool(self.data_hash(name))):
            return False
        new = self.version_dataset(name)
        remember(self._workspace, name, source)
        return new

    def version_dataset(self, name: str) -> bool:
        """Make what is in data/raw/<name> a DVC version; return whether it is a new one."""
        before = self.data_hash(name)
        self._checked("add", f"data/raw/{name}")
        self._seen(name)
        return self.data_hash(name) != before

    def listing(self, data_hash: str) -> frozenset[str] | None:
        """Return the paths, below the dataset's folder, of a version; None when DVC's cache does not know it."""
        cache = Path(self._checked("cache", "dir").splitlines()[-1]) / "files" / "md5" / data_hash[:2] / data_hash[2:]
        if not re.fullmatch(r"[0-9a-f]{32}\.dir", data_hash) or not cache.is_file():
            return None
        return frozenset(str(row["relpath"]) for row in json.loads(cache.read_text("utf-8")))

    def _seen(self, name: str) -> None:
        """Check that DVC sees the dataset.

        It skips .dvc files in folders that it takes for ignored, and then `push` leaves the dataset out without a word.
        It takes data/raw/ for ignored by `/data/raw/*`, which git does not.
        """
        if name not in self._checked("list", ".", "data/raw", "--dvc-only").split():
            raise VersioningError(
                f"DVC does not see data/raw/{name}.dvc, so it would never push the images: .gitignore hides "
                "data/raw/ from it; write /data/raw/?* instead of /data/raw/* there, then add the dataset again"
            )

    def checkout(self, name: str) -> None:
        """Put the files of data/raw/<name>.dvc in place."""
        self._checked("checkout", "--force", f"data/raw/{name}.dvc")

    def pull(self, name: str) -> None:
        """Put the files in place, from the remote where the cache does not have them."""
        code, _ = self._dvc("checkout", "--force", f"data/raw/{name}.dvc")
        if code:
            self._checked("pull", f"data/raw/{name}.dvc")

    def rebuild(self, stage: str, on_line: OnLine = ignore) -> None:
        """Really run `stage` and all before it: nothing from the run cache, nothing into any cache."""
        code, output = self._dvc("repro", "--no-run-cache", "--no-commit", stage, on_line=on_line)
        if code:
            raise StageFailed(stage, None, _tail(output))

    def push(self) -> None:
        """Push data and outputs to the default remote."""
        self._checked("push")

    def fetch_results(self) -> None:
        """Bring the run cache of the remote: what other machines have made of which inputs."""
        self._checked("fetch", "--run-cache")

    def push_results(self, stages: Sequence[str]) -> None:
        """Push the outputs of `stages`, and the run cache by which others find them."""
        self._checked("push", "--run-cache", *stages)

    def pull_paths(self, targets: Sequence[str]) -> None:
        """Bring outputs, stages, or paths inside of outputs, from the remote into the workspace."""
        if targets:
            self._checked("pull", *targets)

    def data_hash(self, name: str) -> str:
        """Return DVC's hash of data/raw/<name>, "" when it has no version yet.

        Raises `DataError` for a damaged file.
        """
        file = self._workspace / "data" / "raw" / f"{name}.dvc"
        if file.exists():
            return dvc_files.version_in(file) or self._named_again(name, file)
        stages = dvc_files.stages_in(self._workspace / dvc_files.LOCK)
        outs = [out for stage in stages.values() for out in stage.get("outs", [])]  # a made dataset is a stage's output
        return next((str(out["md5"]) for out in outs if out["path"] == f"data/raw/{name}"), "")

    def _named_again(self, name: str, file: Path) -> str:
        """Write a .dvc file again that a kill has cut off, as the folder that it stands for is in place.

        Raises `DataError`, and leaves the file as it was, where that is not so.
        """
        left = file.read_bytes()
        file.unlink()
        try:
            self._checked("add", f"data/raw/{name}")
            if not file.read_bytes().startswith(left):
                raise VersioningError(f"the images in {file.with_suffix('')} are not the version that is named there")
            return dvc_files.version_in(file)
        except BaseException as error:
            file.write_bytes(left)
            if not isinstance(error, VersioningError):
                raise
            raise DataError(f"{file} was cut off, and {error}; {dvc_files.repair(file)}") from None

    def _checked(self, *arguments: str) -> str:
        code, output = self._dvc(*arguments)
        if code:
            raise VersioningError(f"{shlex.join(['dvc', *arguments])} failed in {self._workspace}:\n{_tail(output)}")
        return output

    def _dvc(self, *arguments: str, on_line: OnLine = ignore) -> tuple[int, str]:
        """Return exit code and output; a command that met DVC's lock, or a file that a kill had cut off, runs again."""
        for attempt in range(self._retries + 1):
            code, output = self._once(arguments, on_line)
            if not code:
                break
            if self._mended(on_line):
                continue
            if not any(text in output for text in _LOCKED):
                break
            time.sleep(_PAUSE * 2**attempt)
        return code, output

    def _once(self, arguments: Sequence[str], on_line: OnLine) -> tuple[int, str]:
        """Run a command; say that it still runs where it says nothing itself for long."""
        lines: list[str] = []
        command = [sys.executable, "-P", str(COMMAND), *arguments]
        say = progress.tell if on_line is ignore else on_line
        with progress.working(shlex.join(["dvc", *arguments]), say) as heard:

            def keep(line: str) -> None:
                lines.append(line)
                if line.strip() and not line.startswith(_HINTS):
                    on_line(line)
                    heard()

            code = self._supervisor.run(command, self._workspace, environment.for_stages(self._workspace), keep)
        return code, "\n".join(lines)

    def _mended(self, on_line: OnLine) -> bool:
        found = dvc_files.mend(self._workspace)
        for name in found:
            on_line(f"{name}: cut off when a process that wrote it was killed; removed, DVC makes it again")
        return bool(found)


def _tail(output: str, lines: int = 15) -> str:
    return "\n".join(output.splitlines()[-lines:])


def _reflink(source: str, target: str) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    with Path(source).open("rb") as read, Path(target).open("wb") as written:
        try:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
        except OSError as error:
            if error.errno in _CLONE_REFUSED:
                return False
            raise
    return True


def _copy(source: str, target: str) -> None:
    if not _reflink(source, target):
        shutil.copyfile(source, target)


def _hardlink(source: str, target: str) -> None:
    os.link(os.path.realpath(source), target)


_PLACE: dict[Link, Callable[[str, str], None]] = {"copy": _copy, "hardlink": _hardlink}


def _listing(source: Path) -> dict[str, list[int]]:
    """Return size and time of change of every file, by which, as for rsync, a folder is the same as before."""
    found = {}
    for folder, _, names in os.walk(source, followlinks=True):
        for name in names:
            state = (path := Path(folder, name)).stat()
            found[path.relative_to(source).as_posix()] = [state.st_size, state.st_mtime_ns]
    return found


def _memory(root: Path, name: str) -> Path:
    return root / ".pvqae" / "sources" / f"{name}.json"


def _unchanged(root: Path, name: str, source: Path) -> bool:
    file = _memory(root, name)
    return file.exists() and json.loads(file.read_text("utf-8")) == [str(source.resolve()), _listing(source)]


def remember(root: Path, name: str, source: Path) -> None:
    """Note what `source` looked like when its version was made."""
    write_text(_memory(root, name), json.dumps([str(source.resolve()), _listing(source)]))


def check_source(source: Path) -> None:
    """Raise `DataError` for what is no folder with files."""
    if not source.is_dir():
        raise DataError(f"{source}: expected a folder of images, found {'a file' if source.exists() else 'nothing'}")
    if not any(names for _, _, names in os.walk(source, followlinks=True)):
        raise DataError(f"{source} has no files")


def _check(root: Path, name: str, source: Path) -> None:
    target = root / "data" / "raw" / name
    check_source(source)
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise DataError(f"{source} holds the project's own data/raw/{name}; name the folder of the original images")


def _make_writable(tree: Path) -> None:
    """Make folders writable: copied from a read-only original they could not be moved, nor filled by DVC."""
    for folder, _, _ in os.walk(tree):
        Path(folder).chmod(0o755)


def _keep_arrived(target: Path, incoming: Path) -> None:
    """Keep what arrived later: it is not among the originals, so a mirror of them must not remove it."""
    if (target / ARRIVED).is_dir():
        shutil.copytree(target / ARRIVED, incoming / ARRIVED, copy_function=_PLACE["copy"], dirs_exist_ok=True)


def bring(root: Path, name: str, source: Path, link: Link = "copy", known: bool = False) -> bool:
    """Make data/raw/<name> equal to `source`, additions and removals alike; return False when it already is.

    Only data/raw/<name>/arrived stays: it is no mirror of anything.

    `known`: the dataset has a version, so an unchanged source needs no copy. Raises `DataError`.
    """
    _check(root, name, source)
    target = root / "data" / "raw" / name
    if known and target.is_dir() and _unchanged(root, name, source):
        return False
    incoming, outgoing = (root / ".pvqae" / side / name for side in ("incoming", "outgoing"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if outgoing.is_dir() and not target.exists():  # killed between the two renames below: what arrived is in there
        outgoing.rename(target)
    for leftover in (incoming, outgoing):  # of a killed run
        _make_writable(leftover)
        shutil.rmtree(leftover, ignore_errors=True)
        leftover.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, incoming, copy_function=_PLACE[link], ignore=shutil.ignore_patterns(*_JUNK))
    _keep_arrived(target, incoming)
    _make_writable(incoming)
    if target.exists():
        target.rename(outgoing)
    incoming.rename(target)
    shutil.rmtree(outgoing, ignore_errors=True)
    return True
