"""Where the service may listen, and the command as a process: start, request, SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import torch

from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.inference import bundle as bundles
from pvqae.serving import load_test, server
from tests.pvqae.serving.conftest import TOKEN


def on(host: str) -> config.Service:
    return config.Service(host=host).model_copy(update={"port": 0})


def test_other_machines_need_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        with pytest.raises(ConfigError, match="token"):
            server.listen(on(host), "")
    for host, token in (("127.0.0.1", ""), ("localhost", ""), ("0.0.0.0", TOKEN)):
        server.listen(on(host), token).close()


def test_the_default_is_this_machine_alone() -> None:
    assert config.Service().host == "127.0.0.1"
    with server.listen(server.settings_of(config.Params(), None, 0), "") as connection:
        assert connection.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            server.listen(server.settings_of(config.Params(), None, port), "")


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "short").write_text("abc")
    assert server.token_of(tmp_path / "token", {"PVQAE_TOKEN": "x" * 40}) == TOKEN
    assert server.token_of(None, {"PVQAE_TOKEN": "x" * 40}) == "x" * 40
    assert server.token_of(None, {}) == ""
    for file, environ in ((tmp_path / "short", {}), (tmp_path / "none", {}), (None, {"PVQAE_TOKEN": "abc"})):
        with pytest.raises(ConfigError):
            server.token_of(file, environ)


def test_params_are_the_folder_s_or_the_defaults(tmp_path: Path) -> None:
    assert config.params_here(file=tmp_path / "params.yaml") == config.Params()
    assert config.params_here(("service.queue=3",), tmp_path / "params.yaml").service.queue == 3
    (tmp_path / "params.yaml").write_text("service: {port: 8181}")
    assert server.settings_of(config.params_here(file=tmp_path / "params.yaml"), None, None).port == 8181


@contextmanager
def command(folder: Path, *words: str, **environ: str) -> Iterator["subprocess.Popen[str]"]:
    """`pvqae serve` in a folder without params.yaml."""
    own = {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1", **environ}
    kept = {key: value for key, value in os.environ.items() if key != "PVQAE_TOKEN"}
    with subprocess.Popen(
        [sys.executable, "-m", "pvqae.cli.main", "serve", *words],
        cwd=folder, env=kept | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_start_request_and_sigterm_that_waits_for_the_answer(bundle: Path, photos: list[bytes], tmp_path: Path) -> None:
    torch.set_num_threads(1)  # as there: sums in another order differ by more than 1e-6
    answers: list[requests.Response] = []
    with command(tmp_path, str(bundle), "--port", "0", "--set", "compute.threads=1") as process:
        assert process.stdout is not None
        url = process.stdout.readline().rpartition(" at ")[2].strip()
        assert url.startswith("http://127.0.0.1:")
        found = requests.post(f"{url}/v1/score", files={"file": photos[0]}, timeout=30).json()
        posted = [("files", photos[0])] * 16
        asking = threading.Thread(
            target=lambda: answers.append(requests.post(f"{url}/v1/score/batch", files=posted, timeout=30))
        )
        asking.start()
        while "pvqae_waiting 1.0" not in requests.get(f"{url}/metrics", timeout=30).text and asking.is_alive():
            pass
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    (tmp_path / "photo.png").write_bytes(photos[0])
    assert found["score"] == pytest.approx(bundles.load(bundle).score(tmp_path / "photo.png").image_score, abs=1e-6)
    assert [len(answer.json()["results"]) for answer in answers] == [16]
    assert "POST /v1/score 200" in log
    assert "Traceback" not in log


def test_what_can_t_be_served_is_one_paragraph(bundle: Path, tmp_path: Path) -> None:
    with command(tmp_path, str(bundle), "--host", "0.0.0.0", "--port", "0") as process:
        _, words = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words.startswith("error: service.host")
    assert "--token-file" in words
    assert "Traceback" not in words


def test_the_bench_measures_one_and_several_clients(bundle: Path, photos: list[bytes], tmp_path: Path) -> None:
    for number, data in enumerate(photos):
        (tmp_path / f"{number}.png").write_bytes(data)
    one, four = load_test.bench(bundle, [tmp_path], 8, 4)
    assert (one.clients, four.clients, one.requests) == (1, 4, 8)
    assert 0 < one.p50 <= one.p99
    assert four.per_second > 0
