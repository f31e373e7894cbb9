"""What is imported before there is work: seconds of every command, and of a flow that finds nothing to do."""

import subprocess
import sys

import pytest

SEEN = "import sys; print([name for name in {names} if name in sys.modules])"


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        ("pvqae.cli", ("pydantic", "yaml", "numpy", "torch", "rich.console")),
        (
            "flows.cli",
            ("pydantic", "yaml", "numpy", "torch", "rich.console", "prefect", "mlflow"),
        ),
        ("flows.train, pvqae.datasets.sources, pvqae.datasets.demo", ("torch", "great_expectations")),
        ("pvqae.evaluation.report, pvqae.evaluation.page", ("torch", "safetensors", "sklearn")),
    ],
)
def test_a_door_imports_only_what_it_needs(modules: str, names: tuple[str, ...]) -> None:
    code = f"import {modules}; {SEEN.format(names=names)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
