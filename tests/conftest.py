"""Fixtures that several packages share: real images where they are, and a tiny dataset made on the spot."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from pvqae.core import runtime
from pvqae.samples import images

runtime.complete_environment()  # tests ask servers of this machine, also where a company's proxy is set
# A busy machine is no fault of the code: how long an example takes is not judged.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def real_dataset() -> Callable[[str, str], Path]:
    """Where the real images of a class are, by source and class; a test that asks is skipped where they are absent."""
    from flows.experiments import subjects

    def find(source: str, category: str) -> Path:
        places = subjects.find_places(subjects.dataset_roots())
        for place in places:
            if (place.source, place.category) == (source, category) and place.folder is not None:
                return place.folder
        pytest.skip(f"no real images of {category} ({source}): set PVQAE_DATASETS")

    return find


@pytest.fixture
def tiny_mvtec(tmp_path: Path) -> Path:
    """A dataset in MVTec's layout: class `part`, 40 good, 4 + 3 test images; 24 x 32 px, all different."""
    root, rng = tmp_path / "tiny", np.random.default_rng(0)
    folders = [("train/good", 40), ("test/good", 4), ("test/dent", 3)]
    for folder, count in folders:
        for index in range(count):
            picture = rng.random((24, 32, 3), dtype=np.float32) * 0.2 + 0.4
            mask = np.zeros((24, 32), dtype=np.bool_)
            if folder == "test/dent":
                mask[4:10, 5 : 12 + index] = True
                images.write(root / "part" / "ground_truth" / "dent" / f"{index:03}_mask.png", mask)
            picture[mask] = 0.0
            images.write(root / "part" / folder / f"{index:03}.png", picture)
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The system's Chromium; `browser.new_page()` opens a page. Tests that need it are skipped where there is none.

    Per module, not per session (a start costs 0.7 s): until it is stopped, playwright leaves an event loop running in
    this thread, and `asyncio.run` of other modules' tests would fail.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on the PATH; `apt-get install chromium` for the tests of pages")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
