import io
import json
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pvqae.core import files
from pvqae.core.errors import ConfigError, DataError, IntegrityError
from pvqae.datasets import fetch, sources


@dataclass
class Server:
    """A web server with one file; its next answers can be broken off."""

    content: bytes = b""
    version: str = '"1"'
    breaks: list[int] = field(default_factory=list)  # bytes that the next answers send before they break off
    ranges: list[str | None] = field(default_factory=list)  # what was asked for
    status: int = 200
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        start = 0
        if self.status != 200:
            request.send_error(self.status)
            return
        if asked and request.headers.get("If-Range") == self.version:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.content) > 0:
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("ETag", self.version)
        request.send_header("Content-Length", str(len(body)))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.end_headers()
        request.wfile.write(body[: self.breaks.pop(0)] if self.breaks else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "_PAUSE", 0.0)
    monkeypatch.setattr(fetch, "_CHUNK", 500)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_port}/data.zip"
        yield state
        http.shutdown()
        thread.join()


def zipped(folder: Path, prefix: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return buffer.getvalue()


def get(server: Server, tmp_path: Path, **more: object) -> Path:
    options = {"url": server.url, "accept_licence": True} | more
    return fetch.fetch("mvtec", tmp_path / "raw" / "mvtec", tmp_path / "sources.json", **options)


@pytest.mark.parametrize("prefix", ["", "wrapped/"])
def test_a_dataset_is_fetched_unpacked_and_its_hash_recorded(
    server: Server, tmp_path: Path, tiny_mvtec: Path, prefix: str
) -> None:
    server.content = zipped(tiny_mvtec, prefix)
    out = get(server, tmp_path)
    assert len(sources.scan("mvtec", out)) == 47
    (tmp_path / "archive").write_bytes(server.content)
    assert json.loads((tmp_path / "sources.json").read_text()) == {server.url: files.digest(tmp_path / "archive")}
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["mvtec"]


def test_a_replaced_archive_is_refused_after_the_first_time(server: Server, tmp_path: Path, tiny_mvtec: Path) -> None:
    server.content = zipped(tiny_mvtec)
    first = get(server, tmp_path)
    first.rename(tmp_path / "first")
    server.content = zipped(tiny_mvtec, "other/")
    with pytest.raises(IntegrityError, match="expected sha256"):
        get(server, tmp_path)
    assert not first.exists()


def test_a_wrong_hash_unpacks_and_records_nothing(server: Server, tmp_path: Path, tiny_mvtec: Path) -> None:
    server.content = zipped(tiny_mvtec)
    with pytest.raises(IntegrityError, match="expected sha256 0000"):
        get(server, tmp_path, sha256="0" * 64)
    assert not (tmp_path / "sources.json").exists()
    assert not any((tmp_path / "raw").iterdir())


def test_hashes_that_contradict_each_other_are_named_before_downloading(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sources.json").write_text(json.dumps({server.url: "1" * 64}))
    with pytest.raises(IntegrityError, match="contradict"):
        get(server, tmp_path, sha256="0" * 64)
    assert server.ranges == []


def test_the_licence_is_shown_and_must_be_accepted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)CC BY-NC-SA 4\.0.*--accept-licence"):
        get(server, tmp_path, accept_licence=False)
    with pytest.raises(ConfigError, match=r"mvtec, btad, mtsd.*found coco"):
        fetch.fetch("coco", tmp_path / "x", tmp_path / "sources.json", accept_licence=True)
    assert server.ranges == []


def test_an_existing_folder_is_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "raw" / "mvtec").mkdir(parents=True)
    with pytest.raises(DataError, match="remove it"):
        get(server, tmp_path)


def test_another_layout_is_named_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "readme.txt").write_text("x")
    server.content = zipped(tmp_path / "content")
    with pytest.raises(DataError, match=r"(?s)expected: CATEGORY/train/good.*found: readme\.txt"):
        get(server, tmp_path)
    assert not (tmp_path / "raw" / "mvtec").exists()
    assert not (tmp_path / "sources.json").exists()


def test_a_hash_that_nobody_told_is_shown_once(server: Server, tmp_path: Path, tiny_mvtec: Path) -> None:
    said: list[str] = []
    server.content = zipped(tiny_mvtec)
    get(server, tmp_path, say=said.append).rename(tmp_path / "first")
    found = json.loads((tmp_path / "sources.json").read_text())[server.url]
    assert len(said) == 1
    assert f"sha256 {found}, unverified" in said[0]
    get(server, tmp_path, say=said.append)  # it is the recorded one
    assert len(said) == 1


def test_what_has_no_archive_says_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"real_iad has no archive to fetch: ask its authors.*data\.source=real_iad"):
        fetch.fetch("real_iad", tmp_path / "x", tmp_path / "sources.json", accept_licence=True)
    known = {*fetch.ARCHIVES, *fetch.ELSEWHERE}
    assert known == set(sources.SOURCES) - {"folder", "table", "annotated", "demo"}


def test_a_dataset_below_a_folder_of_its_archive_is_found(server: Server, tmp_path: Path) -> None:
    for name in ("kos01/Part0.png", "kos01/Part0_label.bmp", "readme.txt"):
        (tmp_path / "KolektorSDD" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "KolektorSDD" / name).write_text(name)
    server.content = zipped(tmp_path / "KolektorSDD", "KolektorSDD/")
    record = tmp_path / "sources.json"
    out = fetch.fetch("kolektor", tmp_path / "raw" / "k", record, server.url, accept_licence=True)
    assert sources.categories("kolektor", out) == ["kolektor_sdd"]


