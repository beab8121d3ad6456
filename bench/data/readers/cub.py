"""CUB-200-2011 as its publisher lays it out: numbered images, and text files that give each its class and its split.

Source: https://data.caltech.edu/records/65de6-vp158 (Wah et al., Caltech-UCSD Birds-200-2011).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig, Section, check
from bench.data.readers.folders import lines, missing, need, need_files
from bench.data.readers.reader import Listing, where

VERSION = 1  # raise it when the same files give another listing
FOLDER = "CUB_200_2011"


class CubOptions(Section):
    """``layout: cub`` has no options."""


def why_not(config: DatasetConfig, data_dir: Path) -> str | None:
    """One line where the folder is not there or is laid out otherwise."""
    needed = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt", "images")
    return missing(config, data_dir / FOLDER, needed)


def sources(config: DatasetConfig, data_dir: Path) -> list[Path]:
    """The folder."""
    return [data_dir / FOLDER]


def read(config: DatasetConfig, data_dir: Path) -> Listing:
    """The official split, in the order of images.txt; a class is named by what follows the number of its folder.

    Raises:
        UserError: a wrong layout, files that disagree, a label out of range, an image that is listed but not there.
    """
    check(config.options, CubOptions, f"{where(config)}: options")
    need(config, why_not(config, data_dir))
    root = data_dir / FOLDER
    images = _pairs(config, root / "images.txt")
    classes = _pairs(config, root / "classes.txt")
    labelled = _pairs(config, root / "image_class_labels.txt")
    split = _pairs(config, root / "train_test_split.txt")
    for name, column in (("image_class_labels.txt", labelled), ("train_test_split.txt", split)):
        if column.keys() != images.keys():
            odd = sorted(column.keys() ^ images.keys())[0]
            raise UserError(f"{where(config)}: {root / name}: image {odd} is not both there and in images.txt")
    index = {number: i for i, number in enumerate(classes)}
    files: dict[str, list[Path]] = {"1": [], "0": []}
    labels: dict[str, list[int]] = {"1": [], "0": []}
    for image, path in images.items():
        label, in_train = labelled[image], split[image]
        if label not in index:
            raise UserError(f"{where(config)}: {root / 'image_class_labels.txt'}: image {image}: no class {label}")
        if in_train not in files:
            raise UserError(
                f"{where(config)}: {root / 'train_test_split.txt'}: image {image}: {in_train!r} is not 0 or 1"
            )
        files[in_train].append(root / "images" / path)
        labels[in_train].append(index[label])
    need_files(config, root / "images.txt", [*files["1"], *files["0"]])
    train_labels, test_labels = (np.array(labels[side], dtype=np.int64) for side in ("1", "0"))
    names = tuple(name.partition(".")[2] or name for name in classes.values())
    return Listing(files["1"], train_labels, files["0"], test_labels, names)


def _pairs(config: DatasetConfig, path: Path) -> dict[str, str]:
    """Lines of a number and a value, by the number."""
    pairs = [line.split(maxsplit=1) for line in lines(config, path)]
    bad = next((number for number, pair in enumerate(pairs, 1) if len(pair) != 2), None)
    if bad is not None:
        raise UserError(f"{where(config)}: {path}, line {bad}: not a number and a value; extract the archive anew")
    found = {number: value.strip() for number, value in pairs}
    if len(found) < len(pairs):
        raise UserError(f"{where(config)}: {path}: a number stands twice; extract the archive anew")
    return found
