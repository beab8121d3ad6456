"""A dataset: verified arrays on disk, prepared once from its layout and memory-mapped ever after."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.cache import key_of
from bench.common.errors import UserError, unknown
from bench.config.schema import DatasetConfig, ImageConfig
from bench.data.prepare import decode
from bench.data.prepare.decode import Stored
from bench.data.prepare.prepare import ARRAYS, DOMAINS, digest_of, mapped, prepare
from bench.data.readers import LAYOUTS, digits, glyphs
from bench.data.readers.reader import Reader, where


def _always(config: DatasetConfig, data_dir: Path) -> str | None:
    return None


def _nothing(config: DatasetConfig, data_dir: Path) -> list[Path]:
    return []


READERS: dict[str, Reader] = {
    "glyphs": Reader(glyphs.VERSION, glyphs.read, _always, _nothing),
    "digits": Reader(digits.VERSION, digits.read, _always, _nothing),
    **LAYOUTS,
}
VERIFIED_BYTES = 64 << 20  # up to this size the whole content is hashed at every load (well under 50 ms)


@dataclass(frozen=True)
class Dataset:
    """Images and labels of both splits; the arrays are read-only memory maps."""

    key: str
    train_images: np.ndarray  # uint8 (N, C, side, side)
    train_labels: np.ndarray  # int64 (N,), 0..classes-1
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str  # 128-bit hex of the arrays' dtypes, shapes and bytes, and of the names
    train_domains: np.ndarray | None = None  # int64 (N,), 0..domains-1, where images have domains
    test_domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()


def availability(config: DatasetConfig, data_dir: Path) -> str | None:
    """None where the dataset can be used; else one line that says why not and which command gets it.

    Raises:
        UserError: the layout is unknown.
    """
    return _reader(config).why_not(config, data_dir)


def stored(config: DatasetConfig, image: ImageConfig | None = None) -> Stored:
    """How the images are kept for a protocol that shows ``image``.

    Small ones are kept at their own size (they are enlarged on the device); larger ones, and those without one size,
    are kept as the protocol resizes them, so that nothing is left to do at test time but the centre crop.

    Raises:
        UserError: the images have no one size and the protocol does not say how they are cut.
    """
    own = config.image.size
    if own is not None and (image is None or own <= image.resized):
        return Stored(own, "shorter", "bicubic", own)
    if image is None:
        raise UserError(
            f"{where(config)}: image.size: its images have no one size; use a protocol with `image`, which says how "
            "they are cut (clmerge list protocols)"
        )
    crop = image.size if image.mode == "shorter" else image.resized
    return Stored(image.resized, image.mode, image.interpolation, crop)


def prepared_key(config: DatasetConfig, image: ImageConfig | None = None) -> str:
    """128-bit hex of all that decides the arrays: the description without its words, how they are kept, and versions.

    Raises:
        UserError: the layout is unknown, or :func:`stored` has something to say.
    """
    fields = {"key", "layout", "classes", "train", "test", "image"}
    content = config.model_dump(mode="json", include=fields, exclude_defaults=True)
    options = _anywhere(config.options)
    return key_of("dataset", content, options, stored(config, image), _reader(config).version, decode.VERSION)


def prepared_folder(config: DatasetConfig, data_dir: Path, image: ImageConfig | None = None) -> Path:
    """Where :func:`load_dataset` keeps the arrays."""
    return data_dir / "prepared" / f"{config.key}-{prepared_key(config, image)}"


def data_digest(config: DatasetConfig, data_dir: Path, image: ImageConfig | None = None) -> str | None:
    """The digest of the arrays that :func:`load_dataset` would give, None where that takes preparing them first."""
    meta = _meta(config, data_dir, prepared_folder(config, data_dir, image))
    return str(meta["digest"]) if meta is not None else None


def data_changed(config: DatasetConfig, data_dir: Path, image: ImageConfig | None = None) -> bool:
    """Whether the files that prepared arrays were made from have changed since."""
    folder = prepared_folder(config, data_dir, image)
    there = _reader(config).why_not(config, data_dir) is None
    return there and (folder / "meta.json").exists() and _meta(config, data_dir, folder) is None


def load_dataset(config: DatasetConfig, data_dir: Path, image: ImageConfig | None = None) -> Dataset:
    """The dataset, prepared first where it is missing, damaged or made from files that have changed since.

    ``image`` is the protocol's.

    Several processes may ask at once: one prepares, the others wait for it.

    Raises:
        UserError: a wrong layout or option, data other than described, images that cannot be read, or a data folder
            that cannot be written or is full.
    """
    folder = prepared_folder(config, data_dir, image)
    found = _open(config, data_dir, folder)
    return found if found is not None else _prepare(config, data_dir, stored(config, image), folder)


def _prepare(config: DatasetConfig, data_dir: Path, how: Stored, folder: Path) -> Dataset:
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            found = _open(config, data_dir, folder)  # another process may have been first
            if found is None:
                files = files_read(config, data_dir)  # before they are read: what changes meanwhile is seen next time
                prepare(_reader(config).read(config, data_dir), config, how, folder, files)
                found = _open(config, data_dir, folder)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise UserError(
            f"{error.filename or folder}: {reason}; name another data folder with --data or CLMERGE_DATA"
        ) from error
    if found is None:
        raise OSError(f"{folder}: damaged right after it was written; is the disk sound and not full?")
    return found


def files_read(config: DatasetConfig, data_dir: Path) -> str:
    """128-bit hex of names, sizes and times of all files that a dataset is made from; "" where it is made from none.

    Not of their bytes, which would take as long as reading them: whoever changes a file changes its time.
    """
    places = _reader(config).sources(config, data_dir)
    state = hashlib.blake2b(digest_size=16)
    for place in places:
        for path, entry in [(place.name, place.stat())] if place.is_file() else _below(place, place.name):
            state.update(f"{path}\0{entry.st_size}\0{entry.st_mtime_ns}\n".encode())
    return state.hexdigest() if places else ""


def _below(folder: Path, name: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from _below(Path(entry.path), f"{name}/{entry.name}")
            else:
                yield f"{name}/{entry.name}", entry.stat()


def _meta(config: DatasetConfig, data_dir: Path, folder: Path) -> dict[str, Any] | None:
    """What stands beside prepared arrays, None where there are none or they are of other files than now.

    Raises:
        UserError: they were prepared from another place on this machine.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        options, files, _ = meta["options"], meta.get("files", ""), meta["digest"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if options != json.loads(json.dumps(config.options)):
        # Where files lie is no part of the key, so other images would be taken for those of before.
        raise UserError(
            f"{where(config)}: options: it was prepared from {options}; give the YAML file of other images another "
            f"name, or remove {folder}"
        )
    try:
        return meta if files == files_read(config, data_dir) else None
    except OSError:
        return None  # they are gone: whoever reads them says so


def _open(config: DatasetConfig, data_dir: Path, folder: Path) -> Dataset | None:
    """The prepared dataset, or None where it is missing, of other files, or not what was written.

    Raises:
        UserError: as :func:`_meta`.
    """
    meta = _meta(config, data_dir, folder)
    if meta is None:
        return None
    try:
        classes, domains = tuple(meta["class_names"]), tuple(meta.get("domain_names", ()))
        files = (*ARRAYS, *DOMAINS) if domains else ARRAYS
        if any((folder / f"{name}.npy").stat().st_size != meta["bytes"][name] for name in files):
            return None
        arrays = mapped(folder, files)
        if sum(meta["bytes"].values()) <= VERIFIED_BYTES and digest_of(arrays, classes + domains) != meta["digest"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    train_images, train_labels, test_images, test_labels, *rest = arrays
    train_domains, test_domains = rest or (None, None)
    return Dataset(
        config.key, train_images, train_labels, test_images, test_labels, classes, meta["digest"], train_domains,
        test_domains, domains,
    )  # fmt: skip


def _anywhere(option: Any) -> Any:
    """The option with absolute paths cut to their last part: the same dataset may lie elsewhere on another machine."""
    if isinstance(option, dict):
        return {name: _anywhere(value) for name, value in option.items()}
    if isinstance(option, (list, tuple)):
        return [_anywhere(value) for value in option]
    return Path(option).name if isinstance(option, str) and Path(option).expanduser().is_absolute() else option


def _reader(config: DatasetConfig) -> Reader:
    if config.layout not in READERS:
        raise unknown("layout", config.layout, READERS, f"{where(config)}: layout")
    return READERS[config.layout]
