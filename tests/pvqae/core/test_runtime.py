import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pvqae.core import runtime
from pvqae.core.config import Compute


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("networks", "parallel", "threads"), [(1, 1, 4), (2, 2, 2), (3, 3, 1), (9, 4, 1)])
def test_cores_are_divided_among_processes(networks: int, parallel: int, threads: int) -> None:
    plan = runtime.plan(Compute(), networks)
    assert (plan.device, plan.parallel, plan.threads) == ("cpu", parallel, threads)


@pytest.mark.usefixtures("four_cores")
def test_what_is_asked_for_is_taken() -> None:
    plan = runtime.plan(Compute(precision="float32", parallel=2, threads=3), 5)
    assert (plan.precision, plan.parallel, plan.threads) == ("float32", 2, 3)
    assert str(plan) == "device cpu, precision float32, 2 at once, 3 threads each"


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "float32")])
def test_bf16_is_chosen_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str
) -> None:
    monkeypatch.setattr(runtime, "_cpu_has_bf16", lambda: fast)
    assert runtime.plan(Compute(), 1).precision == precision


def test_autocast_follows_the_plan() -> None:
    x = torch.ones(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        with runtime.Plan("cpu", precision, 1, 1).autocast():
            assert (x @ x).dtype == dtype


def test_torch_is_not_asked_where_no_driver_has_made_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked() -> bool:
        raise AssertionError

    monkeypatch.setattr(torch.cuda, "is_available", asked)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(runtime, "DRIVERS", (tmp_path / "nvidiactl",))
    assert runtime.plan(Compute(), 1).device == "cpu"
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(AssertionError):
        runtime.plan(Compute(), 1)
    assert runtime.plan(Compute(device="cpu"), 1).device == "cpu"


def tree(folder: Path, groups: str, mounts: tuple[str, ...], files: dict[str, str]) -> Path:
    """A process' view of its control groups, mounted below `folder`."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    place = str(folder).replace(" ", "\\040")
    (folder / "cgroup").write_text(groups)
    (folder / "mountinfo").write_text("".join(f"31 23 0:28 {mount.format(place)}\n" for mount in mounts))
    return folder


V2 = "/ {}/v2 rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
CPU = "{}/cpu rw - cgroup cgroup rw,cpu,cpuacct"
V1 = {"cpu/a/b/cpu.cfs_quota_us": "250000", "cpu/a/b/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        ("0::/\n", (V2,), {"v2/cpu.max": "150000 100000"}, 1.5),  # Docker: a namespace of its own
        ("0::/\n", (V2,), {"v2/cpu.max": "max 100000"}, math.inf),
        ("0::/\n", (V2,), {}, math.inf),  # the root of all
        ("0::/pods/a/c\n", (V2,), {"v2/pods/a/cpu.max": "50000 100000", "v2/pods/a/c/cpu.max": "max 100000"}, 0.5),
        ("0::/a/b\n", (V2,), {"v2/a/cpu.max": "400000 100000", "v2/a/b/cpu.max": "300000 100000"}, 3.0),
        ("0::/../other\n", (V2,), {"v2/cpu.max": "200000 100000"}, 2.0),  # outside of what is mounted
        ("4:memory:/a\n3:cpu,cpuacct:/a/b\n", ("/ " + CPU,), V1, 2.5),
        ("3:cpuacct,cpu:/a/b/c\n0::/\n", ("/ " + CPU, V2), V1, 2.5),  # both versions; the quota is above
        ("3:cpu,cpuacct:/docker/1/a/b\n", ("/docker/1 " + CPU,), V1, 2.5),  # a part of the tree is mounted
        ("3:cpu,cpuacct:/a/b\n", ("/ " + CPU,), V1 | {"cpu/a/b/cpu.cfs_quota_us": "-1"}, math.inf),
        ("3:memory:/a/b\n", ("/ {}/cpu rw - cgroup cgroup rw,memory",), V1, math.inf),
        ("0::/\n", (V2,), {"v2/cpu.max": "soon"}, math.inf),
    ],
)
def test_a_quota_is_the_smallest_of_all_groups_around(
    groups: str, mounts: tuple[str, ...], files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    (tmp_path / "with a blank").mkdir()
    assert runtime._quota(tree(tmp_path / "with a blank", groups, mounts, files)) == quota


@pytest.mark.parametrize(("quota", "cores"), [(0.2, 1), (1.9, 1), (3.5, 3), (64.0, 4), (math.inf, 4)])
def test_cores_are_whole_and_at_least_one(quota: float, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_affinity", lambda: 4)
    monkeypatch.setattr(runtime, "_quota", lambda: quota)
    assert runtime.cores() == cores


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert runtime._quota(tmp_path) == math.inf


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_come_in_order_and_few_wait(workers: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            begun.append(number)
            yield number

    def work(number: int) -> tuple[int, int]:
        time.sleep(0.01 * (number % 3))
        return number, torch.get_num_threads()

    threads = torch.get_num_threads()
    expected = threads if workers == 1 else 1
    for place, (number, used) in enumerate(runtime.in_order(work, items(), workers)):
        assert (number, used) == (place, expected)
        assert len(begun) <= place + workers + 1
    assert len(begun) == 20
    assert torch.get_num_threads() == threads


def test_what_one_item_raises_comes_in_its_place() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ZeroDivisionError
        return number

    found, threads = [], torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        found.extend(runtime.in_order(work, range(9), 2))
    assert found == [0, 1, 2]
    assert torch.get_num_threads() == threads


def test_who_stops_early_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    results = runtime.in_order(str, range(100), 3)
    assert next(results) == "0"
    results.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before  # of those before, some may end meanwhile
