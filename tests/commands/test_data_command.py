"""``clmerge data``: downloads from a server on this machine, what is wrong with them, and the sheets."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from bench.cli import cli
from bench.data.download import fetch
from bench.data.download.lock import NAME

NOBODY = "http://127.0.0.1:9"  # nothing listens there


class Server(ThreadingHTTPServer):
    """One file, and how the server behaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.etag: str | None = '"one"'
        self.ranges, self.status = True, 200
        self.breaks: list[int] = []  #: after so many bytes the connection breaks, once each
        self.asked: list[str | None] = []  #: the Range of every request
        self.url = f"http://127.0.0.1:{self.server_address[1]}/set.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and server.ranges else 0
        body = server.content[first:]
        self.send_response(server.status if server.status != 200 else 206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "PAUSE_S", 0.0)
    monkeypatch.setattr(fetch, "BLOCK_BYTES", 100)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        running.content = archive()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def archive(shade: int = 0) -> bytes:
    """Two classes of three training images and one test image each, 8x8."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for split, many in (("train", 3), ("test", 1)):
            for c in range(2):
                for i in range(many):
                    picture = io.BytesIO()
                    Image.new("L", (8, 8), shade + 80 * c + 10 * i + 5 * (split == "test")).save(picture, "PNG")
                    # A fixed date: two archives of one test are the same bytes, whatever the clock says.
                    packed.writestr(zipfile.ZipInfo(f"set/{split}/class{c}/{i}.png"), picture.getvalue())
    return out.getvalue()


def described(place: Path, url: str | None, **file: Any) -> str:
    """The YAML of that dataset."""
    path = place / "mine.yaml"
    content = {
        "title": "Mine", "layout": "image_folder", "options": {"path": "set"}, "classes": 2, "train": 6, "test": 2,
        "tasks": [2], "image": {"size": 8, "channels": 1, "mean": [0.5], "std": [0.5]},
        "files": [{"name": "set.zip", "url": url, **file}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def clmerge(*words: str, data: Path) -> Result:
    result = CliRunner().invoke(cli, ["data", *words, "--data", str(data)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(*words: str, data: Path) -> str:
    """The one line on standard error; exit 2, and nothing that looks whole is left."""
    result = clmerge(*words, data=data)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("clmerge: ")
    return result.stderr


def lock(data: Path) -> Any:
    return json.loads((data / NAME).read_text())["files"]["set.zip"]


def left(data: Path) -> list[str]:
    """Names in the data folder, the process's lock apart."""
    return sorted(str(p.relative_to(data)) for p in data.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_get_downloads_checks_extracts_and_records(server: Server, tmp_path: Path, data: Path) -> None:
    name = described(tmp_path, server.url, md5=md5(server.content))
    result = clmerge("get", name, data=data)
    assert result.exit_code == 0, result.output
    assert "clmerge data show mine" in result.output
    assert (data / "downloads/set.zip").read_bytes() == server.content
    assert [p for p in left(data) if not p.startswith("set/")] == [NAME, "downloads/set.zip"]
    assert len(left(data)) == 10
    entry = lock(data)
    assert entry["sha256"] == hashlib.sha256(server.content).hexdigest()
    assert (entry["bytes"], entry["url"], entry["extracted"]) == (len(server.content), server.url, ["set"])


def test_what_is_there_needs_no_network_and_is_not_touched(server: Server, tmp_path: Path, data: Path) -> None:
    clmerge("get", described(tmp_path, server.url), data=data)
    name = described(tmp_path, NOBODY)
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*") if p.is_file() and not p.name.endswith(".lock")}
    again = clmerge("get", name, data=data)
    assert again.exit_code == 0
    assert "there and right" in again.output
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (data / "downloads/set.zip").unlink()  # to save space: what came out of it is still there
    assert clmerge("get", name, data=data).exit_code == 0
    assert len(server.asked) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path, data: Path) -> None:
    server.breaks = [700]
    assert clmerge("get", described(tmp_path, server.url, md5=md5(server.content)), data=data).exit_code == 0
    assert server.asked == [None, "bytes=700-"]
    assert (data / "downloads/set.zip").read_bytes() == server.content


