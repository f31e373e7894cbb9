"""Commits on pvqae/data touch nothing of the user's; the code's state is told as it is."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.adapters import git


def state(root: Path) -> tuple[str, ...]:
    """All that belongs to the user: branch, commit, index and work tree."""
    return (
        git.git(root, "symbolic-ref", "HEAD"),
        git.commit_of(root, "HEAD"),
        git.git(root, "ls-files", "--stage"),
        git.git(root, "status", "--porcelain"),
    )


def test_a_record_leaves_the_users_branch_index_and_tree_alone(repository: Path, tmp_path: Path) -> None:
    (repository / "pvqae" / "a.py").write_text("a = 2\n")
    git.git(repository, "add", "pvqae/a.py")  # staged, and must stay just that
    file = tmp_path / "lock"
    file.write_bytes(b"schema\r\n")
    before = state(repository)
    sha = git.record(repository, {"demo/dvc.lock": file}, "message")
    assert state(repository) == before
    assert git.git(repository, "show", "--format=%B", "--name-only", sha).split() == ["message", "demo/dvc.lock"]
    assert git.commit_of(repository, git.BRANCH) == sha


def test_no_commit_without_a_change_and_other_datasets_stay(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("one")
    first = git.record(repository, {"demo/dvc.lock": file}, "one")
    assert git.record(repository, {"demo/dvc.lock": file}, "again") == first
    other = git.record(repository, {"mtsd/dvc.lock": file}, "other")
    assert git.git(repository, "rev-parse", f"{other}^") == first
    names = git.git(repository, "ls-tree", "-r", "--name-only", other).split()
    assert names == ["demo/dvc.lock", "mtsd/dvc.lock"]


def test_flows_that_record_at_once_lose_nothing(repository: Path, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(4)]
    for file in files:
        file.write_text(file.name)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda file: git.record(repository, {f"{file.name}/f": file}, file.name), files))
    names = git.git(repository, "ls-tree", "-r", "--name-only", git.BRANCH).split()
    assert names == [f"{number}/f" for number in range(4)]


def test_without_a_configured_user_a_record_has_an_author(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{role}_NAME", raising=False)
        monkeypatch.delenv(f"GIT_{role}_EMAIL", raising=False)
    monkeypatch.delenv("EMAIL", raising=False)
    git.git(repository, "config", "user.useConfigOnly", "true")
    sha = git.record(repository, {"f": repository / "params.yaml"}, "m")
    assert git.git(repository, "show", "--no-patch", "--format=%ae", sha) == "pvqae@localhost"


def test_code_that_differs_from_the_commit_is_named(repository: Path) -> None:
    assert git.code(repository).uncommitted == ()
    (repository / "pvqae" / "a.py").write_text("a = 2\n")
    (repository / "flows" / "new.py").write_text("")
    (repository / "params.yaml").write_text("seed: 1\n")  # no code: the lineage has it
    assert git.code(repository).uncommitted == ("pvqae/a.py", "flows/new.py")
    git.git(repository, "rm", "-q", "--cached", "constraints.txt")
    (repository / "constraints.txt").unlink()
    assert "constraints.txt" in git.code(repository).uncommitted
    assert git.code_files(repository) == ["dvc.yaml", "flows/b.py", "flows/new.py", "pvqae/a.py", "pyproject.toml"]


def test_before_the_first_commit_there_is_no_sha(tmp_path: Path) -> None:
    git.git(tmp_path, "init", "-q")
    (tmp_path / "dvc.yaml").write_text("")
    assert git.code(tmp_path) == git.Code("", ("dvc.yaml",))


@pytest.fixture
def remote(repository: Path, tmp_path: Path) -> Path:
    """A remote that nobody has pushed to."""
    git.git(tmp_path, "init", "--quiet", "--bare", str(tmp_path / "remote.git"))
    git.git(repository, "remote", "add", "plant", str(tmp_path / "remote.git"))
    return tmp_path / "remote.git"


def test_what_is_shared_can_be_had_in_another_clone(repository: Path, remote: Path, tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("one")
    data = git.record(repository, {"demo/dvc.lock": file}, "one")
    assert git.share(repository, "") == ""
    assert git.git(remote, "for-each-ref") == ""
    assert git.share(repository, "plant") == ""
    other = tmp_path / "other"
    git.git(tmp_path, "init", "--quiet", str(other))
    git.git(other, "remote", "add", "origin", str(remote))
    for sha in (data, git.commit_of(repository, "HEAD")):
        assert git.needed(other, sha, "what a version was made of") == sha


def test_code_that_the_remote_has_gets_no_branch_of_its_own(repository: Path, remote: Path, tmp_path: Path) -> None:
    git.git(repository, "push", "--quiet", "plant", "HEAD:refs/heads/main")
    file = tmp_path / "lock"
    file.write_text("one")
    git.record(repository, {"demo/dvc.lock": file}, "one")
    assert git.share(repository, "plant") == ""
    names = git.git(remote, "for-each-ref", "--format=%(refname)").split()
    assert names == ["refs/heads/main", git.BRANCH]


def test_two_clones_never_write_over_each_other(repository: Path, remote: Path, tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("one")
    git.record(repository, {"demo/dvc.lock": file}, "one")
    assert git.share(repository, "plant") == ""
    kept = git.commit_of(remote, git.BRANCH)
    git.git(repository, "update-ref", "-d", git.BRANCH)  # as in a clone with a history of its own
    git.record(repository, {"mtsd/dvc.lock": file}, "another")
    assert "pvqae/data did not go to plant" in git.share(repository, "plant")
    assert "another clone pushed its own" in git.share(repository, "plant")
    assert git.commit_of(remote, git.BRANCH) == kept
    (remote / "hooks" / "pre-receive").write_text("#!/bin/sh\necho this branch is protected >&2; exit 1\n")
    (remote / "hooks" / "pre-receive").chmod(0o755)
    git.git(repository, "update-ref", git.BRANCH, git.git(repository, "commit-tree", "HEAD^{tree}", "-p", kept))
    assert "this branch is protected" in git.share(repository, "plant")
    assert "did not go to nowhere" in git.share(repository, "nowhere")
