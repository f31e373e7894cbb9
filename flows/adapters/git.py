"""Git: what the code's state is, and commits on the branch `pvqae/data` that touch nothing of the user's."""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pvqae.errors import PvqaeError

CODE = ("pvqae", "flows", "dvc.yaml", "pyproject.toml", "constraints.txt")
BRANCH = "refs/heads/pvqae/data"
ATTEMPTS = 10  # of moving the branch while other flows move it too
IDENTITY = {"NAME": "pvqae", "EMAIL": "pvqae@localhost"}  # where git knows no user


class GitError(PvqaeError):
    """Git could not do what a flow needs; the text is git's own."""


@dataclass(frozen=True)
class Code:
    """`sha` is HEAD, "" before the first commit; `uncommitted` are code files that differ from it or are not in it."""

    sha: str
    uncommitted: tuple[str, ...]


def git(root: Path, *arguments: str, env: Mapping[str, str] | None = None, text: str | None = None) -> str:
    """Output of one git command, without the last newline. Raises `GitError`."""
    # Inside a hook these point at the repository that runs the hook.
    outer = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_PREFIX")
    environ = {key: value for key, value in os.environ.items() if key not in outer}
    # LC_ALL: messages are compared; no optional locks: a flow never disturbs the user's own git commands.
    environ |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **(env or {})}
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], env=environ, input=text or "", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise GitError(f"git {arguments[0]} in {root} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.rstrip("\n")


def commit_of(root: Path, ref: str) -> str:
    """The commit that `ref` names, "" when there is none."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    except GitError:
        return ""


def fetch(root: Path) -> None:
    """Bring new commits of every remote, where there is one."""
    git(root, "fetch", "--all", "--quiet")


def code(root: Path) -> Code:
    """State of the project's code: tracked and untracked files of `CODE` against HEAD."""
    lines = git(root, "status", "--porcelain", "--untracked-files=all", "--", *CODE).splitlines()
    return Code(commit_of(root, "HEAD"), tuple(line[3:] for line in lines))


def code_files(root: Path) -> list[str]:
    """Paths of the project's present code files, tracked or not, ignored ones left out."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CODE)
    return sorted({name for name in listed.split("\0") if name and (root / name).is_file()})


def _identity(root: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    for role in ("AUTHOR", "COMMITTER"):
        try:
            git(root, "var", f"GIT_{role}_IDENT")
        except GitError:
            known |= {f"GIT_{role}_{key}": value for key, value in IDENTITY.items()}
    return known


def _tree(root: Path, parent: str, files: Mapping[str, Path]) -> str:
    """The tree of `parent` with `files` put in, by an index of its own."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", parent or "--empty", env=index)
        for name, file in sorted(files.items()):
            # Exactly these bytes: no line-ending or other filter of the user's.
            blob = git(root, "hash-object", "-w", "--no-filters", str(file.resolve()))
            git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", env=index)
        return git(root, "write-tree", env=index)


def record(root: Path, files: Mapping[str, Path], message: str) -> str:
    """Commit `files` (path in the tree → local file) on `pvqae/data`; returns the branch's commit.

    Other files of the branch stay. No commit is made when nothing would change. The user's branch, index and work
    tree are not touched. Raises `GitError` when the branch cannot be moved.
    """
    for attempt in range(ATTEMPTS):
        parent = commit_of(root, BRANCH)
        tree = _tree(root, parent, files)
        if parent and tree == git(root, "rev-parse", f"{parent}^{{tree}}"):
            return parent
        parents = ["-p", parent] if parent else []
        commit = git(root, "commit-tree", tree, *parents, env=_identity(root), text=message)
        try:
            git(root, "update-ref", "-m", "pvqae: record data", BRANCH, commit, parent or "0" * 40)
        except GitError:  # another flow moved it meanwhile: its files are the new base
            if attempt == ATTEMPTS - 1:
                raise
            continue
        return commit
    raise AssertionError("unreachable")
