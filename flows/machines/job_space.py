"""The workspace of a job: the project at the order's commit with the order's files in it."""

from pathlib import Path, PurePosixPath

import pandas as pd

from flows.adapters import dvc_files, git
from flows.machines.job_spec import Order
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.core.files import write_text
from pvqae.core.layout import Layout
from pvqae.samples import classes, manifest


def prepare(root: Path, order: Order, threads: int = 0) -> Path:
    """The workspace below `root` for `order`; its checkpoints and DVC's cache outlive a killed job.

    Raises `GitError` when the project lacks the commit, `ConfigError` for a file that would lie outside.
    """
    space = root / ".pvqae" / "jobs" / order.dataset
    git.check_out(root, space, git.needed(root, order.git_sha, "which the train flow runs"))
    dvc_files.share(root, space)
    for name, text in order.files.items():
        write_text(_inside(space, name), text)
    if threads:
        own_threads(space / "params.yaml", threads)
    return space


def own_threads(file: Path, threads: int) -> None:
    """Set the threads of this worker's processes; no result depends on them beyond rounding."""
    params = config.load(file)
    compute = params.compute.model_copy(update={"threads": threads, "parallel": 1})
    write_text(file, config.dump(params.model_copy(update={"compute": compute})))


def _inside(space: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ".git" in path.parts:
        raise ConfigError(f"order: expected a path inside of the workspace, found {name}")
    return space / path


def inputs(space: Path, order: Order) -> list[str]:
    """What the stages read and no stage of this order makes: folders of images and masks, networks and priors."""
    layout = Layout(space, order.dataset)
    known = classes.read(layout.classes_file, order.dataset)
    members = sorted({name for stage in order.stages for name in _members(known, stage)})
    files = [layout.class_rows(name, part) for name in members for part in ("normals", "test")]
    frames = [manifest.read(file) for file in files]
    rows = pd.concat(frames) if frames else pd.DataFrame({"path": [], "mask_path": []})
    paths = {*rows["path"], *rows["mask_path"]} - {""}
    # Rows are relative to data/; the synthetic images of the gate are judged by the one who asked.
    folders = {f"data/{PurePosixPath(path).parent}" for path in paths if path.startswith("raw/")}
    return sorted(folders) + _models(order, known)


def _members(known: classes.Classes, stage: str) -> tuple[str, ...]:
    kind, _, name = stage.partition("@")
    if kind == "train":
        return known.network(name)
    return known.prior(name).classes if kind == "prior" else (name,)


def _models(order: Order, known: classes.Classes) -> list[str]:
    """Outputs of stages of other orders."""
    wanted: set[str] = set()
    for stage in order.stages:
        kind, _, name = stage.partition("@")
        if kind == "prior":
            wanted |= {f"train@{known.member(member).network}" for member in known.prior(name).classes}
        if kind in ("calibrate", "evaluate"):
            member = known.member(name)
            wanted |= {f"train@{member.network}", f"prior@{member.prior}", f"calibrate@{name}"}
    return sorted(wanted - set(order.stages))
