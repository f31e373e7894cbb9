"""`pvqae bench serve`: what a client waits for, over HTTP, against a service in a process of its own."""

import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import requests as http
from rich.console import Console
from rich.table import Table

from pvqae.core import runtime
from pvqae.core.errors import DataError, PvqaeError
from pvqae.serving.batch_source import Files

_WARM = 5  # requests before the clock starts


@dataclass(frozen=True)
class _Latency:
    """Of `requests` of one image each from `clients` at once; milliseconds."""

    clients: int
    requests: int
    p50: float
    p99: float
    per_second: float


@contextmanager
def _service(bundle: Path) -> Iterator[str]:
    """Start a service of `bundle` on a free port; yield its address. Raises `PvqaeError` if it does not start."""
    free = ("--port", "0", "--host", "127.0.0.1", "--set", "service.rate=0")
    command = [sys.executable, "-m", "pvqae.cli.main", "serve", str(bundle), *free]
    environ = {key: value for key, value in os.environ.items() if key != "PVQAE_TOKEN"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " at http" not in line:
                raise PvqaeError(f"the service did not start; see what `pvqae serve {shlex.quote(str(bundle))}` says")
            yield line.rpartition(" at ")[2].strip()
        finally:
            process.terminate()


def bench(bundle: Path, places: Sequence[Path], requests: int, clients: int) -> list[_Latency]:
    """Measure one client alone, then `clients` at once, and print a table. Raises `DataError` without an image."""
    bodies = [Path(item.path).read_bytes() for item in islice(Files(tuple(places)).items(), 50)]
    if not bodies:
        raise DataError(f"{', '.join(map(str, places))}: no images")
    with _service(bundle) as where:
        _send(where, bodies, iter(range(_WARM)), [])
        found = [_measure(where, bodies, requests, number) for number in dict.fromkeys((1, clients))]
    _show(found)
    return found


def _measure(where: str, bodies: Sequence[bytes], requests: int, clients: int) -> _Latency:
    numbers, seconds = iter(range(requests)), list[float]()
    threads = [threading.Thread(target=_send, args=(where, bodies, numbers, seconds)) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - start
    if len(seconds) != requests:
        raise PvqaeError(f"{len(seconds)} of {requests} requests were answered; look at what the service says")
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    return _Latency(clients, requests, float(p50), float(p99), requests / whole)


def _send(where: str, bodies: Sequence[bytes], numbers: Iterator[int], seconds: list[float]) -> None:
    """Send requests one after another until `numbers`, which the clients share, has no more."""
    with http.Session() as session:
        for number in numbers:
            start = time.perf_counter()
            file = {"file": ("image", bodies[number % len(bodies)])}
            session.post(f"{where}/v1/score", files=file, timeout=60).raise_for_status()
            seconds.append(time.perf_counter() - start)


def _show(found: Sequence[_Latency]) -> None:
    table = Table("clients at once", "requests", "p50 ms", "p99 ms", "images per second")
    for one in found:
        table.add_row(str(one.clients), str(one.requests), f"{one.p50:.0f}", f"{one.p99:.0f}", f"{one.per_second:.1f}")
    console = Console()
    console.print(table)
    words = (
        f"{runtime.cores()} cores ({platform.machine()}), which the clients take part of; load {os.getloadavg()[1]:.1f}"
    )
    console.print(words, highlight=False)
