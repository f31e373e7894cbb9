"""What this machine offers and how a process uses it: cores, GPU, precision, threads, environment, cache folders.

Containers and networks of companies leave gaps in the environment: a name, a home, proxies that spare the servers of
this machine, certificates. `complete_environment` fills them, so that every library sees the same; what the user has
set stays. It is the first thing that a command does, so nothing heavy is imported here.
"""

import contextlib
import ctypes
import math
import os
import re
import stat
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pvqae.core.errors import PvqaeError

if TYPE_CHECKING:  # every command counts cores, few have params
    from concurrent.futures import Future

    from pvqae.core.config import Compute

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# NVIDIA's, Tegra's, AMD's, Windows': without them torch, which takes seconds to import, finds no GPU.
DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")))
_USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python's getpass looks before it asks the system
# Each library reads this list in its own way: some know no networks, some no IPv6 in brackets.
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
# Where requests and boto3, httpx and Python itself, and curl look for the certificates of a company.
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
_COUNTS = ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT", "PYTHON_CPU_COUNT")


@dataclass(frozen=True)
class Plan:
    """The choice for one run. A pure function of params, machine and number of networks: `dvc repro` alone and the
    flow choose the same, so they give the same files.
    """

    device: str  # cpu | cuda
    precision: str  # bf16 | float32; of training steps, scoring is always float32
    parallel: int  # processes at once
    threads: int  # of each process

    def __str__(self) -> str:
        return f"device {self.device}, precision {self.precision}, {self.parallel} at once, {self.threads} threads each"

    def apply(self) -> None:
        """Set threads, deterministic algorithms and the allocator of this process."""
        import torch

        _set_threads(self.threads)
        # Not use_deterministic_algorithms: that imports the compiler, a second of every start.
        torch.set_deterministic_debug_mode("warn" if self.device == "cuda" else "error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # we read none; filling took 15 % of a step
        _keep_freed_memory()

    def autocast(self) -> AbstractContextManager[object]:
        """Return bf16 autocast where the plan says so; half the time of a training step where the processor has it."""
        import torch

        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int) -> Iterator[_Result]:
    """Yield `work` of each item in turn, done by `workers` threads that have one thread of PyTorch's each.

    Two images on a thread each take half the time of two after each other on two threads: small operations can't use
    the second. At most `workers` results wait. Raises what `work` raises, where its result would be.
    """
    if workers < 2:
        yield from map(work, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    import torch

    waiting: deque[Future[_Result]] = deque()
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "work", _set_threads, (1,))
    _set_threads(1)  # here, too: threads of OpenMP that have nothing to do keep a core busy for a while
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        _set_threads(threads)  # it is also what threads that are still to come begin with


def _set_threads(number: int) -> None:
    """Set how many threads PyTorch uses in this thread, for good."""
    import torch

    torch.set_num_threads(number)
    torch.get_num_threads()  # a thread's first look takes what any thread has set last; only then it has its own


def cores() -> int:
    """Return how many cores this process may use by its affinity and the quota of its container; at least one."""
    return max(1, int(min(_affinity(), _quota())))


def _affinity() -> int:
    """Return how many cores this process may run on, which is also what a cpuset leaves."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(process: Path = Path("/proc/self")) -> float:
    """Return how many cores' worth of time the control groups around a process allow it (`docker --cpus`, limits of
    Kubernetes); infinite without any.
    """
    return min((_limit(folder) for folder in _groups(process)), default=math.inf)


def _groups(process: Path) -> Iterator[Path]:
    """Yield the folder of each control group of a process and the folders above it, whose limits hold below, too.

    A container sees a part of the tree; where its groups are outside of what is mounted, the mount is its group.
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
    """Return quota by period, of version 2 or 1; infinite where the group has none."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            found, period = " ".join((group / file).read_text("utf-8") for file in files).split()
            return int(found) / int(period) if int(found) > 0 else math.inf
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue
    return math.inf


def _cpu_has_bf16() -> bool:
    """Return whether the processor computes in bf16; False where nothing says so."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def plan(compute: "Compute", n_networks: int) -> Plan:
    """Choose for a run of `n_networks`, whose processes share the cores: two processes of two threads on two cores ran
    five times slower than two of one.
    """
    if compute.device == "cpu" or not may_have_gpu():
        return _without_gpu(compute, n_networks)
    import torch  # a second, and 200 MB that a flow keeps

    cuda = torch.cuda.is_available()
    gpus = torch.cuda.device_count() if cuda else 0
    return _divide(compute, n_networks, gpus, torch.cuda.is_bf16_supported() if cuda else _cpu_has_bf16())


def may_have_gpu() -> bool:
    """Return False where no driver has made a device, whatever torch would say."""
    return not sys.platform.startswith("linux") or any(driver.exists() for driver in DRIVERS)


