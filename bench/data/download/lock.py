"""What was downloaded when: ``clmerge-lock.json`` in the data folder, which later copies are held against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from bench.common.errors import UserError
from bench.common.files import write_atomic
from bench.config.schema import FileConfig, Section, check

NAME = "clmerge-lock.json"
BLOCK_BYTES = 1 << 20


class Checksums(Section):
    """What a file's content is."""

    md5: str
    sha256: str
    bytes: int


class Entry(Section):
    """One file in ``downloads``, as it was when it came."""

    md5: str
    sha256: str
    bytes: int
    url: str | None  #: None: a user put it there
    date: str  #: UTC, ISO 8601
    extracted: list[str] = []  #: what came out of it, below the data folder


class _Lock(Section):
    files: dict[str, Entry] = {}


def read_lock(data_dir: Path) -> dict[str, Entry]:
    """The entries by file name; none where nothing was downloaded yet.

    Raises:
        UserError: the file is damaged.
    """
    path = data_dir / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not valid JSON; remove it (what is in downloads is then checked and recorded anew)")
    return check(found, _Lock, str(path)).files


def record(data_dir: Path, name: str, entry: Entry) -> None:
    """Write an entry; only while the folder is :func:`held`."""
    files = dict(sorted({**read_lock(data_dir), name: entry}.items()))
    write_atomic(data_dir / NAME, json.dumps(_Lock(files=files).model_dump(), indent=1, ensure_ascii=False) + "\n")


@contextmanager
def held(data_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One process at a time downloads and extracts; the others say that they wait."""
    from filelock import FileLock, Timeout

    data_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(data_dir / f".{NAME}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{data_dir}: another clmerge downloads into it; waiting for that")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def checksums(path: Path) -> Checksums:
    """MD5, SHA-256 and size of a file, read once.

    Raises:
        OSError: not readable.
    """
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            md5.update(block)
            sha256.update(block)
            size += len(block)
    return Checksums(md5=md5.hexdigest(), sha256=sha256.hexdigest(), bytes=size)


def new_entry(found: Checksums, url: str | None) -> Entry:
    """An entry for a file that came just now."""
    return Entry(**found.model_dump(), url=url, date=datetime.now(timezone.utc).isoformat(timespec="seconds"))


def difference(found: Checksums, file: FileConfig, entry: Entry | None) -> str | None:
    """What of a file's content is not as its dataset's YAML says, or as it was when it first came; None: nothing."""
    for name in ("bytes", "sha256", "md5"):  # of a file that was cut off, the size says most
        is_now, stated = getattr(found, name), getattr(file, name)
        word = {"bytes": "size in bytes", "sha256": "SHA-256", "md5": "MD5"}[name]
        if stated is not None and is_now != stated:
            return f"its {word} is {is_now}, but {stated} is expected"
        if entry is not None and is_now != getattr(entry, name):
            return f"its {word} is {is_now}, but it was {getattr(entry, name)} when it came on {entry.date} ({NAME})"
    return None
