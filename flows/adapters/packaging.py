"""A bundle as an MLflow model: pyfunc from code, no pickle."""

import base64
import io
from pathlib import Path

import mlflow
import pandas
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema
from PIL import Image

# By its path: importing it would import torch.
CODE = Path(__file__).parent.parent / "model_code.py"

REQUIREMENTS = ["pvqae"]

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image")]),
    outputs=Schema(
        [
            ColSpec(DataType.double, "image_score"),
            ColSpec(DataType.string, "decision"),
            ColSpec(Array(Array(DataType.double)), "anomaly_map"),
        ]
    ),
)


def example() -> pandas.DataFrame:
    """One small grey image as a caller would send it."""
    file = io.BytesIO()
    Image.new("L", (64, 64), 128).save(file, "PNG")
    return pandas.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})


def log(run: str, bundle: Path) -> str:
    """Log `bundle` (self-contained) under `run`; returns the model's address, models:/m-..."""
    with mlflow.start_run(run_id=run):
        info = mlflow.pyfunc.log_model(
            name="detector",
            python_model=str(CODE),
            artifacts={"bundle": str(bundle)},
            signature=SIGNATURE,
            input_example=example(),
            # Named, so that MLflow does not load the model in another process only to guess them.
            pip_requirements=REQUIREMENTS,
        )
    return str(info.model_uri)
