"""Run the service as a process: where it may listen, who may ask, how it stops."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pvqae.core import runtime
from pvqae.core.config import Params, Service
from pvqae.core.errors import ConfigError
from pvqae.inference import bundle as bundles
from pvqae.serving.middleware import Metrics, is_loopback
from pvqae.serving.slot import ModelSlot, load

if TYPE_CHECKING:
    import uvicorn

TOKEN = "PVQAE_TOKEN"
_SHORTEST = 16  # characters of a token
_CONNECTIONS = 512  # open at once; beyond them uvicorn itself answers 503

_Background = Callable[[threading.Event], None]


def settings_of(params: Params, host: str | None, port: int | None) -> Service:
    """Return the section `service` with what the command line says; port 0 takes any free one."""
    changes = {"host": host, "port": port}
    return params.service.model_copy(update={key: value for key, value in changes.items() if value is not None})


def token_of(file: Path | None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the token from `file`, else from PVQAE_TOKEN; "" without both. Raises `ConfigError` for a short one."""
    where = str(file) if file else TOKEN
    try:
        token = (file.read_text("utf-8") if file else environ.get(TOKEN, "")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: no readable file with the token: {error}") from None
    if (file or token) and len(token) < _SHORTEST:
        raise ConfigError(
            f"{where}: expected a token of at least {_SHORTEST} characters, found {len(token)}; make one by "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    return token


def listen(settings: Service, token: str) -> socket.socket:
    """Return the bound socket.

    Raises `ConfigError` for a non-loopback host without a token, or a port that is taken.
    """
    host = settings.host
    if not token and not is_loopback(host):
        raise ConfigError(
            f"service.host: {host} needs a token, otherwise everyone who reaches this port could use the service; add "
            f"--token-file FILE or set {TOKEN}, and put TLS in front of it"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, settings.port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        raise ConfigError(
            f"{host}:{settings.port}: can't listen there: {error.strerror or error}; choose another by --host, --port"
        ) from None
    # Connections inherit it. asyncio sets it for sockets of its own only, and without it each answer takes 40 ms more:
    # its body would wait for the client's delayed acknowledgement of its header.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def run(
    slot: ModelSlot, metrics: Metrics, params: Params, settings: Service, token: str,
    tell: Callable[[str], None], background: _Background | None = None,
) -> None:  # fmt: skip
    """Serve until SIGTERM or Ctrl-C; requests in flight are answered before the end.

    `tell` gets the address once connections are taken. `background` runs in a thread of its own until its event is set.
    """
    import uvicorn

    from pvqae.serving import app

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("pvqae.serving").setLevel(logging.INFO)
    stop = threading.Event()
    with listen(settings, token) as connection:
        served = app.make(slot, settings, metrics, token, runtime.plan(params.compute, 1))
        # The client's address as the connection has it: a header could name any, and dodge the rate.
        server = uvicorn.Server(
            uvicorn.Config(
                served, log_config=None, access_log=False, server_header=False, proxy_headers=False,
                limit_concurrency=_CONNECTIONS, timeout_graceful_shutdown=int(settings.timeout) + 1,
            )
        )  # fmt: skip
        follower = threading.Thread(target=background, args=(stop,), daemon=True) if background else None
        if follower:
            follower.start()
        tell(address(connection))
        _until_stopped(server, connection)
        stop.set()
        if follower:
            follower.join(timeout=2)


def _until_stopped(server: "uvicorn.Server", connection: socket.socket) -> None:
    """Serve until a signal: uvicorn raises it again after a clean stop, which is no failure here."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[connection])


def address(connection: socket.socket) -> str:
    host, port = connection.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(folder: Path, params: Params, settings: Service, token: str, tell: Callable[[str], None]) -> None:
    """Serve one bundle of this machine: `pvqae serve`. Raises `IntegrityError` before anything listens."""
    metrics = Metrics()
    slot = ModelSlot(metrics)
    runtime.plan(params.compute, 1).apply()
    slot.put(load(bundles.read(folder)))
    assert slot.current is not None
    what = f"{slot.current.name}, {slot.current.described}"
    run(slot, metrics, params, settings, token, lambda where: tell(f"serving {what} at {where}"))
