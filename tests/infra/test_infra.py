"""What describes the services for Docker and Kubernetes: valid by their schemas, and safe by rules of our own."""

import copy
import importlib.util
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
MANIFESTS = sorted((INFRA / "kubernetes").glob("*.yaml"))
SECRET = re.compile(r"password|secret|token|access_key", re.IGNORECASE)
ONCE = {"bootstrap"}  # it ends by itself, so there is nothing to probe


def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text("utf-8"))


def objects() -> list[dict[str, Any]]:
    return [item for file in MANIFESTS for item in yaml.safe_load_all(file.read_text("utf-8"))]


def tagged(image: str) -> bool:
    name, colon, tag = image.rpartition(":")
    return bool(colon and name and "/" not in tag and tag != "latest")


def plain(name: str, value: object) -> bool:
    """Whether a variable holds a secret itself."""
    told = bool(SECRET.search(name)) and not name.endswith("_FILE") and bool(value)
    return told or bool(re.search(r"://[^/@:]+:[^@/]+@", str(value)))


def compose_faults(name: str, service: dict[str, Any]) -> Iterator[str]:
    """What of a compose service breaks our rules."""
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if not {"cpus", "memory", "pids"} <= set(limits):
        yield "limits"
    if "healthcheck" not in service and name not in ONCE:
        yield "healthcheck"
    if not service.get("read_only"):
        yield "writable root"
    if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
        yield "privileges"
    if str(service.get("user", "0")).split(":")[0] in ("0", "root"):
        yield "root"
    if not tagged(service.get("image", "")):
        yield "image"
    if any(plain(key, value) for key, value in service.get("environment", {}).items()):
        yield "plain secret"
    if any(not str(port).startswith("127.0.0.1:") for port in service.get("ports", [])):
        yield "open port"


def pod_of(item: dict[str, Any]) -> dict[str, Any] | None:
    return item.get("spec", {}).get("template", {}).get("spec")


def pod_faults(item: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    """What of a pod breaks our rules."""
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        yield "root"
    if pod.get("automountServiceAccountToken") is not False:
        yield "token"
    for container in pod["containers"]:
        own = container.get("securityContext", {})
        if not own.get("readOnlyRootFilesystem"):
            yield "writable root"
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
            yield "privileges"
        resources = container.get("resources", {})
        if not ({"cpu", "memory"} <= set(resources.get("limits", {})) and resources.get("requests")):
            yield "limits"
        if item["kind"] != "Job" and not {"livenessProbe", "readinessProbe", "startupProbe"} <= set(container):
            yield "probes"
        if not tagged(container.get("image", "")):
            yield "image"
        if any(plain(variable["name"], variable.get("value")) for variable in container.get("env", [])):
            yield "plain secret"


def test_compose_follows_its_schema_and_our_rules() -> None:
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text("utf-8"))
    found = compose()
    jsonschema.validate(found, schema)
    found["services"]["s3"]["comand"] = []
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(found, schema)


@pytest.mark.parametrize("name", list(compose()["services"]))
def test_a_compose_service_is_guarded(name: str) -> None:
    assert list(compose_faults(name, compose()["services"][name])) == []


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("limits", {"deploy": {}}),
        ("healthcheck", {"healthcheck": None}),
        ("writable root", {"read_only": False}),
        ("privileges", {"cap_drop": []}),
        ("root", {"user": "0:0"}),
        ("image", {"image": "mlflow:latest"}),
        ("plain secret", {"environment": {"AWS_SECRET_ACCESS_KEY": "abc"}}),
        ("plain secret", {"environment": {"STORE": "postgresql://mlflow:abc@postgres/mlflow"}}),
        ("open port", {"ports": ["5000:5000"]}),
    ],
)
def test_a_compose_service_that_is_not_guarded_is_found(fault: str, change: dict[str, Any]) -> None:
    service = {key: value for key, value in (compose()["services"]["mlflow"] | change).items() if value is not None}
    assert list(compose_faults("mlflow", service)) == [fault]