def _without_gpu(compute: "Compute", n_networks: int) -> Plan:
    """Return the plan of a machine that has no GPU for certain; torch is not imported."""
    return _divide(compute, n_networks, 0, _cpu_has_bf16())


def _divide(compute: "Compute", n_networks: int, gpus: int, fast: bool) -> Plan:
    parallel = compute.parallel if compute.parallel != "auto" else gpus or cores()
    parallel = max(1, min(parallel, n_networks))
    threads = compute.threads if compute.threads != "auto" else max(1, cores() // parallel)
    precision = compute.precision if compute.precision != "auto" else ("bf16" if fast else "float32")
    return Plan("cuda" if gpus else "cpu", precision, parallel, threads)


def _keep_freed_memory() -> None:
    """Keep large blocks: glibc would return each 24 MB activation to the kernel and fault it in again, a third of a
    step.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, its maximum
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library has another allocator


def release_memory() -> None:
    """Give freed memory back to the system, between two parts of a stage: what one has used the next need not add to.

    Threads have heaps of their own, and large blocks are kept where a `Plan` was applied.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has another allocator
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def complete_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Fill the gaps of `environ`, for this process and all that it starts. A second time changes nothing."""
    _identity(environ)
    _proxies(environ)
    if bundle := next((environ[name] for name in _CERTIFICATES if Path(environ.get(name) or "/").is_file()), ""):
        for name in _CERTIFICATES:
            environ.setdefault(name, bundle)
    if region := environ.get("AWS_REGION"):
        environ.setdefault("AWS_DEFAULT_REGION", region)  # the name that boto3 reads
    # Threads of OpenMP that wait for each other keep their cores: beside other work a step then takes several times as
    # long, most of it waiting. Read as torch is imported.
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if _quota() < _affinity():  # elsewhere libraries count for themselves
        for name in _COUNTS:
            environ.setdefault(name, str(cores()))


def _entry() -> tuple[str, str] | None:
    """Return name and home of the present user in the system's list; None for a number that is not in it."""
    try:
        import pwd

        found = pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        return None
    return found.pw_name, found.pw_dir


def _identity(environ: MutableMapping[str, str]) -> None:
    entry = _entry()
    if entry is None and hasattr(os, "getuid") and not any(environ.get(name) for name in _USER_NAMES):
        environ["LOGNAME"] = environ["USER"] = f"uid{os.getuid()}"
    if not environ.get("HOME") and (environ.pop("HOME", None) is not None or entry is None):
        environ["HOME"] = entry[1] if entry else str(_private_folder())


def _proxies(environ: MutableMapping[str, str]) -> None:
    """Give each setting in both spellings, since some libraries read one, some the other."""
    for kind in ("http", "https", "all"):
        lower, upper = f"{kind}_proxy", f"{kind}_proxy".upper()
        value = environ.get(lower, environ.get(upper))
        if value is None and environ.get("all_proxy", environ.get("ALL_PROXY", "")).startswith("http"):
            value = environ.get("all_proxy") or environ["ALL_PROXY"]  # which boto3 and urllib do not read
        if value is not None:
            environ.setdefault(lower, value)
            environ.setdefault(upper, value)
    listed = [item.strip() for key in ("no_proxy", "NO_PROXY") for item in environ.get(key, "").split(",")]
    hosts = ["*"] if "*" in listed else list(dict.fromkeys([*filter(None, listed), *_LOOPBACK]))
    environ["no_proxy"] = environ["NO_PROXY"] = ",".join(hosts)


def _private_folder() -> Path:
    """Return a folder for this user alone, for what can be made again where there is no home.

    Raises `PvqaeError` where all of its names are taken by other users.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    named = Path(tempfile.gettempdir()) / f"pvqae-{user}"
    for folder in (named, *(named.with_name(f"{named.name}-{number}") for number in range(1, 100))):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == user:
            return folder  # else another's, perhaps one who has the same number in another container
    raise PvqaeError(f"{named}: expected a folder of this user, found others'; set HOME to a folder for its caches")


def cache_folders() -> Iterator[Path]:
    """Yield the user's folders for what can be made again: XDG_CACHE_HOME or ~/.cache, then `_private_folder` for where
    that can't be written to.
    """
    home = os.environ.get("HOME") or (_entry() or ("", ""))[1]
    if given := os.environ.get("XDG_CACHE_HOME") or (home and str(Path(home) / ".cache")):
        yield Path(given)
    yield _private_folder()


def openvino() -> Any:
    """Import OpenVINO as it is without its package for usage reports: with it, the mere import sends one.

    Raises `ModuleNotFoundError` where OpenVINO is not installed.
    """
    reports = "openvino_telemetry"
    here = reports in sys.modules
    if not here:
        sys.modules[reports] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        return import_module("openvino")
    finally:
        if not here:
            del sys.modules[reports]
