"""What a client gets: scores that are those of the bundle, and refusals in words."""

import base64
import hashlib
import io
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from pvqae.core import runtime
from pvqae.inference import bundle as bundles
from pvqae.inference.scoring import Scored
from pvqae.samples import images
from pvqae.serving import batch, batch_source, middleware
from pvqae.serving.app import Answer
from pvqae.serving.slot import Model, load
from tests.pvqae.serving.conftest import TOKEN

Serving = Callable[..., Any]


def as_json(data: bytes, name: str = "part.png") -> dict[str, str]:
    return {"image": base64.b64encode(data).decode(), "name": name}


def reason(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["reason"]


def test_form_json_and_batch_give_the_rows_of_the_bundle(
    serving: Serving, bundle: Path, photos: list[bytes], tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, data in zip(files, photos, strict=True):
        file.write_bytes(data)
    detector = bundles.load(bundle)
    expected = list(batch.rows(detector, batch_source.Files(tuple(files)), "7"))
    with serving() as served:
        single = [served.post("/v1/score", files={"file": (f.name, f.read_bytes())}).json() for f in files]
        posted = [("files", (file.name, file.read_bytes())) for file in files]
        many = served.post("/v1/score/batch", files=posted).json()["results"]
        sent = {"images": [as_json(data, file.name) for data, file in zip(photos, files, strict=True)]}
        text = served.post("/v1/score/batch", json=sent).json()["results"]
        one = served.post("/v1/score", json=as_json(photos[0], "0.png")).json()
    assert single == many == text
    assert one == single[0]
    for found, row, file in zip(single, expected, files, strict=True):
        assert found["score"] == pytest.approx(detector.score(file).image_score, abs=1e-6)
        assert set(found) == {*row, "heatmap", "mask"} == set(Answer.model_fields)
        same = ("sha256", "threshold", "decision", "version", "bundle_sha256", "level_shares", "statistics", "error")
        same += ("pixel_threshold", "marked_area", "region_count", "regions")
        assert {key: found[key] for key in same} == {key: row[key] for key in same}
        assert found["margin"] == pytest.approx(row["margin"], abs=1e-6)
        assert found["path"] == file.name
    assert [row["decision"] for row in single] == ["normal", "defect", "defect"]


def test_a_heatmap_is_the_report_s_and_only_on_request(serving: Serving, bundle: Path, photos: list[bytes]) -> None:
    with serving() as served:
        plain = served.post("/v1/score", files={"file": photos[1]}).json()
        drawn = served.post("/v1/score?heatmap=true", files={"file": photos[1]}).json()
    assert plain["heatmap"] is None
    found = Image.open(io.BytesIO(base64.b64decode(drawn["heatmap"])))
    assert found.format == "PNG"
    detector = bundles.load(bundle)
    _, scored = batch.one(detector, photos[1], "x")
    assert isinstance(scored, Scored)
    assert (batch.heatmap(detector, scored) == found).all()


def test_the_mask_is_the_image_s_size_and_holds_the_regions(serving: Serving, photos: list[bytes]) -> None:
    with serving() as served:
        plain = served.post("/v1/score", files={"file": photos[1]}).json()
        drawn = served.post("/v1/score?mask=true", files={"file": photos[1]}).json()
    assert plain["mask"] is None
    assert plain | {"mask": drawn["mask"]} == drawn
    found = Image.open(io.BytesIO(base64.b64decode(drawn["mask"])))
    size = Image.open(io.BytesIO(photos[1])).size
    assert (found.format, found.size, found.mode) == ("PNG", size, "L")
    mask = np.asarray(found) == 255
    assert mask.mean() == pytest.approx(drawn["marked_area"], abs=0.01)
    assert 1 <= drawn["region_count"] == len(drawn["regions"])
    for region in drawn["regions"]:
        x, y, width, height = (region[key] for key in ("x", "y", "width", "height"))
        inside = mask[y : y + height, x : x + width]
        assert inside.shape == (height, width)
        assert inside.any(0).all()
        assert inside.any(1).all()
    best = drawn["regions"][0]  # the dent of `photos`
    assert abs(best["x"] + best["width"] / 2 - 70) < 30
    assert abs(best["y"] + best["height"] / 2 - 55) < 30


def test_the_header_s_capture_time_and_the_name_come_back(serving: Serving) -> None:
    picture, exif = Image.new("RGB", (64, 64), (90, 100, 110)), Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    with serving() as served:
        name = '../<b>"ö\n.jpg'
        row = served.post("/v1/score", json=as_json(file.getvalue(), name)).json()
    assert (row["taken"], row["path"]) == ("2026-01-02T03:04:05", name)
    assert row["sha256"] == hashlib.sha256(file.getvalue()).hexdigest()


def bomb(side: int) -> bytes:
    """A PNG that says it has `side` x `side` pixels and is 200 bytes long."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(bytes(1000)), b"IEND": b""}
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_bad_images_are_400_and_a_row_of_a_batch(serving: Serving, photos: list[bytes]) -> None:
    bad = {
        "text": b"no image",
        "empty": b"",
        "cut": photos[0][: len(photos[0]) // 2],
        "huge": bomb(20_000),
        "bomb": bomb(9200),
    }
    with serving() as served:
        for name, data in bad.items():
            answer = served.post("/v1/score", files={"file": (name, data)})
            assert reason(answer) == (400, "image")
            message = answer.json()["error"]["message"]
            assert name in message
            assert "expected" in message
            assert "Traceback" not in answer.text
        assert "9200 x 9200" in message
        posted = [("files", ("good", photos[0])), ("files", ("text", b"no image"))]
        good, text = served.post("/v1/score/batch", files=posted).json()["results"]
        assert served.value("pvqae_errors_total", reason="image") == 2 * len(bad) + 1
    assert (good["decision"], text["decision"], text["score"]) == ("normal", "", None)
    assert "readable image" in text["error"]


def test_requests_of_another_form_say_what_is_expected(serving: Serving, photos: list[bytes]) -> None:
    image = {"file": photos[0]}
    with serving(max_batch=2) as served:
        cases = [
            (served.post("/v1/score", data=b"x", headers={"Content-Type": "image/png"}), 415, "content_type"),
            (served.post("/v1/score"), 415, "content_type"),
            (served.post("/v1/score", files={"image": photos[0]}), 400, "request"),
            (served.post("/v1/score", files=image, data={"more": "x"}), 400, "request"),
            (served.post("/v1/score", files=[("file", photos[0])] * 2), 413, "too_many"),
            (served.post("/v1/score/batch", files=[("files", photos[0])] * 3), 413, "too_many"),
            (served.post("/v1/score/batch", json={"images": [as_json(photos[0])] * 3}), 413, "too_many"),
            (served.post("/v1/score/batch", json={"images": []}), 400, "request"),
            (served.post("/v1/score", json={"image": "%%%"}), 400, "request"),
            (served.post("/v1/score", json={"image": 3, "path": "/etc/passwd"}), 400, "request"),
            (served.post("/v1/score", data=b"[" * 9000, headers={"Content-Type": "application/json"}), 400, "request"),
            (served.post("/v1/score", data=b"x", headers={"Content-Type": "multipart/form-data"}), 400, "request"),
            (served.post("/v1/score?heatmap=perhaps", files=image), 422, "request"),
            (served.post("/v1/score?heatmaps=true", files=image), 422, "request"),
            (served.get("/v1/score"), 405, "request"),
            (served.get("/docs"), 404, "request"),
        ]  # fmt: skip
    for answer, status, word in cases:
        assert reason(answer) == (status, word), answer.text


def chunks(data: bytes, size: int = 10_000) -> Any:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_large_bodies_are_refused_by_their_header_and_while_they_come(serving: Serving) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    with serving(max_bytes=50_000) as served:
        announced = served.post("/v1/score", files={"file": bytes(60_000)})
        growing = served.post("/v1/score", data=chunks(head + bytes(90_000)), headers=kind)
        text = served.post("/v1/score", data=chunks(bytes(90_000)), headers={"Content-Type": "application/json"})
    for answer in (announced, growing, text):
        assert reason(answer) == (413, "too_large")
        assert "50000 bytes" in answer.json()["error"]["message"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_too_many_requests_of_a_client_wait_a_second(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_RateLimit", partial(middleware._RateLimit, clock=lambda: 0.0))
    with serving(rate=0.5, burst=3) as served:
        found = [served.get("/v1/model") for _ in range(4)]
        probes = [served.get("/health").status_code for _ in range(9)]
    assert [answer.status_code for answer in found] == [200, 200, 200, 429]
    assert found[3].headers["retry-after"] == "2"
    assert reason(found[3])[1] == "rate"
    assert probes == [200] * 9


class Slow:
    """A detector that scores when it is let, and says when it began."""

    def __init__(self, real: Any) -> None:
        self.sha256, self.card, self.config, self.threshold = real.sha256, real.card, real.config, real.threshold
        self.pixel_threshold, self.marks = real.pixel_threshold, real.marks
        self.scorer, self._real, self.began, self.go = real.scorer, real, threading.Semaphore(0), threading.Event()

    def score(self, pixels: Any, sample_id: str = "") -> Any:
        self.began.release()
        assert self.go.wait(20)
        return self._real.score(pixels)


def test_a_full_queue_is_refused_and_what_waits_is_answered(
    serving: Serving, loaded: Model, photos: list[bytes]
) -> None:
    slow = Slow(loaded.detector)
    with serving(queue=2, model=Model(slow)) as served, ThreadPoolExecutor(4) as pool:  # type: ignore[arg-type]
        running = [pool.submit(served.post, "/v1/score", files={"file": photos[0]}) for _ in range(2)]
        assert slow.began.acquire(timeout=20)
        while served.value("pvqae_waiting") != 2:
            pass
        refused = served.post("/v1/score", files={"file": photos[0]})
        alive = served.get("/health")
        slow.go.set()
        assert [future.result().status_code for future in running] == [200, 200]
    assert reason(refused) == (503, "busy")
    assert refused.headers["retry-after"] == "1"
    assert alive.json() == {"status": "alive"}


@pytest.mark.parametrize(("aspect", "shares"), [("auto", [4, 2, 1, 1]), ("tile", [4, 4, 4, 4])])
def test_images_share_the_threads_and_tiled_ones_wait_for_each_other(
    serving: Serving, loaded: Model, photos: list[bytes], monkeypatch: pytest.MonkeyPatch, aspect: str,
    shares: list[int],
) -> None:  # fmt: skip
    used = []

    class Counting(Slow):
        def score(self, pixels: Any, sample_id: str = "") -> Any:
            used.append(torch.get_num_threads())
            return super().score(pixels, sample_id)

    slow = Counting(loaded.detector)
    slow.scorer = replace(slow.scorer, image=slow.scorer.image.model_copy(update={"aspect": aspect}))
    monkeypatch.setattr(runtime, "plan", lambda *_: runtime.Plan("cpu", "float32", 1, 4))
    with serving(model=Model(slow)) as served, ThreadPoolExecutor(4) as pool:  # type: ignore[arg-type]
        running = [pool.submit(served.post, "/v1/score", files={"file": photo}) for photo in photos[:1] * 4]
        begun = [slow.began.acquire(timeout=20 if number == 0 or aspect == "auto" else 0.1) for number in range(4)]
        slow.go.set()
        found = [future.result().json()["score"] for future in running]
    assert begun == [True] + [aspect == "auto"] * 3
    assert sorted(used, reverse=True) == shares  # which of them gets to note its share first is chance
    assert found == pytest.approx([loaded.detector.score(images.decode(photos[0], "")[0]).image_score] * 4, abs=1e-6)


def test_what_takes_too_long_is_given_up_and_the_service_goes_on(
    serving: Serving, loaded: Model, photos: list[bytes]
) -> None:
    slow = Slow(loaded.detector)
    with serving(timeout=5, model=Model(slow)) as served:  # type: ignore[arg-type]
        late = served.post("/v1/score/batch", files=[("files", photos[0])] * 3)
        slow.go.set()
        assert served.value("pvqae_waiting") == 0
        again = served.post("/v1/score", files={"file": photos[0]})
    assert reason(late) == (503, "timeout")
    assert again.status_code == 200
    assert slow.began._value == 2  # the last two of the batch were never begun


def replaced(folder: Path, newer: Path) -> None:
    shutil.copytree(newer, folder, dirs_exist_ok=True)


def cut_short(folder: Path, newer: Path) -> None:
    for path in folder.iterdir():
        os.truncate(path, path.stat().st_size // 3)


def flipped_in_place(folder: Path, newer: Path) -> None:
    """Same size, and the time set back."""
    file = folder / "statistics.safetensors"
    before, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    with file.open("r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def removed(folder: Path, newer: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [(replaced, "replaced"), (cut_short, "damaged"), (flipped_in_place, "damaged"), (removed, "gone")],
)
def test_a_folder_that_changes_below_the_service_is_said_and_changes_no_score(
    serving: Serving, bundle: Path, newer: Path, photos: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    change: Callable[[Path, Path], None], found: str,
) -> None:  # fmt: skip
    live = Path(shutil.copytree(bundle, tmp_path / "live"))
    with serving(model=load(bundles.read(live), "7")) as served:

        def state() -> tuple[Any, ...]:
            ready, scored = served.get("/ready"), served.post("/v1/score", files={"file": photos[1]}).json()
            assert ready.status_code == 200
            same = ready.json()["bundle_sha256"] == scored["bundle_sha256"] == bundles.sha256_of(bundle)
            return ready.json()["on_disk"], same, scored["score"], scored["threshold"]

        before = state()
        assert before[:2] == ("same", True)
        change(live, newer)
        assert state() == (found, *before[1:])
        assert state() == (found, *before[1:])
        shutil.rmtree(live, ignore_errors=True)
        shutil.copytree(bundle, live)
        assert state() == before
    said = [record.message for record in caplog.records if str(live) in record.message]
    assert len(said) == 2  # when it changed, and when it was as before again


def test_files_are_read_only_after_something_changed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Path(shutil.copytree(bundle, tmp_path / "live"))
    model, reads, verify = load(bundles.read(live)), [], bundles.verify

    def counted(folder: Path) -> str:
        reads.append(folder)
        return verify(folder)

    monkeypatch.setattr(bundles, "verify", counted)
    assert {model.on_disk for _ in range(5)} == {"same"}
    assert len(reads) == 1
    (live / "config.json").touch()
    assert {model.on_disk for _ in range(5)} == {"same"}
    assert len(reads) == 2


def test_not_ready_until_a_model_is_loaded(serving: Serving, loaded: Model, photos: list[bytes]) -> None:
    with serving(model=None) as served:
        assert served.get("/health").status_code == 200
        assert reason(served.get("/ready")) == (503, "not_ready")
        assert served.post("/v1/score", files={"file": photos[0]}).status_code == 503
        served.slot.put(loaded)
        assert served.get("/ready").json()["version"] == "7"
        assert served.post("/v1/score", files={"file": photos[0]}).status_code == 200


def test_the_model_card(serving: Serving, loaded: Model) -> None:
    with serving() as served:
        card = served.get("/v1/model").json()
    assert (card["dataset"], card["category"], card["version"]) == ("tiny", "sheet", "7")
    assert card["bundle_sha256"] == loaded.detector.sha256
    assert card["calibration"]["threshold"] == 100.0
    assert "scores" not in card["calibration"]
    assert card["image"]["size"] == 128
    assert card["lineage"] == {"git_sha": "ab" * 20}


def test_metrics_count_what_happened(serving: Serving, loaded: Model, photos: list[bytes]) -> None:
    with serving() as served:
        for data in photos:
            served.post("/v1/score", files={"file": data})
        served.get("/no/such/place")
        answer = served.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    for line in (
        "pvqae_images_total 3.0",
        "pvqae_defects_total 2.0",
        "pvqae_ready 1.0",
        'pvqae_requests_total{endpoint="/v1/score",status="200"} 3.0',
        'pvqae_requests_total{endpoint="other",status="404"} 1.0',
        f'pvqae_model_info{{bundle_sha256="{loaded.detector.sha256}",model="tiny/sheet",version="7"}} 1.0',
        'pvqae_reloads_total{outcome="loaded"} 1.0',
    ):
        assert line in lines


def test_a_token_opens_all_but_the_probes(serving: Serving) -> None:
    paths = ("/metrics", "/v1/model", "/openapi.json")
    with serving(token=TOKEN) as served:
        get = served.get
        assert get("/health").status_code == get("/ready").status_code == 200
        for given in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer ü"):
            answer = get(paths[0], headers={"Authorization": given.encode()})
            assert reason(answer) == (401, "token"), given
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in paths:
            assert get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_without_a_token_only_requests_to_this_machine_are_served(serving: Serving) -> None:
    with serving() as served:
        for host, status in {"localhost:8080": 200, "[::1]:8080": 200, "127.0.0.1": 200, "evil.example:8080": 421,
                             "127.0.0.1.evil.example": 421}.items():  # fmt: skip
            assert served.get("/v1/model", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize("path", ["/health", "/v1/model", "/nowhere", "/openapi.json"])
def test_every_answer_has_the_headers_of_a_careful_service(serving: Serving, path: str) -> None:
    with serving() as served:
        headers = served.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_the_log_has_no_query_and_no_line_breaks(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pvqae.serving.access"), serving() as served:
        served.get("/v1/model?token=secret")
        served.get("/a%0Ab?key=secret")
    assert "secret" not in caplog.text
    assert "GET /a%0Ab 404" in caplog.text
    assert [record.message.count("\n") for record in caplog.records].count(0) == len(caplog.records)


def test_a_fault_of_the_service_is_an_answer_without_a_traceback(
    serving: Serving, loaded: Model, photos: list[bytes]
) -> None:
    class Broken(Slow):
        def score(self, pixels: Any, sample_id: str = "") -> Any:
            raise RuntimeError("/secret/path")

    with serving(model=Model(Broken(loaded.detector))) as served:  # type: ignore[arg-type]
        answer = served.post("/v1/score", files={"file": photos[0]})
    assert reason(answer) == (500, "internal")
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/model", "/openapi.json", "/v1/score", "/other"])
def test_head_is_get_without_a_body(serving: Serving, path: str) -> None:
    with serving(token="a-token-of-16-signs-or-more") as served:
        for headers in ({}, {"Authorization": "Bearer a-token-of-16-signs-or-more"}):
            wanted = served.get(path, headers=headers)
            found = requests.head(served.url + path, headers=headers, timeout=30)
            assert (found.status_code, found.content) == (wanted.status_code, b"")
            assert found.headers["content-type"] == wanted.headers["content-type"]


def test_head_of_a_service_without_a_model_is_not_ready(serving: Serving) -> None:
    with serving(model=None) as served:
        codes = [requests.head(served.url + path, timeout=30).status_code for path in ("/health", "/ready")]
    assert codes == [200, 503]
