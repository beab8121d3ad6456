"""A dataset: verified arrays on disk, prepared once from its layout and memory-mapped ever after."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.config import DatasetConfig
from bench.data import digits, glyphs
from bench.data.reader import Arrays, where
from bench.errors import UserError, unknown
from bench.store import key_of


class Reader(NamedTuple):
    """How one layout is read."""

    version: int
    read: Callable[[DatasetConfig, Path], Arrays]
    why_not: Callable[[DatasetConfig, Path], str | None]  # a line with the command that mends it, or None


def _always(config: DatasetConfig, data_dir: Path) -> str | None:
    return None


READERS = {
    "glyphs": Reader(glyphs.VERSION, glyphs.read, _always),
    "digits": Reader(digits.VERSION, digits.read, _always),
}
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
VERIFIED_BYTES = 64 << 20  # up to this size the whole content is hashed at every load (well under 50 ms)


@dataclass(frozen=True)
class Dataset:
    """Images and labels of both splits; the arrays are read-only memory maps."""

    key: str
    train_images: np.ndarray  # uint8 (N, C, H, W)
    train_labels: np.ndarray  # int64 (N,), 0..classes-1
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str  # 128-bit hex of the arrays' dtypes, shapes and bytes, and of the class names


def availability(config: DatasetConfig, data_dir: Path) -> str | None:
    """None where the dataset can be used; else one line that says why not and which command gets it.

    Raises:
        UserError: the layout is unknown.
    """
    return _reader(config).why_not(config, data_dir)


def prepared_key(config: DatasetConfig) -> str:
    """128-bit hex of all that decides the arrays: the description without its words, and the reader's version.

    Raises:
        UserError: the layout is unknown.
    """
    content = config.model_dump(mode="json", exclude={"title", "about", "tasks"})
    return key_of("dataset", content, _reader(config).version)


def load_dataset(config: DatasetConfig, data_dir: Path) -> Dataset:
    """The dataset, prepared first where it is missing or damaged.

    Several processes may ask at once: one prepares, the others wait for it.

    Raises:
        UserError: a wrong layout or option, counts other than those described, or a data folder that cannot be written.
    """
    folder = data_dir / "prepared" / f"{config.key}-{prepared_key(config)}"
    found = _open(config.key, folder)
    return found if found is not None else _prepare(config, data_dir, folder)


def _prepare(config: DatasetConfig, data_dir: Path, folder: Path) -> Dataset:
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            found = _open(config.key, folder)  # another process may have been first
            if found is None:
                arrays = _reader(config).read(config, data_dir)
                _check(config, arrays)
                _write(arrays, folder)
                found = _open(config.key, folder)
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise UserError(f"{reason}; name another data folder with --data or CLMERGE_DATA") from error
    if found is None:
        raise OSError(f"{folder}: damaged right after it was written; is the disk sound and not full?")
    return found


def _write(arrays: Arrays, folder: Path) -> None:
    """Write all files beside ``folder``, then rename. Only called under the lock, so the temporary name is fixed."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    for name in ARRAYS:
        np.save(temporary / f"{name}.npy", getattr(arrays, name), allow_pickle=False)
    meta = {
        "digest": _digest(arrays),
        "class_names": arrays.class_names,
        "train": len(arrays.train_labels),
        "test": len(arrays.test_labels),
        "bytes": {name: (temporary / f"{name}.npy").stat().st_size for name in ARRAYS},
    }
    (temporary / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)  # damaged, or we would not be here
    os.replace(temporary, folder)


def _open(key: str, folder: Path) -> Dataset | None:
    """The prepared dataset, or None where it is missing or its files are not those that were written."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if any((folder / f"{name}.npy").stat().st_size != meta["bytes"][name] for name in ARRAYS):
            return None
        maps = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS]
        arrays = Arrays(maps[0], maps[1], maps[2], maps[3], tuple(meta["class_names"]))
        if sum(meta["bytes"].values()) <= VERIFIED_BYTES and _digest(arrays) != meta["digest"]:
            return None
        return Dataset(key, *arrays, digest=meta["digest"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(arrays: Arrays) -> str:
    state = hashlib.blake2b(digest_size=16)
    for name in ARRAYS:
        array = np.ascontiguousarray(getattr(arrays, name))
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    state.update(json.dumps(arrays.class_names).encode())
    return state.hexdigest()


def _check(config: DatasetConfig, arrays: Arrays) -> None:
    """Hold what the reader gave against what the YAML says, so that no wrong copy of a dataset is ever run."""
    image = (config.image.channels, config.image.size, config.image.size)
    for name, said, given in (
        ("classes", config.classes, len(arrays.class_names)),
        ("classes", config.classes, len(np.unique(arrays.train_labels))),
        ("train", config.train, len(arrays.train_labels)),
        ("test", config.test, len(arrays.test_labels)),
        ("image (channels, height, width)", image, arrays.train_images.shape[1:]),
        ("image (channels, height, width)", image, arrays.test_images.shape[1:]),
    ):
        if said != given:
            raise UserError(
                f"{where(config)}: {name}: says {said}, but the data has {given}; mend the number or the data"
            )


def _reader(config: DatasetConfig) -> Reader:
    if config.layout not in READERS:
        raise unknown("layout", config.layout, READERS, f"{where(config)}: layout")
    return READERS[config.layout]
