"""CIFAR-10 and CIFAR-100 from their binary archives; the Python ones are pickles and are never opened.

Source: https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009). A record is its label bytes, the fine label
last, and 3072 pixel bytes: red, green and blue planes of 32x32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig, Section, check
from bench.data.readers.folders import how, lines, missing, need
from bench.data.readers.reader import Arrays, where

VERSION = 1  # raise it when the same files give other arrays
PIXELS = 3 * 32 * 32


class _Archive(NamedTuple):
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    labels: int  # label bytes of a record
    pickled: str  # the folder of the Python archive


ARCHIVES = {
    "cifar10": _Archive(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        1,
        "cifar-10-batches-py",
    ),
    "cifar100": _Archive("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2, "cifar-100-python"),
}


class CifarOptions(Section):
    """Options of ``layout: cifar_binary``."""

    archive: Literal["cifar10", "cifar100"]
    train_per_class: int | None = Field(None, ge=1)  #: the first so many images of each class; None: all
    test_per_class: int | None = Field(None, ge=1)  #: likewise


def why_not(config: DatasetConfig, data_dir: Path) -> str | None:
    """One line where the binary records are not there; it says so where the pickles are."""
    archive = ARCHIVES[check(config.options, CifarOptions, f"{where(config)}: options").archive]
    line = missing(config, data_dir / archive.folder, (*archive.train, archive.test, archive.names))
    pickled = data_dir / archive.pickled
    if line is not None and pickled.exists():
        return f"{pickled}: Python pickles, which are never opened; the binary archive is needed: {how(config)}"
    return line


def sources(config: DatasetConfig, data_dir: Path) -> list[Path]:
    """The files of the binary archive."""
    archive = ARCHIVES[check(config.options, CifarOptions, f"{where(config)}: options").archive]
    return [data_dir / archive.folder / name for name in (*archive.train, archive.test, archive.names)]


def read(config: DatasetConfig, data_dir: Path) -> Arrays:
    """Records as uint8 (N, 3, 32, 32), in the order of the files, with their fine labels.

    Raises:
        UserError: a wrong option, a missing file, one whose length is not whole records, a label out of range, fewer
            images of a class than are asked for.
    """
    options = check(config.options, CifarOptions, f"{where(config)}: options")
    need(config, why_not(config, data_dir))
    archive = ARCHIVES[options.archive]
    root = data_dir / archive.folder
    names = tuple(line.strip() for line in lines(config, root / archive.names))
    parts = [_records(config, root / name, archive.labels, len(names)) for name in archive.train]
    test_images, test_labels = _records(config, root / archive.test, archive.labels, len(names))
    train_images, train_labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    train = _first_of_each(config, train_labels, names, options.train_per_class, "train_per_class")
    test = _first_of_each(config, test_labels, names, options.test_per_class, "test_per_class")
    return Arrays(train_images[train], train_labels[train], test_images[test], test_labels[test], names)


def _first_of_each(
    config: DatasetConfig, labels: np.ndarray, names: tuple[str, ...], count: int | None, option: str
) -> np.ndarray | slice:
    """Positions of the first ``count`` records of each class, in the order of the files; None: all."""
    if count is None:
        return slice(None)
    positions = [np.flatnonzero(labels == label)[:count] for label in range(len(names))]
    for name, found in zip(names, positions, strict=True):
        if len(found) < count:
            raise UserError(
                f"{where(config)}: options.{option}: says {count}, but class {name} has {len(found)} images"
            )
    return np.sort(np.concatenate(positions))


def _records(config: DatasetConfig, path: Path, label_bytes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    length = label_bytes + PIXELS
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{where(config)}: {path}: {error.strerror or error}; {how(config)}") from None
    if len(data) == 0 or len(data) % length:
        raise UserError(
            f"{where(config)}: {path}: {len(data)} bytes are not whole records of {length}; extract the archive anew"
        )
    records = data.reshape(-1, length)
    labels = records[:, label_bytes - 1].astype(np.int64)
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise UserError(
            f"{where(config)}: {path}: record {wrong[0]}: label {labels[wrong[0]]} is out of range "
            f"(0 to {classes - 1}); extract the archive anew"
        )
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels
