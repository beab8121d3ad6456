"""Archives from elsewhere, extracted so that nothing lands outside the folder, nothing fills the disk, and what was
there before is replaced all at once or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from glob import escape
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import mkdtemp
from typing import IO, NamedTuple

from bench.common.errors import UserError

TARS = (".tar", ".tar.gz", ".tgz")
BLOCK_BYTES = 1 << 20
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, BadGzipFile, zlib.error, EOFError, ValueError, NotImplementedError)

NO_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


class _Member(NamedTuple):
    name: str
    is_folder: bool
    size: int
    open: Callable[[], IO[bytes] | None]


class _Refused(Exception):
    """What about a member or the archive is not accepted."""


class Limits(NamedTuple):
    """What an archive may become; more is taken for a bomb."""

    members: int = 500_000  #: the largest that we know has 175,000
    ratio: int = 20  #: extracted to packed bytes; of images it is nearly 1
    small_bytes: int = 64 << 20  #: always allowed: text packs better than that


def extract(archive: Path, folder: Path, replaceable: Collection[str] = (), limits: Limits = Limits()) -> list[str]:
    """Extract a zip or tar file of regular files and folders; permissions, owners and dates are not taken over.

    Args:
        archive: its checksum has been looked at by the caller.
        folder: what the names in the archive are relative to; made where it is not there.
        replaceable: names in ``folder`` that may be replaced. Others are a user's own.
        limits: how much may come out of it.

    Returns:
        The names that it put into ``folder``.

    Raises:
        UserError: no such archive, a truncated or damaged one, one that holds what no dataset needs (links, devices,
            absolute names, ``..``, a bomb), or a name that is there already.
        OSError: the disk is full, or the folder cannot be written.
    """
    parent = next(place for place in (folder, *folder.parents) if place.exists())
    for left in parent.glob(f".{escape(archive.name)}.*.tmp"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(mkdtemp(dir=parent, prefix=f".{archive.name}.", suffix=".tmp"))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        old.mkdir()
        try:
            _extract_into(archive, new, limits)
        except _Refused as reason:
            raise UserError(f"{archive}: {reason}; it is not extracted") from None
        except DAMAGED as error:
            told = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
            raise UserError(f"{archive}: truncated or damaged ({told}); get it anew") from None
        names = sorted(path.name for path in new.iterdir())
        for name in names:
            if os.path.lexists(folder / name) and name not in replaceable:
                raise UserError(
                    f"{folder / name}: is there already, and did not come from {archive.name}; move it away, and "
                    "run the command again"
                )
        folder.mkdir(parents=True, exist_ok=True)
        _swap(names, new, folder, old)
        return names
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(names: list[str], new: Path, folder: Path, old: Path) -> None:
    """Rename everything into place; where one name cannot be, all that was there before comes back."""
    placed: list[str] = []
    try:
        for name in names:
            if os.path.lexists(folder / name):
                os.replace(folder / name, old / name)
            placed.append(name)
            os.replace(new / name, folder / name)
    except BaseException:
        for name in placed:
            if os.path.lexists(folder / name):
                os.replace(folder / name, new / name)
            if os.path.lexists(old / name):
                os.replace(old / name, folder / name)
        raise


def _extract_into(archive: Path, folder: Path, limits: Limits) -> None:
    packed = archive.stat().st_size
    most, total = packed * limits.ratio + limits.small_bytes, 0
    with ExitStack() as stack:
        for count, member in enumerate(_members(archive, stack), 1):
            path = folder.joinpath(*_parts(member.name))
            if count > limits.members:
                raise _Refused(f"more than {limits.members} members")
            total += member.size
            if total > most:
                raise _Refused(f"{packed} bytes that become more than {most}: an archive bomb?")
            if member.size > shutil.disk_usage(folder).free:
                raise _Refused("the disk is full; make room, or name another data folder with --data or CLMERGE_DATA")
            try:
                _write(member, path)
            except OSError as error:
                if error.errno in NO_NAME:
                    raise _Refused(f"{member.name!r} cannot be a file here ({error.strerror})") from None
                raise


def _write(member: _Member, path: Path) -> None:
    (path if member.is_folder else path.parent).mkdir(parents=True, exist_ok=True)
    if member.is_folder:
        return
    source = member.open()
    if source is None:
        raise _Refused(f"{member.name!r} has no content")
    with source, path.open("wb") as out:
        shutil.copyfileobj(source, out, BLOCK_BYTES)
    if path.stat().st_size != member.size:
        raise EOFError(f"{member.name!r} ends early")


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a name that stays inside, on any system."""
    windows = PureWindowsPath(name)
    outside = name.startswith(("/", "\\")) or windows.drive or ".." in windows.parts
    if outside or ".." in PurePosixPath(name).parts or "\0" in name:
        raise _Refused(f"{name!r} leads out of the folder")
    return PurePosixPath(name).parts


def _members(archive: Path, stack: ExitStack) -> Iterator[_Member]:
    if archive.name.endswith(".zip"):
        return _of_zip(stack.enter_context(zipfile.ZipFile(archive)))
    if archive.name.endswith(TARS):
        return _of_tar(stack.enter_context(tarfile.open(archive)), str(archive.parent))
    raise _Refused(f"no archive by its name ({' '.join(('.zip', *TARS))})")


def _of_zip(packed: zipfile.ZipFile) -> Iterator[_Member]:
    for info in packed.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _Refused(f"{info.filename!r} is a {'link' if kind == stat.S_IFLNK else 'device'}")
        if info.flag_bits & 1:
            raise _Refused(f"{info.filename!r} is encrypted")
        yield _Member(info.filename, info.is_dir(), info.file_size, lambda info=info: packed.open(info))  # type: ignore[misc]


def _of_tar(packed: tarfile.TarFile, place: str) -> Iterator[_Member]:
    for info in packed:
        _parts(info.name)  # before tarfile's own filter, which would only make it harmless
        if info.issym() or info.islnk():
            raise _Refused(f"{info.name!r} is a link")
        if info.issparse() or not (info.isreg() or info.isdir()):
            raise _Refused(f"{info.name!r} is no regular file or folder")
        try:
            tarfile.data_filter(info, place)
        except tarfile.FilterError as reason:
            raise _Refused(str(reason)) from None
        yield _Member(info.name, info.isdir(), info.size, lambda info=info: packed.extractfile(info))  # type: ignore[misc]
    # A tar file ends with zeros. Without them it was cut off between two members, or tarfile took a damaged header for
    # the end. What follows is read for gzip's own checksum at the very end.
    stream = packed.fileobj
    assert stream is not None
    stream.seek(packed.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("the archive does not end where its files end")
    while stream.read(BLOCK_BYTES):
        pass
