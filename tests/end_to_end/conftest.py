import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that PostgreSQL can pass when it runs as nobody, which it does for root. Every start of pytest shuts the
    folders that pytest itself makes, also below a server that runs there."""
    with tempfile.TemporaryDirectory(prefix="pvqae-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)
