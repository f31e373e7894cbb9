"""Gaps of containers and of companies' networks: a name, a home, proxies, certificates, cores."""

import asyncio
import getpass
import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import httpx
import pytest
import requests
from aiobotocore.session import get_session  # type: ignore[import-untyped]

from pvqae.core import runtime
from pvqae.core.errors import PvqaeError
from pvqae.model import efficientnet
from tests.containers import UNNAMED, contained

DEAD = "http://127.0.0.1:9"  # nobody listens there
KEYS = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}


def completed(**environ: str) -> dict[str, str]:
    runtime.complete_environment(environ)
    return environ


class Bucket(http.server.BaseHTTPRequestHandler):
    """Says yes to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *words: object) -> None: ...


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


async def _aio(url: str) -> None:
    async with get_session().create_client("s3", endpoint_url=url, **KEYS) as client:
        await client.head_bucket(Bucket="landing")


def _urllib(url: str) -> None:
    urllib.request.urlopen(url, timeout=30).close()


CLIENTS: dict[str, Callable[[str], object]] = {
    "requests, of health checks and MLflow": lambda url: requests.get(url, timeout=30).raise_for_status(),
    "httpx, of Prefect": lambda url: httpx.get(url, timeout=30).raise_for_status(),
    "urllib": _urllib,
    "boto3": lambda url: boto3.client("s3", endpoint_url=url, **KEYS).head_bucket(Bucket="landing"),
    "aiobotocore, of DVC": lambda url: asyncio.run(_aio(url)),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "given",
    [
        {"HTTP_PROXY": DEAD},
        {"http_proxy": DEAD, "NO_PROXY": "example.com"},
        {"all_proxy": DEAD, "no_proxy": ".corp, 10.0.0.0/8"},
        {"ALL_PROXY": "socks5://127.0.0.1:9"},
    ],
    ids=lambda given: " ".join(given),
)
def test_servers_of_this_machine_are_never_asked_through_a_proxy(
    client: str, given: dict[str, str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in completed(**given).items():
        monkeypatch.setenv(name, value)
    for host in ("127.0.0.1", "localhost"):
        CLIENTS[client](f"http://{host}:{port}")


def test_what_the_user_excludes_from_a_proxy_stays_excluded_in_both_spellings() -> None:
    for given in ({"NO_PROXY": "a.corp"}, {"no_proxy": "a.corp"}, {"NO_PROXY": "a.corp", "no_proxy": "b.corp"}):
        found = completed(**given)
        assert found["NO_PROXY"] == found["no_proxy"]
        assert {*given.values(), *runtime._LOOPBACK} == set(found["no_proxy"].split(","))
        assert completed(**found) == found
    assert completed(NO_PROXY="*")["no_proxy"] == "*"  # with anything beside it, it means nothing to some


def test_a_proxy_of_one_spelling_is_one_of_all() -> None:
    assert completed(HTTPS_PROXY="http://p:1")["https_proxy"] == "http://p:1"
    assert completed(http_proxy="http://p:1", HTTP_PROXY="http://q:1")["HTTP_PROXY"] == "http://q:1"  # as it was set
    assert completed(ALL_PROXY="http://p:1")["https_proxy"] == "http://p:1"  # which boto3 reads, ALL_PROXY it does not
    assert "https_proxy" not in completed(ALL_PROXY="socks5://p:1")  # which boto3 does not know
    assert completed(https_proxy="", ALL_PROXY="http://p:1")["HTTPS_PROXY"] == ""  # switched off


def test_certificates_named_once_are_those_of_all(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    ours = str(tmp_path / "ca.pem")
    for name in runtime._CERTIFICATES:
        assert {completed(**{name: ours})[other] for other in runtime._CERTIFICATES} == {ours}
    assert completed(REQUESTS_CA_BUNDLE=ours, SSL_CERT_FILE="/mine")["SSL_CERT_FILE"] == "/mine"
    assert "REQUESTS_CA_BUNDLE" not in completed(SSL_CERT_FILE=str(tmp_path / "none"))
    assert "SSL_CERT_FILE" not in completed(AWS_CA_BUNDLE=ours)  # of one S3 server


def test_the_region_of_aws_is_read_by_either_name() -> None:
    assert completed(AWS_REGION="eu-1")["AWS_DEFAULT_REGION"] == "eu-1"
    assert completed(AWS_REGION="eu-1", AWS_DEFAULT_REGION="eu-2")["AWS_DEFAULT_REGION"] == "eu-2"


@pytest.mark.parametrize(("quota", "threads"), [(0.5, "1"), (1.9, "1"), (3.0, "3")])
def test_libraries_that_count_cores_themselves_are_told_of_a_quota(
    quota: float, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_affinity", lambda: 8)
    assert "OMP_NUM_THREADS" not in completed()
    monkeypatch.setattr(runtime, "_quota", lambda: quota)
    assert {completed()[name] for name in runtime._COUNTS} == {threads}
    assert completed(OMP_NUM_THREADS="2")["OMP_NUM_THREADS"] == "2"


def test_threads_of_a_command_that_wait_for_each_other_leave_their_cores_alone() -> None:
    """PyTorch's library of OpenMP says itself what it has read."""
    code = "from pvqae.core import runtime; runtime.complete_environment(); import torch"
    for given, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")):
        bare = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        environ = bare | {"OMP_DISPLAY_ENV": "true"} | given
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user id without an entry, neither name nor home in the environment; the folder for temporary files."""
    monkeypatch.setattr(runtime, "_entry", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (*runtime._USER_NAMES, "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_user_without_a_name_gets_one_and_a_home(nameless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = completed()
    assert found["HOME"] == str(nameless / f"pvqae-{os.getuid()}")
    monkeypatch.setenv("LOGNAME", found["LOGNAME"])
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert completed(USERNAME="me", HOME="/")["HOME"] == "/"  # what is there stays, even if nobody can write to it
    assert "LOGNAME" not in completed(USERNAME="me", HOME="/")
    assert completed(HOME="")["HOME"] == found["HOME"]


def test_an_empty_home_is_that_of_the_system_s_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_entry", lambda: ("me", "/home/me"))
    assert completed(HOME="")["HOME"] == "/home/me"
    assert "HOME" not in completed()  # libraries find it themselves


def test_a_private_folder_of_another_is_left_alone(nameless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runtime._private_folder()
    assert first == runtime._private_folder()
    assert first.stat().st_mode & 0o777 == 0o700
    (nameless / "pvqae-7").symlink_to(first)
    monkeypatch.setattr(os, "getuid", lambda: 7)
    with pytest.raises(PvqaeError, match="set HOME to"):
        runtime._private_folder()


@pytest.mark.parametrize("home", ["", "/proc/nonexistent", "/dev/null"])
def test_weights_are_converted_where_there_is_no_home_to_write_to(
    home: str, nameless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert efficientnet._cached_weights().is_relative_to(runtime._private_folder())


def test_a_cache_that_may_only_be_read_is_used(nameless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(nameless / "warm"))
    made = efficientnet._cached_weights()
    assert made.is_relative_to(nameless / "warm")
    monkeypatch.setattr(efficientnet, "_writable", lambda folder: False)
    assert efficientnet._cached_weights() == made


@pytest.mark.parametrize("home", [None, "/nonexistent", "/"])
def test_commands_run_for_a_user_without_a_name(home: str | None, tmp_path: Path) -> None:
    code = "import flows, getpass, os; from pathlib import Path; print(getpass.getuser(), Path.home(), os.getuid())"
    bare = {key: value for key, value in os.environ.items() if key not in (*runtime._USER_NAMES, "HOME")}
    environ = bare | {"TMPDIR": str(tmp_path)} | ({"HOME": home} if home else {})
    command = contained(UNNAMED, [sys.executable, "-c", code])
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["uid12345", home or str(tmp_path / "pvqae-12345"), "12345"], done.stderr