class TestDownload:
    content = bytes(range(256)) * 40

    def test_goes_on_where_it_broke_off(self, server: Server, tmp_path: Path) -> None:
        server.content, server.breaks = self.content, [3000, 2000]
        fetch.download(server.url, tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == self.content
        assert server.ranges[0] is None
        assert server.ranges[1] == "bytes=3000-"
        assert server.ranges[2] == "bytes=5000-"
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_goes_on_in_a_later_call(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "_ATTEMPTS", 1)
        server.content, server.breaks = self.content, [3000]
        with pytest.raises(DataError, match="run the same command"):
            fetch.download(server.url, tmp_path / "a")
        assert not (tmp_path / "a").exists()
        fetch.download(server.url, tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == self.content
        assert server.ranges[-1] == "bytes=3000-"

    def test_starts_again_when_the_file_has_changed(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fetch, "_ATTEMPTS", 1)
        server.content, server.breaks = self.content, [3000]
        with pytest.raises(DataError):
            fetch.download(server.url, tmp_path / "a")
        server.content, server.version = self.content[::-1], '"2"'
        fetch.download(server.url, tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == self.content[::-1]

    def test_survives_a_stop_after_the_last_byte(self, server: Server, tmp_path: Path) -> None:
        server.content = self.content
        (tmp_path / "a.part").write_bytes(self.content)
        (tmp_path / "a.part.version").write_text(f'{server.url}\n"1"')
        fetch.download(server.url, tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == self.content

    def test_a_server_without_versions_starts_again(self, server: Server, tmp_path: Path) -> None:
        server.content, server.version, server.breaks = self.content, 'W/"1"', [3000]
        fetch.download(server.url, tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == self.content
        assert server.ranges == [None, None]

    @pytest.mark.parametrize(("status", "asked"), [(404, 1), (503, fetch._ATTEMPTS)])
    def test_asks_again_only_where_that_may_help(self, server: Server, tmp_path: Path, status: int, asked: int) -> None:
        server.status = status
        with pytest.raises(DataError, match=str(status)):
            fetch.download(server.url, tmp_path / "a")
        assert len(server.ranges) == asked

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "nowhere"])
    def test_only_web_addresses(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(DataError, match="--url"):
            fetch.download(url, tmp_path / "a")

    def test_too_large_is_refused(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "_MAX_BYTES", 1000)
        server.content = self.content
        with pytest.raises(DataError, match="at most 1000 bytes"):
            fetch.download(server.url, tmp_path / "a")


def tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:xz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_of(name: str, content: bytes = b"x", mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(info, content)
    return buffer.getvalue()


EVIL = {
    "tar climbs": tar((tarfile.TarInfo("../evil"), b"x")),
    "tar climbs inside": tar((tarfile.TarInfo("a/../../evil"), b"x")),
    "tar absolute": tar((tarfile.TarInfo("/tmp/pvqae-evil"), b"x")),
    "tar symlink": tar((link("a", "/etc", tarfile.SYMTYPE), b"")),
    "tar hard link": tar((link("a", "/etc/passwd", tarfile.LNKTYPE), b"")),
    "tar device": tar((link("a", "", tarfile.CHRTYPE), b"")),
    "tar twice": tar((tarfile.TarInfo("a"), b"x"), (tarfile.TarInfo("a"), b"y")),
    "tar cut off": tar((tarfile.TarInfo("a"), bytes(range(256)) * 9))[:100],
    "zip climbs": zip_of("../evil"),
    "zip absolute": zip_of("/tmp/pvqae-evil"),
    "zip backslash": zip_of("..\\evil"),
    "zip symlink": zip_of("a", b"/etc", 0o120777),
    "zip damaged": zip_of("a", b"text" * 9).replace(zlib.crc32(b"text" * 9).to_bytes(4, "little"), b"1234"),
    "neither": b"hello",
}


@pytest.mark.parametrize("name", list(EVIL))
def test_an_evil_archive_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "archive"
    archive.write_bytes(EVIL[name])
    with pytest.raises(IntegrityError):
        fetch._extract(archive, tmp_path / "in" / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert [p.name for p in archive.parent.iterdir()] == ["archive"]
    assert not Path("/tmp/pvqae-evil").exists()


@pytest.mark.parametrize("limit", ["_MAX_UNPACKED", "_MAX_FILES"])
def test_bombs_stop_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(fetch, limit, 1)
    archive = tmp_path / "archive"
    archive.write_bytes(tar((tarfile.TarInfo("a"), b"x"), (tarfile.TarInfo("b"), b"y")))
    with pytest.raises(IntegrityError, match="more than 1 "):
        fetch._extract(archive, tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_plain_files_are_unpacked_as_they_are(tmp_path: Path, mode: str) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(tar((tarfile.TarInfo("./a/b.txt"), b"one"), (tarfile.TarInfo("c"), b""), mode=mode))
    fetch._extract(archive, tmp_path / "out")
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"one"
    assert (tmp_path / "out/c").read_bytes() == b""
