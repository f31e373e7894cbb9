"""What is imported before there is work: seconds of every command, and of a flow that finds nothing to do; what no
module may import at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SEEN = "import sys; print([name for name in {names} if name in sys.modules])"


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        ("pvqae.cli.main", ("pydantic", "yaml", "numpy", "torch", "rich.console")),
        (
            "flows.cli.main",
            ("pydantic", "yaml", "numpy", "torch", "rich.console", "prefect", "mlflow"),
        ),
        ("flows.train.train, pvqae.datasets.sources, pvqae.datasets.demo", ("torch", "great_expectations")),
        ("pvqae.report.report, pvqae.report.page", ("torch", "safetensors", "sklearn")),
    ],
)
def test_a_door_imports_only_what_it_needs(modules: str, names: tuple[str, ...]) -> None:
    code = f"import {modules}; {SEEN.format(names=names)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MAPPING = ("load_file", "safe_open", "memmap", "open_memmap", "mmap", "mmap_mode")
# A nameless file that only its process can reach; DVC's own reader of its settings.
MAPPED = {"pvqae/features/examples.py": ["memmap"], "flows/adapters/dvc_files.py": ["load_file"]}


def test_nothing_that_runs_is_mapped_from_a_file_that_others_can_change() -> None:
    """It would compute with other bytes than were verified, and end where the file is cut short."""
    for path in [*PROJECT.glob("pvqae/**/*.py"), *PROJECT.glob("flows/**/*.py")]:
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        names = [getattr(node, key, None) for node in nodes for key in ("attr", "id", "name", "arg", "module")]
        found = [name for name in names if name in MAPPING]
        assert found == MAPPED.get(path.relative_to(PROJECT).as_posix(), []), path
