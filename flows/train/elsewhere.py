"""How a train flow spreads its classes over the workers of flow.train_pool."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.adapters import git
from flows.adapters.prefect_client import PrefectPool
from flows.adapters.tracking import Registry
from flows.adapters.versioning import Handover
from flows.core.processes import Supervisor
from flows.machines import job_spec
from flows.machines.fan_out import FanOut, job_maker
from flows.machines.job_spec import Chains
from flows.train import stages
from flows.versions import warm_start
from flows.workspace import workspace
from flows.workspace.workspace import Workspace
from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.samples.classes import FROM_SCRATCH

DEPLOYMENT = "job/pool"
MOST = 64  # job_maker that wait at once


def chains(graph: stages.Graph, train_pool: str, parallel: int) -> tuple[Chains, int]:
    """What runs, and how much of it at once: here stage by stage, elsewhere a class in one go."""
    if not train_pool:
        return stages.each(graph), parallel
    found = job_spec.chains(graph)
    return found, min(MOST, len(found))


def fan_out(
    space: Workspace,
    versioning: Handover,
    supervisor: Supervisor,
    registry: Registry,
    graph: Mapping[str, Any],
    code: git.Code,
) -> FanOut | None:
    """What asks the workers of flow.train_pool; None where the params name none.

    Raises `ConfigError` for code that is not committed: workers have commits only.
    """
    name = space.params.flow.train_pool
    if not name:
        return None
    if code.uncommitted:
        raise ConfigError(
            f"flow.train_pool: {name}: workers run the commit {code.sha[:12]}, but {', '.join(code.uncommitted[:5])} "
            "differ from it; commit first, or train here with flow.train_pool empty"
        )
    return FanOut(
        PrefectPool(name, DEPLOYMENT),
        versioning,
        job_maker(space.params.data.name, code.sha, lambda asked: files(space, graph, asked), started(registry, graph)),
        lambda: supervisor.cancelled,
    )


def files(space: Workspace, graph: Mapping[str, Any], asked: Sequence[str]) -> dict[str, str]:
    """What a worker's workspace needs beside the commit, as it is now."""
    lock = (space.path / "dvc.lock").read_text("utf-8")
    texts = {
        "params.yaml": config.dump(workspace.without_root(space.params)),
        "data/classes.yaml": config.dump_yaml(job_spec.part_of_classes(graph, asked)),
        "dvc.lock": job_spec.part_of_lock(lock, job_spec.above(stages.class_stages(graph), asked)),
        FROM_SCRATCH: (space.path / FROM_SCRATCH).read_text("utf-8"),
    }
    if space.dvc_file.exists():
        texts[space.dvc_file.relative_to(space.path).as_posix()] = space.dvc_file.read_text("utf-8")
    return texts


def started(registry: Registry, graph: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The registered version that each network goes on from; networks from scratch are not in it."""
    warm = {name: item["classes"] for name, item in graph["networks"].items() if item["parent"] != FROM_SCRATCH}
    found = {name: warm_start.champion(registry, graph["dataset"], members) for name, members in warm.items()}
    return {name: version for name, version in found.items() if version}
