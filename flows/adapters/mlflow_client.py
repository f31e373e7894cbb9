"""MLflow's own client: where it looks for buckets, what its errors say, and a bundle as a model from code."""

import base64
import io
import os
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow
import pandas
from botocore.exceptions import BotoCoreError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema
from PIL import Image

from flows.adapters.tracking import RegistryError
from pvqae.core.files import BACKBONE, digest

_STYLE = "addressing_style"


def _address_as_the_user() -> None:
    """Address buckets as AWS's own settings say: MLflow's client overrides them by a setting of its own."""
    with suppress(OSError, BotoCoreError):  # no such file or profile: said where it is needed
        file = Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
        if _STYLE not in file.read_text("utf-8", "replace"):
            return
        from botocore.session import Session  # half a second

        if style := Session().get_scoped_config().get("s3", {}).get(_STYLE):
            os.environ.setdefault("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", style)


# By its path: importing it would import torch.
_CODE = Path(__file__).with_name("model_code.py")

_REQUIREMENTS = ["pvqae"]

_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image")]),
    outputs=Schema(
        [
            ColSpec(DataType.double, "image_score"),
            ColSpec(DataType.string, "decision"),
            ColSpec(Array(Array(DataType.double)), "anomaly_map"),
        ]
    ),
)


def _example() -> pandas.DataFrame:
    """Return one small grey image as a caller would send it."""
    file = io.BytesIO()
    Image.new("L", (64, 64), 128).save(file, "PNG")
    return pandas.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})


class Client:
    """`MlflowClient` whose errors are `RegistryError`s that say how to bring back what a person has deleted."""

    def __init__(self, uri: str) -> None:
        _address_as_the_user()
        mlflow.set_tracking_uri(uri)
        self._client, self._uri = MlflowClient(uri, uri), uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        work = getattr(self._client, name)

        def explained(*given: Any, **named: Any) -> Any:
            try:
                return work(*given, **named)
            except MlflowException as error:
                raise RegistryError(self._explain(str(error)), str(error.error_code)) from error

        return explained

    def _explain(self, text: str) -> str:
        """Add the command that restores a deleted run or experiment, which MLflow keeps for a while."""
        found = re.search(r"The (run|experiment) (\w+) must be in the 'active' state", text)
        if not found:
            away = "; see that the server answers: python -m flows doctor" * ("Max retries exceeded" in text)
            return f"MLflow: {text}{away}"
        kind, name = found.groups()
        experiment = self._client.get_run(name).info.experiment_id if kind == "run" else name
        if self._client.get_experiment(experiment).lifecycle_stage == "deleted":
            words = f"experiments restore --experiment-id {experiment}"
        else:
            words = f"runs restore --run-id {name}"
        address = shlex.quote(self._uri)
        return f"the {kind} {name} was deleted in MLflow; run: MLFLOW_TRACKING_URI={address} mlflow {words}"

    @staticmethod
    def log_bundle(run: str, bundle: Path) -> str:
        """Log `bundle` (self-contained) under `run`; return the model's address, models:/m-..."""
        with mlflow.start_run(run_id=run):
            info = mlflow.pyfunc.log_model(
                name="detector",
                python_model=str(_CODE),
                artifacts={"bundle": str(bundle)},
                signature=_SIGNATURE,
                input_example=_example(),
                # Named, so that MLflow does not load the model in another process only to guess them.
                pip_requirements=_REQUIREMENTS,
            )
        _share_weights(mlflow.get_logged_model(info.model_id).artifact_location)
        return str(info.model_uri)


def _share_weights(location: str) -> None:
    """Keep the frozen weights of a logged model once for all models of its experiment that are in a folder.

    They are the same in every version and nineteen twentieths of it: 4 GB after a year of nights for a class. Each
    version still has the file, as a hard link. Buckets, and disks without such links, keep copies.
    """
    if not location.startswith("file:"):
        return
    folder = Path(url2pathname(urlparse(location).path))
    for file in folder.rglob(BACKBONE):
        kept = folder.parents[2] / "frozen" / f"{digest(file)}.safetensors"
        kept.parent.mkdir(exist_ok=True)
        with suppress(OSError):
            if not kept.exists():
                os.link(file, kept)
            elif not kept.samefile(file) and digest(kept) == digest(file):
                part = file.with_suffix(".part")
                os.link(kept, part)
                os.replace(part, file)
