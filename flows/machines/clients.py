"""The environments of the servers and of those that use them."""

import os
import sys
from pathlib import Path

from flows.core import environment
from flows.machines.place import HOST, REGION, Place


def clean() -> dict[str, str]:
    """Our environment without what would point a server at another one."""
    foreign = ("PREFECT_", "MLFLOW_", "AWS_", "GIT_", "PG", "WEED_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign) or key == "AWS_CA_BUNDLE"}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return kept | environment.QUIET | {"PATH": path, "PYTHONUNBUFFERED": "1"}


def api(place: Place) -> str:
    return f"http://{HOST}:{place.settings.prefect_port}/api"


def s3_endpoint(place: Place) -> str:
    return f"http://{HOST}:{place.settings.s3_port}"


def s3_client(place: Place) -> dict[str, str]:
    """What an AWS client needs; of the key only where it lies."""
    return {
        "AWS_ENDPOINT_URL_S3": s3_endpoint(place),
        "AWS_SHARED_CREDENTIALS_FILE": str(place.aws_file),
        "AWS_CONFIG_FILE": str(place.aws_config),
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client(place: Place) -> dict[str, str]:
    """The environment in which every flow uses these services."""
    mlflow = f"http://{HOST}:{place.settings.mlflow_port}"
    return {"PREFECT_API_URL": api(place), "MLFLOW_TRACKING_URI": mlflow} | s3_client(place)