def test_another_day_goes_on_too(server: Server, tmp_path: Path, data: Path) -> None:
    name = described(tmp_path, server.url)
    server.breaks = [700, 0, 0]
    assert "broke" in refused("get", name, data=data)
    assert left(data) == ["downloads/set.zip.part", "downloads/set.zip.part.json"]
    server.breaks, server.asked = [], []
    assert clmerge("get", name, data=data).exit_code == 0
    assert server.asked == ["bytes=700-"]
    assert lock(data)["sha256"] == hashlib.sha256(server.content).hexdigest()
    assert not list((data / "downloads").glob("*.part*"))


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path, data: Path) -> None:
    server.breaks, server.ranges = [700], False
    assert clmerge("get", described(tmp_path, server.url), data=data).exit_code == 0
    assert (data / "downloads/set.zip").read_bytes() == server.content


def test_without_ranges_a_server_that_always_breaks_ends(server: Server, tmp_path: Path, data: Path) -> None:
    server.breaks, server.ranges = [700] * 20, False
    refused("get", described(tmp_path, server.url), data=data)
    assert len(server.asked) == 2


@pytest.mark.parametrize("etag", ['"two"', None])
def test_a_file_that_changed_between_starts_again(server: Server, tmp_path: Path, data: Path, etag: str | None) -> None:
    """By its ETag; without one and without a checksum, two halves are never put together."""
    server.etag = etag and '"one"'
    name = described(tmp_path, server.url)
    server.breaks = [700, 0, 0]
    refused("get", name, data=data)
    server.content, server.etag, server.breaks = archive(shade=9), etag, []
    assert clmerge("get", name, data=data).exit_code == 0
    assert (data / "downloads/set.zip").read_bytes() == server.content


def test_a_wrong_checksum_is_an_error(server: Server, tmp_path: Path, data: Path) -> None:
    line = refused("get", described(tmp_path, server.url, md5="0" * 32), data=data)
    assert md5(server.content) in line
    assert "0" * 32 in line
    assert "set.zip" in line
    assert left(data) == []  # not opened, not kept


def test_a_wrong_size_is_told_as_such(server: Server, tmp_path: Path, data: Path) -> None:
    line = refused("get", described(tmp_path, server.url, md5="0" * 32, bytes=5), data=data)
    assert f"size in bytes is {len(server.content)}" in line


def test_what_came_once_is_expected_ever_after(server: Server, tmp_path: Path, data: Path) -> None:
    name = described(tmp_path, server.url)  # no checksum is published
    clmerge("get", name, data=data)
    (data / "downloads/set.zip").unlink()
    (data / "set").rename(data / "elsewhere")
    server.content, server.etag = archive(shade=9), '"two"'
    line = refused("get", name, data=data)
    assert lock(data)["bytes"] == len(archive())
    assert NAME in line
    assert not (data / "downloads/set.zip").exists()


def test_a_users_own_file_is_checked_and_never_deleted(tmp_path: Path, data: Path) -> None:
    own = data / "downloads/set.zip"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"something else")
    name = described(tmp_path, NOBODY, md5=md5(archive()))
    assert "move it away" in refused("get", name, data=data)
    assert own.read_bytes() == b"something else"
    own.write_bytes(archive())
    assert clmerge("get", name, data=data).exit_code == 0
    assert lock(data)["url"] is None
    assert (data / "set/train/class0/0.png").exists()


def test_a_folder_laid_out_by_hand_is_left_alone(server: Server, tmp_path: Path, data: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive(shade=3))) as packed:
        packed.extractall(data)
    before = left(data)
    name = described(tmp_path, server.url)
    assert "laid out by hand" in clmerge("get", name, data=data).output
    assert left(data) == before
    assert server.asked == []
    verdict = clmerge("verify", name, data=data)
    assert verdict.exit_code == 0
    assert "no archive to check (set.zip)" in verdict.output


def test_no_url_says_what_to_do(tmp_path: Path, data: Path) -> None:
    line = refused("get", described(tmp_path, None, md5="1" * 32), data=data)
    assert "set.zip (MD5 11111111111111111111111111111111)" in line
    assert str(data / "downloads") in line


@pytest.mark.parametrize(
    ("url", "reason"), [(NOBODY + "/set.zip", "no connection"), ("file:///etc/passwd", "cannot be")]
)
def test_no_network_says_what_to_do(tmp_path: Path, data: Path, url: str, reason: str) -> None:
    line = refused("get", described(tmp_path, url, md5="1" * 32), data=data)
    for told in (reason, url, "1" * 32, str(data / "downloads/set.zip")):
        assert told in line


