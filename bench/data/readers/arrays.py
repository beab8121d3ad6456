"""A user's own arrays: ``.npz`` files with images and labels of both splits."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from pydantic import Field

from bench.common.errors import UserError, unknown
from bench.config.schema import DatasetConfig, Section, check
from bench.data.readers.folders import below, how, missing, need
from bench.data.readers.reader import Arrays, where

VERSION = 1  # raise it when the same options give other arrays


class ArraysOptions(Section):
    """Options of ``layout: arrays``. Paths are relative to the data folder, absolute, or from ``~``."""

    path: str | list[str] = Field(min_length=1)  #: a file, or several that are put one behind the other
    x_train: str = "x_train"  #: names of arrays inside the files
    y_train: str = "y_train"
    x_test: str = "x_test"
    y_test: str = "y_test"
    class_names: str = "class_names"  #: may be missing: classes are then named by their numbers
    order: str | None = Field(None, pattern="^(NHWC|NCHW|NHW)$")  #: axes of the images; None: told by their sizes

    @property
    def paths(self) -> list[str]:
        """All files."""
        return [self.path] if isinstance(self.path, str) else self.path


def why_not(config: DatasetConfig, data_dir: Path) -> str | None:
    """One line where a file is not there."""
    options = check(config.options, ArraysOptions, f"{where(config)}: options")
    return next(filter(None, (missing(config, below(data_dir, path), (".",)) for path in options.paths)), None)


def sources(config: DatasetConfig, data_dir: Path) -> list[Path]:
    """The files."""
    options = check(config.options, ArraysOptions, f"{where(config)}: options")
    return [below(data_dir, path) for path in options.paths]


def read(config: DatasetConfig, data_dir: Path) -> Arrays:
    """The arrays as uint8 (N, C, H, W) and int64 (N,). A file may hold one split only; nothing is ever unpickled.

    Raises:
        UserError: a wrong option, no npz file, an array that is missing or of a wrong type or shape.
    """
    options = check(config.options, ArraysOptions, f"{where(config)}: options")
    need(config, why_not(config, data_dir))
    files = [_load(config, below(data_dir, path)) for path in options.paths]
    found = {name: [arrays[name] for arrays in files if name in arrays] for arrays in files for name in arrays}

    def images(key: str) -> np.ndarray:
        return _joined(
            config, key, [_images(config, key, array, options.order) for array in _named(config, found, key)]
        )

    def labels(key: str) -> np.ndarray:
        return _joined(config, key, [_labels(config, key, array) for array in _named(config, found, key)])

    result = Arrays(
        images(options.x_train),
        labels(options.y_train),
        images(options.x_test),
        labels(options.y_test),
        tuple(str(name) for name in found[options.class_names][0])
        if options.class_names in found
        else tuple(str(label) for label in range(config.classes)),
    )
    for split, x, y in (("train", result[0], result[1]), ("test", result[2], result[3])):
        if len(x) != len(y):
            raise UserError(f"{where(config)}: {split}: {len(x)} images, but {len(y)} labels")
    return result


def _load(config: DatasetConfig, path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise UserError(f"{where(config)}: {path}: {error.strerror or error}; {how(config)}") from None
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError):
        raise UserError(
            f"{where(config)}: {path}: not an npz file of plain arrays (objects are not read); save it with numpy.savez"
        ) from None


def _named(config: DatasetConfig, found: dict[str, list[np.ndarray]], key: str) -> list[np.ndarray]:
    if key not in found:
        raise unknown("array", key, found, f"{where(config)}: options.path")
    return found[key]


def _images(config: DatasetConfig, key: str, array: np.ndarray, order: str | None) -> np.ndarray:
    if array.dtype != np.uint8:
        raise UserError(f"{where(config)}: {key}: needs whole numbers 0 to 255 (uint8), found {array.dtype}")
    channels = config.image.channels
    axes = order or _order(config, key, array, channels)
    if array.ndim != len(axes):
        raise UserError(f"{where(config)}: {key}: shape {array.shape} does not have the axes {axes}")
    if "C" not in axes:
        array, axes = array[:, None], "NCHW"
    if axes == "NHWC":
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] != channels:
        raise UserError(f"{where(config)}: {key}: {array.shape[1]} channels, but image.channels is {channels}")
    return np.ascontiguousarray(array)


def _order(config: DatasetConfig, key: str, array: np.ndarray, channels: int) -> str:
    if array.ndim == 3:
        return "NHW"
    fits = [name for name, axis in (("NHWC", 3), ("NCHW", 1)) if array.ndim == 4 and array.shape[axis] == channels]
    if len(fits) != 1:
        reason = "could be either" if fits else f"is neither, with {channels} channels"
        raise UserError(f"{where(config)}: {key}: shape {array.shape} {reason} (NHWC or NCHW); set options.order")
    return fits[0]


def _labels(config: DatasetConfig, key: str, array: np.ndarray) -> np.ndarray:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        raise UserError(f"{where(config)}: {key}: needs one whole number an image, found {array.dtype} {array.shape}")
    return flat.astype(np.int64)


def _joined(config: DatasetConfig, key: str, parts: list[np.ndarray]) -> np.ndarray:
    try:
        return np.concatenate(parts)
    except ValueError:
        raise UserError(f"{where(config)}: {key}: the files' images have several sizes") from None
