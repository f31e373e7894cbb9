"""Git: the state of the code, checkouts, and commits on the branch `pvqae/data` that touch nothing of the user's."""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pvqae.core.errors import PvqaeError
from pvqae.core.layout import outside_hooks

_CODE = ("pvqae", "flows", "dvc.yaml", "pyproject.toml", "constraints.txt")
BRANCH = "refs/heads/pvqae/data"
_ATTEMPTS = 10  # of moving the branch while other flows move it too
_IDENTITY = {"NAME": "pvqae", "EMAIL": "pvqae@localhost"}  # where git knows no user


class GitError(PvqaeError):
    """Git could not do what a flow needs; the text is git's own."""


class _Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Code:
    """`sha` is HEAD, "" before the first commit; `uncommitted` are code files that differ from it or are not in it."""

    sha: str
    uncommitted: tuple[str, ...]


# No hooks, monitors or sparse checkouts of the user's: a flow's commits, workspaces and questions are its own.
_SETTINGS = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.sparseCheckout=false", "core.splitIndex=false")


def _run(root: Path, arguments: Sequence[str], env: Mapping[str, str] | None, text: str) -> _Done:
    # LC_ALL: messages are compared; no optional locks: a flow never disturbs the user's own git commands.
    environ = outside_hooks(os.environ) | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    environ |= {"GIT_TERMINAL_PROMPT": "0", **(env or {})}
    command = ["git", "-C", str(root), *(word for setting in _SETTINGS for word in ("-c", setting)), *arguments]
    done = subprocess.run(command, env=environ, input=text.encode(), capture_output=True, check=False)
    # Names of files may be any bytes.
    return _Done(done.returncode, *(out.decode("utf-8", "surrogateescape") for out in (done.stdout, done.stderr)))


def _error(root: Path, command: str, done: _Done) -> GitError:
    said = done.stderr.strip() or done.stdout.strip()
    repair = "; `python -m flows doctor` names the repair" if "not a git repository" in said else ""
    return GitError(f"git {command} in {root} failed: {said}{repair}")


def git(root: Path, *arguments: str, env: Mapping[str, str] | None = None, text: str = "") -> str:
    """Return the output of one git command, without the last newline. Raises `GitError`."""
    done = _run(root, arguments, env, text)
    if done.code:
        raise _error(root, arguments[0], done)
    return done.stdout.rstrip("\n")


def commit_of(root: Path, ref: str) -> str:
    """Return the commit that `ref` names, "" when there is none. Raises `GitError` where git refuses the repository."""
    done = _run(root, ("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"), None, "")
    if done.code and done.stderr.startswith("fatal: "):
        raise _error(root, "rev-parse", done)
    return "" if done.code else done.stdout.rstrip("\n")


def needed(root: Path, sha: str, what: str) -> str:
    """Return the commit `sha`, brought from a remote if it is not here. Raises `GitError` that says `what` it is."""
    remotes = git(root, "remote").split()
    for remote in remotes:
        if not commit_of(root, sha):
            # By its own name: a clone may be shallow, or of one branch. What fails is told below.
            _run(root, ("fetch", "--quiet", remote, sha), None, "")
    if commit_of(root, sha):
        return sha
    places = ", ".join([str(root), *remotes])
    target = git(root, "remote", "get-url", remotes[0]) if remotes else str(root)
    raise GitError(
        f"the commit {sha}, {what}, is in none of {places}; "
        f"in the repository that has it, run: git push {shlex.quote(target)} {sha}:refs/heads/pvqae/{sha[:12]}"
    )


def check_out(root: Path, place: Path, sha: str, again: bool = True) -> None:
    """Make `place` a repository of its own with the project's files of commit `sha`; what git does not track stays.

    Of a larger repository only the project's folder comes there. `again`: files that were changed there are restored
    even if they are of that commit already. `root`'s own git writes the files: it knows of submodules, linked work
    trees, shallow and partial clones.
    """
    where, _, prefix = git(root, "rev-parse", "--absolute-git-dir", "--show-prefix").partition("\n")
    tree = git(root, "rev-parse", "--verify", f"{sha}:{prefix}")
    own = place / ".git"
    if own.is_file():  # a linked work tree, whose repository may be elsewhere by now
        own.unlink()
    git(root, "init", "--quiet", "--template=", str(place))
    env = {"GIT_DIR": where, "GIT_WORK_TREE": str(place), "GIT_INDEX_FILE": str(own / "index")}
    if again or git(place, "write-tree", env=env) != tree:
        (own / "index.lock").unlink(missing_ok=True)  # of a killed one: the caller holds the place's lock
        git(place, "read-tree", "--reset", "-u", tree, env=env)


def code(root: Path) -> Code:
    """Return the state of the project's code: tracked and untracked files of `_CODE` against HEAD."""
    listed = git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *_CODE)
    return Code(commit_of(root, "HEAD"), tuple(line[3:] for line in listed.split("\0") if line))


