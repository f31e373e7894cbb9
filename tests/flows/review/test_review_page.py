"""The review page: who may use it, what it serves, and a person's keys in a real browser."""

import json
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import uvicorn

from flows.retrain.ledger import IntakePaths, LabelLog
from flows.review import review_app
from flows.review.items import ThumbnailCache
from flows.review.review_app import ReviewMiddleware
from flows.review.session import ReviewSession
from pvqae.core.errors import DataError
from pvqae.core.files import digest
from pvqae.samples import images

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette's, about the name of a package that it would rather use
    from starlette.testclient import TestClient

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = "http://127.0.0.1:8090"
HOSTILE = '"><img src=x onerror=document.title=1><script>document.title=1</script>.png'


def made(root: Path, names: tuple[str, ...]) -> ReviewSession:
    """A desk with scored images of these names, nearest the threshold first."""
    folder = root / "scores" / "pvqae-nuts-nut" / "belt"
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number, name in enumerate(names):
        file = root / "belt" / f"{number}.png"
        images.write(file, rng.random((40, 60, 3), dtype=np.float32))
        target = file.with_name(name.replace("/", "-"))
        file.rename(target)
        row = {"path": str(target), "sha256": digest(target), "score": 5.1 + number, "threshold": 5.0}
        rows.append({**row, "decision": "defect", "version": "3"})
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return ReviewSession(IntakePaths(root, "nuts"), ("nut",), 100, lambda category: "")


def app(desk: ReviewSession, token: str = "", who: str = "Ada") -> ReviewMiddleware:
    album = ThumbnailCache(desk.paths.root / "cache", lambda category: None)
    return review_app.make(desk, album, who, lambda: ("2 images came into the dataset",), token)


def client(door: ReviewMiddleware, **headers: str) -> TestClient:
    return TestClient(door, base_url=HERE, headers=headers, follow_redirects=False, raise_server_exceptions=True)


@pytest.fixture
def desk(tmp_path: Path) -> ReviewSession:
    return made(tmp_path, ("a.png", "b.png", HOSTILE))


def ids(desk: ReviewSession) -> list[str]:
    return [item["id"] for item in desk.state()["queues"][1]["items"]]


def test_a_label_of_the_page_lands_in_the_log(desk: ReviewSession) -> None:
    door = app(desk)
    body = {"id": ids(desk)[0], "label": "good", "who": "Ada"}
    answer = client(door, **{"X-Page": door.page, "Origin": HERE}).post("/label", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["pending"] == {"good": 1, "defect": 0, "neither": 0}
    (label,) = LabelLog(desk.paths.labels).read()
    assert (label.who, label.label, label.version, label.score) == ("Ada", "good", "3", 5.1)
    assert label.when.endswith("+00:00")


@pytest.mark.parametrize("path", ["/label", "/undo", "/apply"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"X-Page": "wrong"}, 403),
        ({"X-Page": "right", "Origin": "http://evil.example"}, 403),
        ({"X-Page": "right", "Origin": "null"}, 403),
        ({"X-Page": "right", "Host": "evil.example"}, 421),
    ],
)
def test_no_other_site_can_change_anything(
    desk: ReviewSession, path: str, headers: dict[str, str], status: int
) -> None:
    door = app(desk)
    sent = {key: door.page if value == "right" else value for key, value in headers.items()}
    body = {"id": ids(desk)[0], "label": "good", "who": "Ada"}
    assert client(door, **sent).post(path, json=body).status_code == status
    assert LabelLog(desk.paths.labels).read() == []


def test_wrong_bodies_are_refused(desk: ReviewSession) -> None:
    door = app(desk)
    page = client(door, **{"X-Page": door.page})
    assert page.post("/label", json={"id": "../../etc/passwd", "label": "good", "who": "Ada"}).status_code == 422
    assert page.post("/label", json={"id": ids(desk)[0], "label": "applied", "who": "Ada"}).status_code == 422
    assert page.post("/label", json={"id": "0" * 64, "label": "good", "who": "Ada"}).status_code == 409
    assert page.post("/label", content=b"x" * 20_000).status_code == 413


def test_pictures_are_served_by_hash_alone_and_encoded_anew(desk: ReviewSession) -> None:
    page = client(app(desk))
    picture = page.get(f"/picture/{ids(desk)[0]}")
    assert picture.headers["content-type"] == "image/webp"
    assert picture.content[:4] == b"RIFF"
    assert page.get(f"/heatmap/{ids(desk)[0]}").status_code == 404
    for wrong in ("0" * 64, "..%2f..%2fetc%2fpasswd", "a.png"):
        assert page.get(f"/picture/{wrong}").status_code in (404, 422)
    assert page.get("/review.py").status_code == 422


