"""No secret in what is committed, and none of the environment's in what the flows record. Asks no service."""

import json
import subprocess
from pathlib import Path

import pytest

from flows.adapters.fakes import FakeRegistry
from flows.core import classes, environment
from flows.train.recording import Recorder
from flows.train.stages import Done
from flows.train.summary import Summary
from flows.workspace import workspace
from flows.workspace.workspace import Workspace
from pvqae.core import config
from pvqae.core.files import write_text

PROJECT = Path(__file__).parents[2]
# What looks like a secret and is none, by file and kind.
ALLOWED = {
    ("pvqae/datasets/fetch.py", "Hex High Entropy String"),  # sums of public archives
    ("pvqae/core/tensors.py", "Hex High Entropy String"),  # the sum of a package's weights
    # the sums of bundles that older versions wrote
    ("tests/pvqae/inference/format_2/bundle/config.json", "Hex High Entropy String"),
    ("tests/pvqae/inference/format_2/bundle/calibration.json", "Hex High Entropy String"),
    ("tests/pvqae/inference/version_0_1/bundle/config.json", "Hex High Entropy String"),
    ("tests/pvqae/inference/version_0_1/bundle/calibration.json", "Hex High Entropy String"),
    ("tests/pvqae/datasets/test_arrivals.py", "Base64 High Entropy String"),  # an alphabet in a file's name
    ("tests/flows/upkeep/test_doctor.py", "Basic Auth Credentials"),  # that the doctor must not print
    # that a stream must not show
    ("tests/pvqae/stream/test_frames.py", "Basic Auth Credentials"),
    ("tests/pvqae/stream/test_stream_command.py", "Basic Auth Credentials"),
    ("docs/operations/stream.md", "Basic Auth Credentials"),  # the words user and password
    ("tests/pvqae/training/test_phases.py", "GitHub Token"),  # five parametrised numbers in a row
}
PICTURES = {".png", ".webp", ".svg", ".safetensors"}
PLANTED = "aws_secret_access_key = 'wJalrXUtnFEMI/K7MDENG" + "/bPxRfiCYEXAMPLEKEY'\n"


def found(files: list[str]) -> set[tuple[str, str]]:
    """File and kind of everything that looks like a secret, by detect-secrets without its verification."""
    from detect_secrets import SecretsCollection
    from detect_secrets.settings import transient_settings

    plugins = [{"name": name} for name in PLUGINS]
    secrets = SecretsCollection(root=str(PROJECT))
    with transient_settings({"plugins_used": plugins}) as settings:
        settings.disable_filters("detect_secrets.filters.common.is_ignored_due_to_verification_policies")
        for file in files:
            secrets.scan_file(file)
    return {(file, secret.type) for file, secret in secrets}


PLUGINS = (
    *("AWSKeyDetector", "ArtifactoryDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "GitHubTokenDetector"),
    *("GitLabTokenDetector", "JwtTokenDetector", "OpenAIDetector", "PrivateKeyDetector", "SlackDetector"),
    *("StripeDetector", "NpmDetector", "PypiTokenDetector", "SendGridDetector", "TwilioKeyDetector"),
    *("HexHighEntropyString", "Base64HighEntropyString"),
)


def tracked() -> list[str]:
    """And what git would add next."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    names = listed.stdout.split("\0")[:-1]
    return [name for name in names if Path(name).suffix not in PICTURES and (PROJECT / name).is_file()]


def test_no_tracked_file_has_a_secret() -> None:
    assert found(tracked()) <= ALLOWED


SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PVQAE_TOKEN", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY")
SECRETS += ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "GIT_TOKEN")


def test_nothing_of_the_environment_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, tags, params, the summary and the fingerprint, with a secret in every variable that could carry one."""
    for name in SECRETS:
        monkeypatch.setenv(name, f"hush-{name}")
    params = config.parse({"flow": {"tracking_uri": "http://me:hush-uri@server:5000"}})
    space, runs = Workspace(tmp_path, tmp_path, params), FakeRegistry()
    for file in ("metrics.json", "images.csv"):
        write_text(space.layout.class_report("part") / file, "{}")
    write_text(space.layout.network("part") / "history.jsonl", "")
    write_text(space.layout.prior("part") / "history.jsonl", "")
    parent = runs.start("pvqae-x", "train x", tags={"environment": environment.fingerprint()})
    runs.params(parent, workspace.flat_params(params))
    with Recorder(runs, parent, space, classes.classes(params, ["part"])) as recorder:
        for stage in ("train@part", "prior@part", "evaluate@part"):
            with recorder.during(stage):
                pass
            recorder.after(Done(stage, "ran"))
    address = environment.shown(params.flow.tracking_uri)
    summary = Summary("x", {"classes": {}, "mean": {}}, (), (), (), (), tmp_path, address, parent)
    recorded = [repr(vars(runs)), json.dumps(workspace.flat_params(params)), repr(summary), environment.fingerprint()]
    recorded += [path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in recorded if "hush" in text]
    assert "http://server:5000" in recorded[1]


def test_a_planted_secret_is_found(tmp_path: Path) -> None:
    """Else the other test would prove nothing."""
    (tmp_path / "settings.py").write_text(PLANTED)
    (tmp_path / "key.pem").write_text("-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEpAIBAAKCAQEA\n")
    assert {kind for _, kind in found([str(tmp_path / "settings.py"), str(tmp_path / "key.pem")])} >= {
        "AWS Access Key",
        "Private Key",
    }