def code_files(root: Path) -> list[str]:
    """Return the paths of the project's present code files, tracked or not, ignored ones left out."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_CODE)
    return sorted({name for name in listed.split("\0") if name and (root / name).is_file()})


def files_of(root: Path, commit: str) -> list[str]:
    """Return the paths of all files of a commit, from the top of its tree, wherever in it the project is."""
    return [name for name in git(root, "ls-tree", "-r", "-z", "--full-tree", "--name-only", commit).split("\0") if name]


def _identity(root: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    for role in ("AUTHOR", "COMMITTER"):
        try:
            git(root, "var", f"GIT_{role}_IDENT")
        except GitError:
            known |= {f"GIT_{role}_{key}": value for key, value in _IDENTITY.items()}
    return known


def _tree(root: Path, parent: str, files: Mapping[str, Path]) -> str:
    """Write the tree of `parent` with `files` put in, by an index of its own; return its hash."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", parent or "--empty", env=index)
        for name, file in sorted(files.items()):
            # Exactly these bytes: no line-ending or other filter of the user's.
            blob = git(root, "hash-object", "-w", "--no-filters", str(file.resolve()))
            git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", env=index)
        return git(root, "write-tree", env=index)


def record(root: Path, files: Mapping[str, Path], message: str) -> str:
    """Commit `files` (path in the tree → local file) on `pvqae/data`; return the branch's commit.

    Other files of the branch stay. No commit is made when nothing would change. The user's branch, index and work
    tree are not touched. Raises `GitError` when the branch cannot be moved.
    """
    for attempt in range(_ATTEMPTS):
        parent = commit_of(root, BRANCH)
        tree = _tree(root, parent, files)
        if parent and tree == git(root, "rev-parse", f"{parent}^{{tree}}"):
            return parent
        parents = ["-p", parent] if parent else []
        commit = git(root, "commit-tree", tree, *parents, env=_identity(root), text=message)
        try:
            git(root, "update-ref", "-m", "pvqae: record data", BRANCH, commit, parent)
        except GitError:  # another flow moved it meanwhile: its files are the new base
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        return commit
    raise AssertionError("unreachable")


def share(root: Path, remote: str) -> str:
    """Push `pvqae/data` and HEAD's commit to `remote`, so that other clones can rebuild; return why not, "" if it went.

    HEAD goes to the branch pvqae/COMMIT, unless a branch of the remote is known to have it. Nothing is ever forced.
    """
    if not remote:
        return ""
    head = commit_of(root, "HEAD")
    there = _run(root, ("branch", "--remotes", "--contains", head, "--list", f"{remote}/*"), None, "").stdout.strip()
    wanted = [f"{BRANCH}:{BRANCH}"] + ([] if there else [f"{head}:refs/heads/pvqae/{head[:12]}"])
    done = _run(root, ("push", "--quiet", "--no-verify", remote, *wanted), None, "")
    if not done.code:
        return ""
    said = " ".join(done.stderr.split())
    other = "[rejected]" in said  # by git itself; of a hook or a protected branch it says [remote rejected]
    why = "another clone pushed its own pvqae/data there; give this one another remote" if other else said
    name = BRANCH.removeprefix("refs/heads/")
    return f"flow.git_remote: {name} did not go to {remote}, so other clones can't verify yet: {why}"


_KEPT = "refs/pvqae/versions/"  # below it the commits that restored versions name


def bundle(root: Path, out: Path, commits: Iterable[str]) -> None:
    """Write HEAD, `pvqae/data` and `commits`, with all before them, into the file `out`. Raises `GitError`.

    The refs that git wants for that are those of a repository of its own, which borrows this one's objects.
    """
    head, data = (commit_of(root, name) for name in ("HEAD", BRANCH))
    named = {f"{_KEPT}{commit}": commit for commit in {head, *commits} - {""}} | ({BRANCH: data} if data else {})
    common = root / git(root, "rev-parse", "--git-common-dir")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        git(place, "init", "--quiet", "--bare", "--template=", str(place))
        (place / "objects" / "info").mkdir(parents=True, exist_ok=True)
        (place / "objects" / "info" / "alternates").write_text(f"{(common / 'objects').resolve()}\n", "utf-8")
        if (common / "shallow").is_file():
            shutil.copyfile(common / "shallow", place / "shallow")
        for name, commit in named.items():
            git(place, "update-ref", name, commit)
        git(place, "bundle", "create", "--quiet", str(out.resolve()), "--all")


def unbundle(root: Path, file: Path) -> None:
    """Bring what `bundle` wrote: `pvqae/data` goes on to it, the other commits are kept by refs of their own.

    Raises `GitError` where this repository's `pvqae/data` has commits that the file lacks; then nothing is changed.
    """
    git(root, "fetch", "--quiet", "--no-tags", str(file.resolve()), f"{_KEPT}*:{_KEPT}*", f"{BRANCH}:{BRANCH}")
