"""From a dataset's YAML to its files: downloaded, checked, extracted; what is there and right is left alone."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bench.common.errors import UserError
from bench.common.files import write_atomic
from bench.config.schema import DatasetConfig, FileConfig
from bench.data.dataset import availability
from bench.data.download.archive import TARS, extract
from bench.data.download.lock import Entry, checksums, difference, held, new_entry, read_lock, record
from bench.data.readers.reader import where

if TYPE_CHECKING:
    from requests import RequestException, Response

Say = Callable[[str], None]

TIMEOUT_S = (15, 60)  # to connect, and between two pieces
PAUSE_S = 1.0  # before a connection that broke is taken up again
BLOCK_BYTES = 1 << 18  # what is lost where a connection breaks, at most


def get(config: DatasetConfig, data_dir: Path, say: Say) -> None:
    """Have a dataset's files in the data folder. Where they are, nothing is touched and no network is needed.

    Args:
        say: is told, a line at a time, what is done.

    Raises:
        UserError: a file that cannot be fetched (with what to do by hand), one that is not what it should be, an
            archive that cannot be extracted, or too little space.
    """
    downloads, lock = data_dir / "downloads", read_lock(data_dir)
    ours = any(file.name in lock and lock[file.name].extracted for file in config.files)
    by_hand = not ours and availability(config, data_dir) is None
    if by_hand and not any((downloads / file.name).exists() for file in config.files):
        say(f"{config.key}: is there{', laid out by hand' if config.files else ''}; nothing to fetch")
        return
    absent = []
    for file in config.files:
        with held(data_dir, say):
            if not _have(config, file, data_dir, by_hand, say):
                absent.append(file)
    why_not = availability(config, data_dir)
    if absent and why_not is not None:
        what = ", ".join(f"{f.name}{f' (MD5 {f.md5})' if f.md5 else ''}" for f in absent)
        raise UserError(f"{where(config)}: no program can fetch {what} into {downloads}: {config.get or why_not}")
    if why_not is not None:
        raise UserError(f"{where(config)}: {why_not if config.files or not config.get else config.get}")
    say(f"{config.key}: ready; look at it with: clmerge data show {config.key}")


def laid_out(entry: Entry | None, data_dir: Path) -> bool:
    """Whether everything that came out of an archive is still there."""
    return entry is not None and bool(entry.extracted) and all((data_dir / path).exists() for path in entry.extracted)


def _have(config: DatasetConfig, file: FileConfig, data_dir: Path, by_hand: bool, say: Say) -> bool:
    """Download, check and extract one file, whatever of that is still to do; False: there is no URL.

    What a user laid out (all of the dataset: ``by_hand``, or a folder with the archive's name) is not replaced.
    """
    if Path(file.name).name != file.name or ".." in Path(file.folder).parts or Path(file.folder).is_absolute():
        raise UserError(f"{where(config)}: files: {file.name!r}, folder {file.folder!r}: leads out of the data folder")
    target, entry = data_dir / "downloads" / file.name, read_lock(data_dir).get(file.name)
    extracted = laid_out(entry, data_dir)
    by_hand = by_hand or ((entry is None or not entry.extracted) and _folder_of(file, data_dir).is_dir())
    if target.exists():
        found = checksums(target)
        wrong = difference(found, file, entry)
        if wrong is not None:  # perhaps a user's own: it is not ours to delete
            raise UserError(f"{target}: {wrong}; move it away, and run the command again{_or_forget(entry)}")
        entry = entry or _recorded(data_dir, file, new_entry(found, None))
        done = f"{file.name}: there and right"
    elif extracted:
        say(f"{file.name}: was extracted; the archive is no longer needed")
        return True
    elif by_hand:
        say(f"{file.name}: not fetched, as what is in it was laid out by hand")
        return True
    elif file.url is None:
        return False
    else:
        entry = _recorded(data_dir, file, fetched(where(config), file, target, entry, config.get))
        done = f"{file.name}: {entry.bytes:,} bytes, sha256 {entry.sha256}"
    if file.extract and not extracted and not by_hand:
        base = data_dir / file.folder
        before = {Path(path).name for path in entry.extracted}
        with _working(f"extracting {file.name}"):
            names = extract(target, base, before)
        inside = [str(Path(file.folder) / name) for name in names]
        _recorded(data_dir, file, entry.model_copy(update={"extracted": inside}))
        done += f"; extracted {', '.join(inside)}"
    say(done)
    return True


def _recorded(data_dir: Path, file: FileConfig, entry: Entry) -> Entry:
    record(data_dir, file.name, entry)
    return entry


def _folder_of(file: FileConfig, data_dir: Path) -> Path:
    """The folder with an archive's name, as most archives bring it."""
    stem = next((file.name[: -len(end)] for end in (".zip", *TARS) if file.name.endswith(end)), file.name)
    return data_dir / file.folder / stem


def _or_forget(entry: Entry | None) -> str:
    return "" if entry is None else " (or take its entry out of clmerge-lock.json where the new one is right)"


def fetched(asked: str, file: FileConfig, target: Path, entry: Entry | None = None, advice: str = "") -> Entry:
    """Download a file that has a URL to ``target``, by way of ``target.part``, and check it.

    Args:
        asked: what needs it, which errors begin with.
        entry: what the file was when it came before.
        advice: what else a user can do, at the end of an error.

    Raises:
        UserError: it cannot be fetched, is not what it should be, or too little space.
    """
    import requests

    part, url = target.with_name(f"{target.name}.part"), str(file.url)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        download(url, part, checked=bool(file.sha256 or file.md5 or entry))
    except requests.RequestException as error:
        checksum = f" (MD5 {file.md5})" if file.md5 else ""
        raise UserError(
            f"{asked}: {file.name}: {_reason(error, url)}; run the command again to go on, or get {url} "
            f"elsewhere, put it as {target}{checksum}, and run the command again. {advice}".rstrip()
        ) from None
    found = checksums(part)
    wrong = difference(found, file, entry)
    _tag(part).unlink(missing_ok=True)
    if wrong is not None:
        part.unlink()
        raise UserError(
            f"{asked}: {file.name} from {url}: {wrong}; what came is deleted. Run the command again; if it "
            f"stays so, the publisher's file has changed{_or_forget(entry)}"
        )
    os.replace(part, target)
    return new_entry(found, url)


def download(url: str, part: Path, checked: bool) -> None:
    """Fetch ``url`` into ``part``, going on where an earlier attempt stopped if the server's file is still the same.

    A connection that breaks is taken up again as long as every attempt gets further than those before.

    Args:
        checked: the caller knows a checksum; without one, only a server that names the file's version is trusted to
            have sent both halves of the same file.

    Raises:
        requests.RequestException: no connection, an error of the server, or an end before the end.
        UserError: too little space.
    """
    import requests

    reached = _size(part)
    while True:
        try:
            if _attempt(url, part, checked):
                return
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if _size(part) <= reached:
                raise
            reached = _size(part)
            time.sleep(PAUSE_S)


def _attempt(url: str, part: Path, checked: bool) -> bool:
    """One request; False where what is in ``part`` turned out to be of another file, and was deleted."""
    import requests

    have, version = _size(part), _version_of(part)
    if version is None or version["url"] != url or not (checked or version["etag"] or version["modified"]):
        have = 0
    if have and have == version["bytes"]:
        return True
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        goes_on = answer.status_code == 206
        now = _version(answer, url)
        if have and (answer.status_code == 416 or (goes_on and (now != version or _first(answer) != have))):
            part.unlink()
            return False
        answer.raise_for_status()
        have = have if goes_on else 0
        _check_space(part, (now["bytes"] or 0) - have)
        write_atomic(_tag(part), json.dumps(now))
        with part.open("ab" if goes_on else "wb") as out, _bar(part.stem, now["bytes"], have) as advance:
            for block in answer.iter_content(BLOCK_BYTES):
                out.write(block)
                advance(len(block))
    if now["bytes"] is not None and _size(part) != now["bytes"]:
        raise requests.exceptions.ChunkedEncodingError("ended early")
    return True


def _version(answer: Response, url: str) -> dict[str, Any]:
    """What tells one version of the server's file from another."""
    headers = answer.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    plain = "Content-Encoding" not in headers  # or the length is that of what is sent, not of what is written
    return {
        "url": url,
        "etag": headers.get("ETag"),
        "modified": headers.get("Last-Modified"),
        "bytes": int(total) if plain and total.isdecimal() else None,
    }


def _first(answer: Response) -> int:
    """The position of the first byte of a part that the server sends; -1: it does not say."""
    first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdecimal() else -1


def _version_of(part: Path) -> Any:
    try:
        version = json.loads(_tag(part).read_text(encoding="utf-8"))
        return version if set(version) == {"url", "etag", "modified", "bytes"} else None
    except (OSError, ValueError, TypeError):
        return None


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise UserError(
            f"{part.parent}: {part.stem} takes {needed:,} bytes more and {free:,} are free; make room, or name another "
            "data folder with --data or CLMERGE_DATA"
        )


def _reason(error: RequestException, url: str) -> str:
    """A few words for what the library tells in hundreds."""
    import requests

    host = urlsplit(url).netloc
    if error.response is not None:
        return f"{host} answers {error.response.status_code} {error.response.reason}".rstrip()
    if isinstance(error, requests.Timeout):
        return f"{host} does not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return f"{host} has a certificate that is not trusted"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy lets nothing through to {host}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the connection to {host} broke"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {host}"
    return f"{url} cannot be fetched ({type(error).__name__})"


@contextmanager
def _bar(name: str, total: int | None, have: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total, completed=have)
        yield lambda done: progress.advance(task, done)


@contextmanager
def _working(what: str) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        yield
