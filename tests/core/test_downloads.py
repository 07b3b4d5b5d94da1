"""Downloads against a server of our own that breaks off, lies, or cannot resume."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from polydiff.core.downloads import data_folder, download
from polydiff.core.errors import DataError

CONTENT = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; what it was asked for is in `asked`."""

    ranges = True
    breaks_after: int | None = None
    content = CONTENT

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        body = server.content[start:]
        self.wfile.write(body if server.breaks_after is None else body[: server.breaks_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_whole_and_only_once(server: Server, tmp_path: Path):
    path = tmp_path / "a" / "set.bin"
    for _ in range(2):
        assert download("set", server.url, path, DIGEST, size=len(CONTENT)) == path
    assert path.read_bytes() == CONTENT and len(server.asked) == 1 and names(tmp_path) == ["set.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_goes_on_where_it_stopped(server: Server, tmp_path: Path, ranges: bool):
    path, server.breaks_after = tmp_path / "set.bin", 300_000
    with pytest.raises(DataError, match="set: .*127"):
        download("set", server.url, path, DIGEST, size=len(CONTENT))
    assert not path.exists() and names(tmp_path) == ["set.bin.part"]
    server.breaks_after, server.ranges = None, ranges
    download("set", server.url, path, DIGEST, size=len(CONTENT))
    assert path.read_bytes() == CONTENT and names(tmp_path) == ["set.bin"]
    assert server.asked == [None, f"bytes={300_000}-"]


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT + b"x", CONTENT[:-1]], ids=["other", "more", "less"])
def test_what_is_not_the_file_is_refused(server: Server, tmp_path: Path, content: bytes):
    path, server.content = tmp_path / "set.bin", content
    with pytest.raises(DataError, match="set.bin"):
        download("set", server.url, path, DIGEST, size=len(CONTENT))
    assert not path.exists()
    server.content = CONTENT
    server.asked.clear()
    download("set", server.url, path, DIGEST, size=len(CONTENT))
    assert path.read_bytes() == CONTENT


def test_other_checksums(server: Server, tmp_path: Path):
    found = hashlib.md5(CONTENT).hexdigest()
    download("set", server.url, tmp_path / "b", found, algorithm="md5", size=len(CONTENT))
    assert (tmp_path / "b").read_bytes() == CONTENT


def test_offline_says_the_way_out(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        download("set", "http://127.0.0.1:9/set.bin", tmp_path / "set.bin", DIGEST, size=1)
    assert all(part in str(caught.value) for part in ("set", "http://127.0.0.1:9/set.bin", "--data-root", "POLYDIFF"))
    assert names(tmp_path) == []


def test_where_data_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POLYDIFF_DATA", str(tmp_path / "b"))
    assert data_folder(tmp_path / "a") == tmp_path / "a" and data_folder(None) == tmp_path / "b"
    monkeypatch.delenv("POLYDIFF_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder(None) == tmp_path / ".cache" / "polydiff"
    assert data_folder("~/c") == tmp_path / "c"
