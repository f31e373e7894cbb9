import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A private folder, which nobody but this user can pass, as most are where root works; of a name with a blank."""
    with tempfile.TemporaryDirectory(prefix="pvqae private ", ignore_cleanup_errors=True) as name:
        yield Path(name)
