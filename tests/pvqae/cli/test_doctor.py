"""Broken installations, machines and projects: the doctor says what is wrong and names the repair."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from pvqae.cli import checks, diagnosis, main
from pvqae.cli.checks import Check
from pvqae.core import config, files, runtime
from pvqae.core.layout import Layout

WANTED = {"core": [Requirement("torch>=2.10")], "flows": [Requirement("fastapi>=0.139,<0.151")]}
HIDDEN = "not-to-be-seen"
PINS = {"torch": "2.13.0", "fastapi": "0.150.0"}


def of(checks: list[Check], name: str) -> Check:
    return next(item for item in checks if item.name == name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with params, without a repository, a dataset or a bundle."""
    (tmp_path / "params.yaml").write_text("seed: 0\n", "utf-8")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", "utf-8")
    return tmp_path


@pytest.fixture
def bundle(root: Path) -> Path:
    folder = root / "models" / "demo" / "brick" / "bundle"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", "utf-8")
    files.seal_folder(folder)
    return folder


@pytest.mark.parametrize(("needed", "state"), [("core", "warn"), ("flows", "bad")])
def test_a_missing_extra_names_what_is_lost_and_the_command(needed: str, state: str) -> None:
    found = of(checks.checks(WANTED, PINS, needed, {"torch": "2.13.0"}.get), "extra flows")
    assert found.state == state
    assert "not installed: fastapi, needed for `python -m flows`" in found.found
    assert found.repair.endswith("-m pip install -c constraints.txt -e '.[flows]'")


def test_a_version_out_of_bounds_is_bad_and_one_that_was_not_tried_a_warning() -> None:
    broken = checks.checks(WANTED, PINS, "core", {"torch": "2.13.0", "fastapi": "0.155.0"}.get)
    assert of(broken, "extra flows").state == "bad"
    assert "fastapi 0.155.0, expected" in of(broken, "extra flows").found
    other = checks.checks(WANTED, PINS, "core", {"torch": "2.14.0", "fastapi": "0.150.0"}.get)
    assert of(other, "extra core").state == "warn"
    assert "torch 2.14.0, tried with 2.13.0" in of(other, "extra core").found
    assert of(other, "extra flows").state == "ok"


def test_a_build_for_another_processor_is_the_tried_version() -> None:
    found = checks.checks(WANTED, PINS, "core", {"torch": "2.13.0+cpu", "fastapi": "0.150.0"}.get)
    assert {item.state for item in found} == {"ok"}


def test_extras_come_from_the_sources_or_the_installed_package(tmp_path: Path) -> None:
    sources, package = checks.required(diagnosis._SOURCES / "pyproject.toml"), checks.required(tmp_path / "none")
    assert set(checks._EXTRAS) <= set(sources)
    for found in (sources, package):
        assert "torch" in {item.name for item in found["core"]}
        assert "prefect" in {item.name for item in found["flows"]}
        assert "prefect" not in {item.name for item in found["core"]}


def test_an_old_python_a_full_disk_and_little_memory(tmp_path: Path) -> None:
    assert diagnosis._python((3, 10, 2)).state == "bad"
    assert diagnosis._python((3, 10, 2)).repair.startswith("make PYTHON=")
    assert diagnosis._disk(tmp_path, 10**8).repair == f"free space on the disk of {tmp_path}"
    (tmp_path / ".pvqae" / "cache").mkdir(parents=True)
    states = [diagnosis._disk(tmp_path, free).state for free in (10**8, 2 * 10**9, 10**11)]
    assert states == ["bad", "warn", "ok"]
    assert str(tmp_path / ".pvqae" / "cache") in diagnosis._disk(tmp_path, 10**8).repair
    assert [diagnosis._memory(free).state for free in (10**9, 10**10)] == ["warn", "ok"]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The device of the only driver that is looked for; it is not there."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(runtime, "DRIVERS", (tmp_path / "nvidiactl",))
    return tmp_path / "nvidiactl"


@pytest.mark.usefixtures("driver")
def test_cuda_that_was_asked_for_but_is_not_there() -> None:
    found = diagnosis._device(config.Compute(device="cuda"))
    assert (found.state, found.repair) == ("bad", "set compute.device: auto")
    assert diagnosis._device(config.Compute()).state == "ok"


