"""Archives: what is extracted, what is refused, and that a refusal leaves everything as it was."""

from __future__ import annotations

import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.common.errors import UserError
from bench.data.download import archive as archives
from bench.data.download.archive import Limits, extract

GOOD = {"set/a.txt": b"one", "set/deep/b.bin": bytes(range(256)) * 40, "readme": b"two"}
KINDS = ("d.zip", "d.tar", "d.tar.gz", "d.tgz")


def packed(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of files, its kind by its name."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("set/", b"")
            for name, content in files.items():
                out.writestr(name, content)
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as out:
            folder = tarfile.TarInfo("./set/")
            folder.type = tarfile.DIRTYPE
            out.addfile(folder)
            for name, content in files.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size, info.mode, info.uid = len(content), 0o4777, 12345
                out.addfile(info, io.BytesIO(content))
    return path


def odd_tar(path: Path, change: Callable[[tarfile.TarInfo], None]) -> Path:
    """A good file, then a member that ``change`` makes odd."""
    with tarfile.open(path, "w") as out:
        good = tarfile.TarInfo("set/good")
        good.size = 4
        out.addfile(good, io.BytesIO(b"good"))
        info = tarfile.TarInfo("set/odd")
        change(info)
        out.addfile(info, io.BytesIO(b"\0" * info.size))
    return path


def odd_zip(path: Path, name: str = "set/odd", mode: int = 0, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("set/good", b"good")
        info = zipfile.ZipInfo("x")
        info.filename, info.external_attr, info.compress_type = name, mode << 16, zipfile.ZIP_DEFLATED
        out.writestr(info, content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with an older set in it."""
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/old").write_bytes(b"old")
    return tmp_path / "data"


def refused(archive: Path, folder: Path, limits: Limits = Limits()) -> str:
    """The line of the refusal; nothing but the older set may be there afterwards, in the folder or around it."""
    around = set(folder.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        extract(archive, folder, {"set"}, limits)
    assert set(folder.parent.rglob("*")) == around
    assert contents(folder) == {"set/old": b"old"}
    assert str(archive) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_packed_comes_out(tmp_path: Path, name: str) -> None:
    archive = packed(tmp_path / name, GOOD)
    assert extract(archive, tmp_path / "data/inner") == ["readme", "set"]
    assert contents(tmp_path / "data") == {f"inner/{name}": content for name, content in GOOD.items()}
    mode = (tmp_path / "data/inner/set/a.txt").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_IXUSR)  # the archive's modes are not taken over


@pytest.mark.parametrize("name", KINDS)
def test_an_older_folder_is_replaced_as_a_whole(tmp_path: Path, data: Path, name: str) -> None:
    extract(packed(tmp_path / name, GOOD), data, {"set"})
    assert contents(data) == GOOD


def test_what_a_user_laid_out_is_not_replaced(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        extract(packed(tmp_path / "d.zip", GOOD), data)
    assert contents(data) == {"set/old": b"old"}


def test_a_rename_that_fails_brings_everything_back(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, rename, calls = packed(tmp_path / "d.zip", {**GOOD, "zzz": b"last"}), archives.os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if Path(target) == data / "zzz" and len(calls) == 4:
            raise OSError("no more")
        rename(source, target)

    monkeypatch.setattr(archives.os, "replace", failing)
    with pytest.raises(OSError, match="no more"):
        extract(archive, data, {"set"})
    assert contents(data) == {"set/old": b"old"}
    assert [p.name for p in data.iterdir()] == ["set"]


def test_what_a_killed_process_left_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / "data/.d.zip.abc.tmp/new").mkdir(parents=True)
    extract(packed(tmp_path / "d.zip", GOOD), tmp_path / "data")
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["readme", "set"]


@pytest.mark.parametrize("name", ["../out", "set/../../out", "/tmp/clmerge-out", "C:\\out", "..\\out", "\\\\host\\out"])
def test_names_that_lead_outside(tmp_path: Path, data: Path, name: str) -> None:
    def rename(info: tarfile.TarInfo) -> None:
        info.name = name

    assert "leads out" in refused(odd_tar(tmp_path / "d.tar", rename), data)
    assert "leads out" in refused(odd_zip(tmp_path / "d.zip", name), data)


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE"])
@pytest.mark.parametrize("target", ["set/good", "/etc/passwd"])
def test_links_and_devices_in_tars(tmp_path: Path, data: Path, kind: str, target: str) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = getattr(tarfile, kind), target

    line = refused(odd_tar(tmp_path / "d.tar", change), data)
    assert ("link" if "LNK" in kind or "SYM" in kind else "no regular file") in line


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_zips(tmp_path: Path, data: Path, kind: int) -> None:
    line = refused(odd_zip(tmp_path / "d.zip", mode=kind | 0o777, content=b"/etc/passwd"), data)
    assert ("link" if kind == stat.S_IFLNK else "device") in line


def test_bombs(tmp_path: Path, data: Path) -> None:
    small = Limits(members=10, small_bytes=1 << 20)
    zeros = {"set/zeros": bytes(8 << 20)}
    for name in ("d.zip", "d.tar.gz"):
        archive = packed(tmp_path / name, zeros)
        assert archive.stat().st_size < 10_000
        assert "bomb" in refused(archive, data, small)
    for name in ("d.zip", "d.tar.gz"):
        assert "more than 10 members" in refused(
            packed(tmp_path / name, {f"set/{i}": b"" for i in range(11)}), data, small
        )


def test_a_size_that_is_a_lie(tmp_path: Path, data: Path) -> None:
    archive = packed(tmp_path / "d.zip", {"set/zeros": bytes(100_000)})
    content = archive.read_bytes().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(content)
    assert "damaged" in refused(archive, data)


def test_a_full_disk(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=2))
    assert "disk is full" in refused(packed(tmp_path / "d.tar", GOOD), data)


def test_encrypted_and_unknown(tmp_path: Path, data: Path) -> None:
    archive = packed(tmp_path / "d.zip", GOOD)
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # of the last entry
    archive.write_bytes(content)
    assert "encrypted" in refused(archive, data)
    (tmp_path / "d.rar").write_bytes(b"Rar!")
    assert "no archive by its name" in refused(tmp_path / "d.rar", data)


def test_file_and_folder_of_one_name(tmp_path: Path, data: Path) -> None:
    for names in (("set/a/b", "set/a"), ("set/a", "set/a/b")):
        archive = packed(tmp_path / "d.tar", dict.fromkeys(names, b"1"))
        assert "cannot be a file here" in refused(archive, data)


def test_a_name_that_is_too_long(tmp_path: Path, data: Path) -> None:
    assert "cannot be a file here" in refused(packed(tmp_path / "d.zip", {"set/" + "n" * 300: b"1"}), data)


@pytest.mark.parametrize("name", KINDS)
def test_truncated_anywhere(tmp_path: Path, data: Path, name: str) -> None:
    """Also between two members, where a tar file looks whole to a careless reader."""
    archive = packed(tmp_path / name, GOOD)
    whole = archive.read_bytes()
    # A plain tar file's padding may be cut off: all of its files are whole then.
    end = len(whole) - len(whole) % 512
    if name == "d.tar":
        end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in {0, 1, 100, 512, 1024, end // 2, end - 1, *range(512, end, 512)}:
        archive.write_bytes(whole[: min(length, end - 1)])
        assert "truncated or damaged" in refused(archive, data)


@pytest.mark.parametrize("name", ["d.zip", "d.tar.gz", "d.tar"])
def test_damaged_bytes_never_end_in_a_traceback(tmp_path: Path, data: Path, name: str) -> None:
    archive = packed(tmp_path / name, GOOD)
    whole, draw = archive.read_bytes(), random.Random(0)
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 3, 20])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        archive.write_bytes(damaged)
        with suppress(UserError):
            extract(archive, data, {"set", "readme", *(p.name for p in data.iterdir())})
        assert not [p for p in data.iterdir() if p.name.endswith(".tmp")]