@pytest.mark.parametrize("status", [404, 503])
def test_an_error_of_the_server(server: Server, tmp_path: Path, data: Path, status: int) -> None:
    server.status = status
    assert f"answers {status}" in refused("get", described(tmp_path, server.url), data=data)
    assert left(data) == []


def test_space_is_looked_at_before(server: Server, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert "10 are free" in refused("get", described(tmp_path, server.url), data=data)
    assert left(data) == []


def test_names_that_lead_out(tmp_path: Path, data: Path) -> None:
    name = described(tmp_path, NOBODY, folder="../x")
    assert "leads out" in refused("get", name, data=data)


def test_a_truncated_archive_without_a_checksum(server: Server, tmp_path: Path, data: Path) -> None:
    server.content = server.content[:-30]
    assert "truncated or damaged" in refused("get", described(tmp_path, server.url), data=data)
    assert not (data / "set").exists()


def test_one_that_fails_does_not_stop_the_others(server: Server, tmp_path: Path, data: Path) -> None:
    good = described(tmp_path, server.url)
    bad = tmp_path / "bad.yaml"
    bad.write_text(Path(good).read_text().replace("path: set", "path: other").replace("set.zip", "other.zip"))
    bad.write_text(bad.read_text().replace(server.url.replace("set.zip", "other.zip"), NOBODY))
    result = clmerge("get", str(bad), good, data=data)
    assert result.exit_code == 2
    assert "no connection" in result.stderr
    assert (data / "set").is_dir()


def test_verify(server: Server, tmp_path: Path, data: Path) -> None:
    name = described(tmp_path, server.url)
    absent = clmerge("verify", name, data=data)
    assert (absent.exit_code, "not there" in absent.output) == (1, True)
    clmerge("get", name, data=data)
    right = clmerge("verify", name, data=data)
    assert right.exit_code == 0
    assert right.output.startswith("mine: ok: 2 classes, 6 training and 2 test images; checksum right: set.zip")

    packed = data / "downloads/set.zip"
    content = bytearray(packed.read_bytes())
    content[500] ^= 1
    packed.write_bytes(content)
    wrong = clmerge("verify", name, data=data)
    assert wrong.exit_code == 1
    for told in (str(packed), "SHA-256", hashlib.sha256(content).hexdigest(), lock(data)["sha256"], "clmerge data get"):
        assert told in wrong.output
    assert wrong.output.count("\n") == 1

    packed.write_bytes(archive())
    (data / "set/train/class1/2.png").unlink()
    fewer = clmerge("verify", name, data=data)
    assert (fewer.exit_code, "train: says 6, but the data has 5" in fewer.output) == (1, True)
    assert clmerge("verify", "no_such_set", data=data).exit_code == 2


def test_a_damaged_lock(server: Server, tmp_path: Path, data: Path) -> None:
    data.mkdir()
    (data / NAME).write_text("{")
    assert f"{data / NAME}: not valid JSON" in refused("get", described(tmp_path, server.url), data=data)
    assert server.asked == []


def test_prepare_says_where_and_what(server: Server, tmp_path: Path, data: Path) -> None:
    name = described(tmp_path, server.url)
    assert "clmerge data get mine" in refused("prepare", name, data=data)
    clmerge("get", name, data=data)
    first = clmerge("prepare", name, data=data)
    assert first.exit_code == 0, first.output
    assert "6 training and 2 test images of 8x8x1, 2 classes" in first.stdout
    assert "images/s" in first.stdout
    _, folder, digest = first.stdout.strip().splitlines()
    assert (Path(folder.strip()) / "meta.json").exists()
    assert json.loads((Path(folder.strip()) / "meta.json").read_text())["digest"] == digest.split()[-1]
    assert "was there already" in clmerge("prepare", name, data=data).stdout


def test_show_writes_a_sheet_a_task(server: Server, tmp_path: Path, data: Path) -> None:
    name = described(tmp_path, server.url)
    clmerge("get", name, data=data)
    result = clmerge("show", name, "--out", str(tmp_path / "out"), data=data)
    assert result.exit_code == 0, result.output
    files = [Path(line) for line in result.stdout.splitlines()]
    stem = "mine-class-order-seed-0"
    assert [f.name for f in files] == ["mine-overview.png", f"{stem}-task1-of-2.png", f"{stem}-task2-of-2.png"]
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    assert "3 tasks do not fit" in refused("show", name, "--tasks", "3", data=data)
