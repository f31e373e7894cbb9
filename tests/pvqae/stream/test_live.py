"""The live page: what it says, who may see it, and that it is drawn in a browser."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import requests

from pvqae.core import config
from pvqae.core.errors import ConfigError
from pvqae.inference.bundle import Detector
from pvqae.stream import live
from tests.pvqae.stream.conftest import Run
from tests.videos import video

pytest.importorskip("av", reason="PyAV is not installed: pip install 'pvqae[stream]'")
if TYPE_CHECKING:
    from playwright.sync_api import Browser

Streamed = Callable[..., Run]
TOKEN = "a-token-of-the-tests-0123"
FREE = config.Service().model_copy(update={"port": 0})


@pytest.fixture(scope="module")
def file(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(video(tmp_path_factory.mktemp("videos") / "line <1>.mkv", pictures))


def board(detector: Detector, run: Run, name: str = "line <1>") -> live.Board:
    return live.Board(detector, "tiny/sheet", name, run.counts)


def test_the_page_says_what_the_stream_does(streamed: Streamed, detector: Detector, file: str) -> None:
    run = Run()
    shown = board(detector, run)
    with live.served(shown, FREE, "", run.said.append) as address:
        empty = requests.get(address, timeout=10).text
        assert "waiting for the first frame" in empty
        streamed(file, run=run, more=[shown])
        page = requests.get(address, timeout=10)
        state = requests.get(f"{address}/state.json", timeout=10).json()
        found = re.findall(r'src="(picture/\d+\.webp)"', page.text)
        kinds = {requests.get(f"{address}/{name}", timeout=10).headers["content-type"] for name in found}
        gone = requests.get(f"{address}/picture/99.webp", timeout=10)
        style = requests.get(f"{address}/live.css", timeout=10)
        head = requests.head(address, timeout=10)
    assert run.said[0] == f"live page: {address}"
    assert "line &lt;1&gt;" in page.text
    assert 'http-equiv="refresh"' in page.text
    assert "<script" not in page.text
    assert found
    assert kinds == {"image/webp"}
    assert "picture/1.webp" in found  # the alarm
    assert (gone.status_code, style.status_code, head.status_code, head.content) == (404, 200, 200, b"")
    assert state["counts"]["scored"] == 5
    assert state["alarms"][0]["number"] == 1
    assert [score for _, score, _ in state["scores"]] == pytest.approx([row["score"] for row in run.rows])
    assert "script-src" not in page.headers["Content-Security-Policy"]


def test_pictures_of_an_older_page_are_still_there(
    streamed: Streamed, detector: Detector, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    run = Run()
    shown = board(detector, run)
    streamed(str(video(tmp_path / "v.mkv", [pictures[1]] * 12)), run=run, more=[shown])
    assert [one.number for one in shown.state()["alarms"]] == list(range(11, 3, -1))
    assert shown.webp(0)


def test_only_this_machine_or_the_token(detector: Detector) -> None:
    shown = board(detector, Run())
    with live.served(shown, FREE, "", print) as address:
        assert requests.get(address, headers={"Host": "evil.example"}, timeout=10).status_code == 421
    with live.served(shown, FREE, TOKEN, print) as address:
        for wrong in (None, ("me", "no"), ("me", "")):
            assert requests.get(address, auth=wrong, timeout=10).status_code == 401
        assert requests.get(address, headers={"Authorization": "Basic *"}, timeout=10).status_code == 401
        assert requests.get(address, auth=("me", TOKEN), timeout=10).status_code == 200
    with (
        pytest.raises(ConfigError, match="needs a token"),
        live.served(shown, FREE.model_copy(update={"host": "0.0.0.0"}), "", print),
    ):
        pass


def test_a_trend_has_the_newest_score_at_the_right_end() -> None:
    drawn = live.trend([(0, 1.0, False), (1, 4.0, True), (2, 0.5, False)], 2.0)
    points = [tuple(map(float, point.split(","))) for point in drawn["line"].split()]
    assert points[-1][0] == drawn["width"]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[1][1] < drawn["cut"] < points[0][1] < points[2][1] <= drawn["height"]  # y grows downwards
    assert drawn["alarms"] == [points[1]]
    assert live.trend([], 2.0)["line"] == ""


def test_the_page_is_whole_in_a_browser(streamed: Streamed, detector: Detector, file: str, browser: "Browser") -> None:
    run = Run()
    shown = board(detector, run)
    streamed(file, run=run, more=[shown])
    with live.served(shown, FREE, "", print) as address:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(address)
        drawn = page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
        wide = page.evaluate("document.documentElement.scrollWidth")
        page.close()
    assert drawn
    assert all(drawn)
    assert wide <= 390
    assert wrong == []