def test_a_driver_without_a_gpu_in_torch(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    driver.touch()
    found = diagnosis._device(config.Compute())
    assert found.state == "warn"
    assert "--torch-backend=auto" in found.repair


def test_params_that_are_not_valid(root: Path) -> None:
    (root / "params.yaml").write_text("train: {stepz: 3}\n", "utf-8")
    found = of(diagnosis.examine(root), "params.yaml")
    assert found.state == "bad"
    assert "did you mean train.steps?" in found.found
    assert "checkout -- params.yaml" in found.repair


def test_a_project_without_a_commit(root: Path) -> None:
    found = diagnosis._git(root)
    assert found.state == "bad"
    assert found.repair == f"cd {root} && git init && git add -A . && git commit -m start"


@pytest.mark.parametrize("name", ["a b", "it's", "$(id) `id`", 'x"; false #'])
def test_the_repairs_work_as_they_are_copied(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / name
    (root / ".pvqae" / "cache").mkdir(parents=True)
    (root / "params.yaml").write_text("train: {stepz: 3}\n", "utf-8")
    for key in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{key}_NAME", "x")
        monkeypatch.setenv(f"GIT_{key}_EMAIL", "x@localhost")

    def by_shell(command: str) -> None:
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True)

    by_shell(diagnosis._git(root).repair)
    assert diagnosis._git(root).state == "ok"
    (root / "params.yaml").write_text("train: {stepz: 4}\n", "utf-8")
    by_shell(diagnosis.read_params(root)[0].repair.partition(": ")[2])
    assert "3" in (root / "params.yaml").read_text("utf-8")
    by_shell(diagnosis._disk(root, 10**8).repair)
    assert not (root / ".pvqae" / "cache").exists()

    made = root / "models" / "demo" / "brick" / "bundle"
    made.mkdir(parents=True)
    (made / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n", "utf-8")
    (found,) = diagnosis._bundles(root)
    shown = "dvc() { printf '%s\\n' \"$@\" > words; }; "
    by_shell(shown + found.repair)
    words = ["--cd", str(root), "checkout", "--force", "models/demo/brick/bundle"]
    assert (tmp_path / "words").read_text("utf-8").splitlines() == words


def test_a_dataset_that_is_not_here(root: Path) -> None:
    layout = Layout(root, "parts")
    assert "python -m flows data add parts FOLDER" in diagnosis._datasets(layout, "folder").repair
    layout.raw.parent.mkdir(parents=True)
    (layout.raw.parent / "parts.dvc").touch()
    assert diagnosis._datasets(layout, "folder").repair == f"dvc --cd {root} pull data/raw/parts.dvc"
    layout.raw.mkdir()
    assert diagnosis._datasets(layout, "folder").state == "ok"
    assert diagnosis._datasets(Layout(root, "demo"), "demo").state == "ok"


def test_a_damaged_bundle_is_named_with_the_command_that_brings_it_back(root: Path, bundle: Path) -> None:
    assert [(item.state, item.found) for item in diagnosis._bundles(root)] == [("ok", "1 whole")]
    (bundle / "config.json").write_text("{ }", "utf-8")
    (found,) = diagnosis._bundles(root)
    assert found.state == "bad"
    assert "config.json: expected sha256" in found.found
    assert found.repair == f"dvc --cd {root} checkout --force models/demo/brick/bundle"


def test_the_command_line(root: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    done = CliRunner().invoke(main.app, ["doctor", "--json"])
    found = {item["name"]: item for item in json.loads(done.stdout)}
    assert done.exit_code == 1
    assert found["git repository"]["state"] == "bad"
    assert set(found["bundles"]) == {"name", "state", "found", "repair"}
    said = CliRunner().invoke(main.app, ["doctor"]).stdout
    assert "→ cd " in said
    assert f"{len(found)} checks: " in said


def test_it_takes_no_torch_where_there_is_no_gpu(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pvqae.core import runtime;"
        "from pvqae.cli import diagnosis as examine;"
        "runtime.DRIVERS = (); examine.examine(Path('.')); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_counts_in_words() -> None:
    good, bad, warn = Check("a", "ok", ""), Check("b", "bad", ""), Check("c", "warn", "")
    assert checks._sentence([good]) == "1 checks, nothing to repair"
    assert checks._sentence([good, bad, warn]) == "3 checks: 1 bad, 1 to look at"
    assert [checks._exit_code([good, warn]), checks._exit_code([bad])] == [0, 1]


@pytest.mark.parametrize(
    ("environ", "state", "said"),
    [
        ({}, "ok", "no proxy"),
        ({"https_proxy": f"http://me:{HIDDEN}/1@proxy:80", "NO_PROXY": ".corp"}, "ok", "HTTPS_PROXY=http://proxy:80"),
        ({"HTTP_PROXY": f"me:{HIDDEN}@p@proxy:3128"}, "ok", "HTTP_PROXY=proxy:3128"),
        ({"AWS_ENDPOINT_URL_S3": f"https://a:{HIDDEN}@oss", "AWS_SECRET_ACCESS_KEY": HIDDEN}, "ok", "S3=https://oss"),
        ({"ALL_PROXY": f"socks://me:{HIDDEN}@proxy:1"}, "bad", "ALL_PROXY names no proxy"),
        ({"AWS_CA_BUNDLE": "/none"}, "bad", "AWS_CA_BUNDLE: no such file"),
        ({"AWS_PROFILE": "plant", "AWS_REGION": "eu-1"}, "ok", "AWS_PROFILE=plant, AWS_REGION=eu-1"),
    ],
)
def test_settings_of_the_network_are_shown_without_passwords(environ: dict[str, str], state: str, said: str) -> None:
    found = diagnosis._network(environ)
    assert found.state == state
    assert said in found.found
    assert HIDDEN not in found.found
    assert bool(found.repair) == (state == "bad")