def test_an_image_that_changed_is_not_shown_as_the_one_that_was_scored(desk: ReviewSession) -> None:
    item = desk.item(ids(desk)[0])
    assert item is not None
    images.write(Path(item.place), np.zeros((4, 4, 3), dtype=np.float32))
    with pytest.raises(DataError, match="gone or changed"), item.file():
        pass
    assert client(app(desk)).get(f"/picture/{item.sha256}").status_code == 409


def test_every_answer_says_what_a_browser_may_do(desk: ReviewSession) -> None:
    page = client(app(desk))
    for path in ("/", "/state", "/review.js", "/nothing"):
        headers = page.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_names_are_escaped_in_the_page(desk: ReviewSession) -> None:
    text = client(app(desk, who='"><script>alert(1)</script>')).get("/").text
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text


def test_from_elsewhere_only_with_the_token(desk: ReviewSession) -> None:
    page = client(app(desk, token="secret"), Host="box.example:8090")
    assert page.get("/").status_code == 401
    assert page.get("/?token=wrong").status_code == 401
    answer = page.get("/?token=secret")
    assert answer.status_code == 303
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert page.get("/state", headers={"Cookie": cookie}).status_code == 200


@pytest.fixture
def served(desk: ReviewSession) -> Iterator[str]:
    opened = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app(desk, who=""), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    opened.close()


@pytest.fixture
def page(browser: "Browser", served: str) -> Iterator["Page"]:
    opened = browser.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(served)
    opened.wait_for_selector("#card:not([hidden])")
    yield opened
    opened.close()
    assert faults == []


def test_a_person_labels_with_keys(page: "Page", desk: ReviewSession) -> None:
    file = desk.paths.labels
    page.keyboard.press("g")
    page.wait_for_selector("#error:not([hidden])")
    assert LabelLog(file).read() == []  # without a name nothing is kept
    page.fill("#who", "Grace")
    page.locator("#who").blur()
    for key, left in (("g", 2), ("d", 1), ("s", 0), ("u", 1), ("u", 2)):
        page.keyboard.press(key)
        page.locator(f"[data-queue=near] b:text-is('{left}')").wait_for()
    assert [label.label for label in LabelLog(file).read()] == ["good", "defect", "skip", "undo", "undo"]
    assert {label.who for label in LabelLog(file).read()} == {"Grace"}
    page.keyboard.press("d")
    page.locator("#pending:text('1 good, 1 defect not applied yet')").wait_for()
    assert page.inner_text("#left").startswith("1 left here, 1 images in all queues")
    page.keyboard.press("n")
    page.locator("#pending:text('1 good, 1 defect, 1 neither not applied yet')").wait_for()
    page.click("#apply")
    page.click("#yes")
    page.wait_for_selector("#said:not([hidden])")
    assert "2 images came into the dataset" in page.inner_text("#said")
    page.click("[data-queue=labelled]")
    page.locator("#reason:text('labelled')").wait_for()
    assert page.locator("#skip").is_disabled()


def test_a_hostile_name_is_text_and_the_page_fits_a_phone(page: "Page", desk: ReviewSession) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.fill("#who", "Grace")
    page.locator("#who").blur()
    for left in (2, 1):
        page.keyboard.press("s")
        page.locator(f"[data-queue=near] b:text-is('{left}')").wait_for()
    assert page.inner_text("#name") == HOSTILE.replace("/", "-")
    assert page.title() == "Review of nuts"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_reports_are_shown_in_a_sandbox(desk: ReviewSession) -> None:
    folder = desk.paths.root / "reports" / "nuts"
    folder.mkdir(parents=True)
    (folder / "history.html").write_text("<h1>History</h1>")
    (folder / "versions.json").write_text("{}")
    there = client(app(desk))
    assert '"/report/history.html"' in there.get("/").text
    answer = there.get("/report/history.html")
    assert (answer.status_code, answer.text) == (200, "<h1>History</h1>")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in policy
    assert there.get("/report/index.html").status_code == 404
    assert there.get("/report/versions.json").status_code == 422
    assert there.get("/report/..%2Fnuts%2Fhistory.html").status_code in (404, 422)
    assert "sandbox" not in there.get("/").headers["content-security-policy"]
