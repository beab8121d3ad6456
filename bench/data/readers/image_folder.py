"""A folder a class: already split into ``train`` and ``test`` (or ``val``), or one tree that our rule splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from bench.common.errors import UserError
from bench.common.seeds import derive
from bench.config.schema import DatasetConfig, Section, check
from bench.data.readers.folders import below, folders_in, images_in, missing, named, need
from bench.data.readers.reader import Listing, where

VERSION = 1  # raise it when the same options give another listing


class ImageFolderOptions(Section):
    """Options of ``layout: image_folder``. Paths are relative to the data folder, absolute, or from ``~``."""

    path: str
    test_percent: int = Field(20, ge=1, le=99)  #: share of the images that is tested on, where the tree is not split
    names: str | None = None  #: file of ``folder name`` lines; None: classes are named as their folders


def why_not(config: DatasetConfig, data_dir: Path) -> str | None:
    """One line where the folder, or the file of names, is not there."""
    options = check(config.options, ImageFolderOptions, f"{where(config)}: options")
    needed = [options.path, *([options.names] if options.names else [])]
    return next(filter(None, (missing(config, below(data_dir, path), (".",)) for path in needed)), None)


def sources(config: DatasetConfig, data_dir: Path) -> list[Path]:
    """The folder, and the file of names."""
    options = check(config.options, ImageFolderOptions, f"{where(config)}: options")
    return [below(data_dir, path) for path in (options.path, options.names) if path is not None]


def read(config: DatasetConfig, data_dir: Path) -> Listing:
    """Classes and files in natural order.

    Raises:
        UserError: a wrong option or layout, a class that one split lacks, a folder without an image.
    """
    options = check(config.options, ImageFolderOptions, f"{where(config)}: options")
    need(config, why_not(config, data_dir))
    root = below(data_dir, options.path)
    parts = {folder.name: folder for folder in folders_in(config, root)}
    if len(parts) == 1:
        raise UserError(f"{where(config)}: options.path: {root} has one folder, {next(iter(parts))}; name that instead")
    if "train" not in parts:
        folders = list(parts.values())
        train, test = split([images_in(config, folder) for folder in folders], options.test_percent)
    elif "test" in parts or "val" in parts:
        folders, train = _side(config, parts["train"])
        others, test = _side(config, parts.get("test") or parts["val"])
        odd = sorted({folder.name for folder in folders} ^ {folder.name for folder in others})
        if odd:
            raise UserError(f"{where(config)}: {root}: class {odd[0]} is only in one of train and test")
    else:
        raise UserError(f"{where(config)}: {root}: has train, but neither test nor val")
    for folder, own_train, own_test in zip(folders, train, test, strict=True):
        if not own_train or not own_test:
            raise UserError(f"{where(config)}: {folder}: needs at least two images, one to train on and one to test on")
    labels = np.arange(len(folders), dtype=np.int64)
    names = below(data_dir, options.names) if options.names else None
    return Listing(
        [file for files in train for file in files],
        labels.repeat([len(files) for files in train]),
        [file for files in test for file in files],
        labels.repeat([len(files) for files in test]),
        named(config, names, [folder.name for folder in folders]),
    )


def _side(config: DatasetConfig, part: Path) -> tuple[list[Path], list[list[Path]]]:
    folders = folders_in(config, part)
    return folders, [images_in(config, folder) for folder in folders]


def split(classes: list[list[Path]], percent: int) -> tuple[list[list[Path]], list[list[Path]]]:
    """Training and test files of every class: our rule, a function of folder and file names alone.

    Of all images ``percent`` in a hundred are tested on, rounded to the nearest. Every class gives its share rounded
    down, but at least one and not all; what is left to give comes from the classes whose share was cut the most, the
    first ones where that is equal. Inside a class, files are drawn in the order of a hash of (class, file name).
    """
    counts = [len(files) for files in classes]
    take = [min(max(count * percent // 100, 1), count - 1) for count in counts]
    left = (sum(counts) * percent + 50) // 100 - sum(take)
    cut = sorted(range(len(counts)), key=lambda i: (take[i] * 100 - counts[i] * percent, i))
    for i in cut[: max(left, 0)]:
        take[i] += take[i] + 1 < counts[i]
    train, test = [], []
    for files, n in zip(classes, take, strict=True):
        drawn = set(sorted(files, key=lambda file: derive("image_folder", file.parent.name, file.name))[:n])
        test.append([file for file in files if file in drawn])
        train.append([file for file in files if file not in drawn])
    return train, test