def test_compose_refers_only_to_what_is_there(tmp_path: Path) -> None:
    found = compose()
    spec = importlib.util.spec_from_file_location("make_secrets", INFRA / "make_secrets.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.write(tmp_path / "secrets")
    assert not module.write(tmp_path / "secrets")
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    for name, secret in found["secrets"].items():
        assert (tmp_path / "secrets" / name).exists(), secret
    for service in found["services"].values():
        used = {item if isinstance(item, str) else item["source"] for item in service.get("secrets", [])}
        assert used <= set(found["secrets"])
        assert set(service.get("networks", [])) <= set(found["networks"])
        assert set(service.get("depends_on", {})) <= set(found["services"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in found["volumes"] or (INFRA / source).exists() or source == "../.git"


@pytest.mark.parametrize("item", objects(), ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_a_kubernetes_object_follows_its_schema_and_our_rules(item: dict[str, Any]) -> None:
    kubernetes_validate.validate(item, "1.37", strict=True)
    if pod := pod_of(item):
        assert list(pod_faults(item, pod)) == []
    if item["kind"] != "Namespace":
        assert item["metadata"]["namespace"] == "pvqae"


def test_a_wrong_key_of_a_kubernetes_object_is_found() -> None:
    item = copy.deepcopy(next(item for item in objects() if item["kind"] == "StatefulSet"))
    item["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(item, "1.37", strict=True)


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("limits", {"resources": {"requests": {"cpu": "1"}}}),
        ("probes", {"livenessProbe": None}),
        ("writable root", {"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}),
        ("image", {"image": "registry.example.internal:5000/worker"}),
        ("plain secret", {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}]}),
    ],
)
def test_a_pod_that_is_not_guarded_is_found(fault: str, change: dict[str, Any]) -> None:
    item = copy.deepcopy(next(item for item in objects() if item["kind"] == "StatefulSet"))
    pod = item["spec"]["template"]["spec"]
    changed = pod["containers"][0] | change
    pod["containers"] = [{key: value for key, value in changed.items() if value is not None}]
    assert list(pod_faults(item, pod)) == [fault]


def test_kubernetes_objects_refer_only_to_each_other() -> None:
    found = objects()
    labels = [item["spec"]["template"]["metadata"]["labels"] for item in found if pod_of(item)]
    accounts = {item["metadata"]["name"] for item in found if item["kind"] == "ServiceAccount"}
    addresses = next(item["data"] for item in found if item["kind"] == "ConfigMap")
    for item in found:
        if item["kind"] == "Service":
            assert any(item["spec"]["selector"].items() <= one.items() for one in labels)
        if pod := pod_of(item):
            assert pod["serviceAccountName"] in accounts
            keys = re.findall(r"'configMapKeyRef': \{'name': 'addresses', 'key': '(\w+)'", str(pod))
            assert set(keys) <= set(addresses)
    assert not any(plain(key, value) for key, value in addresses.items())


@pytest.mark.parametrize("file", sorted((INFRA / "images").glob("*.Dockerfile")), ids=lambda file: file.name)
def test_an_image_is_pinned_and_not_root(file: Path) -> None:
    lines = file.read_text("utf-8").splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert all(map(tagged, bases))
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert not any(re.search(r"https?://|--index-url|--extra-index-url|^ADD ", line) for line in lines)
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    for source in (word for words in copied for word in words if not word.startswith("--")):
        assert (INFRA.parent / source).exists(), source


@pytest.mark.parametrize("file", sorted((INFRA / "policies").glob("*.json")), ids=lambda file: file.name)
def test_a_policy_allows_no_more_than_it_must(file: Path) -> None:
    found = json.loads(file.read_text("utf-8"))
    assert found["Version"] == "2012-10-17"
    for statement in found["Statement"]:
        assert statement["Effect"] in ("Allow", "Deny")
        assert all(resource.startswith("arn:aws:s3:::example-pvqae-") for resource in statement["Resource"])
        if statement["Effect"] == "Allow":
            assert all(re.fullmatch(r"s3:[A-Za-z]+", action) for action in statement["Action"])
    if file.name == "uploader.json":
        assert [statement["Action"] for statement in found["Statement"]] == [["s3:PutObject"]]
