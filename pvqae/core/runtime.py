"""What this machine offers, and how much of it one process takes: device, precision, threads, processes at once."""

import ctypes
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # every command counts cores, few have params
    from pvqae.core.config import Compute

# NVIDIA's, Tegra's, AMD's, Windows': without them torch, which takes seconds to import, finds no GPU.
DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")))


@dataclass(frozen=True)
class Plan:
    """The choice for one run. A pure function of params, machine and number of networks: `dvc repro` alone and the
    flow choose the same, so they give the same files."""

    device: str  # cpu | cuda
    precision: str  # bf16 | float32; of training steps, scoring is always float32
    parallel: int  # processes at once
    threads: int  # of each process

    def __str__(self) -> str:
        return f"device {self.device}, precision {self.precision}, {self.parallel} at once, {self.threads} threads each"


def cores() -> int:
    """How many cores this process may use: of its affinity, and of the quota of its container; at least one."""
    return max(1, int(min(affinity(), quota())))


def affinity() -> int:
    """The cores that this process may run on, which is also what a cpuset leaves."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(process: Path = Path("/proc/self")) -> float:
    """Cores' worth of time that the control groups around a process allow it (`docker --cpus`, limits of Kubernetes);
    infinite without any."""
    return min((_limit(folder) for folder in _groups(process)), default=math.inf)


def _groups(process: Path) -> Iterator[Path]:
    """The folder of each control group of a process with the folders above it, whose limits hold below, too.

    A container sees a part of the tree; where its groups lie outside of what is mounted, the mount is what it is in.
    """
    try:
        belongs = [line.split(":", 2)[1:] for line in (process / "cgroup").read_text("utf-8", "replace").splitlines()]
        mounts = (process / "mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        return
    paths = {name: path for names, path in belongs for name in names.split(",")}
    for line in mounts:
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        name = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if name not in paths or (name and name not in options.split(" ")[-1].split(",")):
            continue
        top, mount = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), word) for word in left.split(" ")[3:5])
        inner = Path(paths[name]).relative_to(top) if Path(paths[name]).is_relative_to(top) else Path()
        yield from (Path(mount) / part for part in (inner, *inner.parents) if ".." not in part.parts)


def _limit(group: Path) -> float:
    """Quota by period, of version 2 or 1; infinite where the group has none."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            found, period = " ".join((group / file).read_text("utf-8") for file in files).split()
            return int(found) / int(period) if int(found) > 0 else math.inf
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue
    return math.inf


def cpu_has_bf16() -> bool:
    """Whether the processor computes in bf16; False where nothing says so."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def plan(compute: "Compute", n_networks: int) -> Plan:
    """Two processes of two threads on two cores ran five times slower than two of one: cores are divided."""
    if compute.device == "cpu" or not may_have_gpu():
        return without_gpu(compute, n_networks)
    import torch  # a second, and 200 MB that a flow keeps

    cuda = torch.cuda.is_available()
    gpus = torch.cuda.device_count() if cuda else 0
    return _divide(compute, n_networks, gpus, torch.cuda.is_bf16_supported() if cuda else cpu_has_bf16())


def may_have_gpu() -> bool:
    """False where no driver has made a device, whatever torch would say."""
    return not sys.platform.startswith("linux") or any(driver.exists() for driver in DRIVERS)


def without_gpu(compute: "Compute", n_networks: int) -> Plan:
    """The plan of a machine that has no GPU for certain; torch is not imported."""
    return _divide(compute, n_networks, 0, cpu_has_bf16())


def _divide(compute: "Compute", n_networks: int, gpus: int, fast: bool) -> Plan:
    parallel = compute.parallel if compute.parallel != "auto" else gpus or cores()
    parallel = max(1, min(parallel, n_networks))
    threads = compute.threads if compute.threads != "auto" else max(1, cores() // parallel)
    precision = compute.precision if compute.precision != "auto" else ("bf16" if fast else "float32")
    return Plan("cuda" if gpus else "cpu", precision, parallel, threads)


def apply(chosen: Plan) -> None:
    """Set threads, deterministic algorithms and the allocator of this process."""
    import torch

    torch.set_num_threads(chosen.threads)
    # Not use_deterministic_algorithms: that imports the compiler, a second of every start.
    torch.set_deterministic_debug_mode("warn" if chosen.device == "cuda" else "error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # we read none; filling took 15 % of a step
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Without this glibc returns each 24 MB activation to the kernel and faults it in again, a third of a step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, its maximum
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library has another allocator


def autocast(chosen: Plan) -> AbstractContextManager[object]:
    """bf16 autocast where the plan says so; half the time of a training step where the processor has it."""
    import torch

    if chosen.precision == "float32":
        return nullcontext()
    return torch.autocast(chosen.device, dtype=torch.bfloat16)
