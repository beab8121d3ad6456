"""Stanford Cars as its publisher lays it out: numbered images, and MATLAB files that give each its class.

Source: Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013; the folder is laid out as
torchvision's ``StanfordCars`` has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig, Section, check
from bench.data.readers.folders import how, missing, need, need_files
from bench.data.readers.reader import Listing, where

VERSION = 1  # raise it when the same files give another listing
FOLDER = "stanford_cars"
META, TRAIN, TEST = "devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"


class CarsOptions(Section):
    """``layout: cars`` has no options."""


def why_not(config: DatasetConfig, data_dir: Path) -> str | None:
    """One line where the folder is not there or is laid out otherwise."""
    in_folder = missing(config, data_dir / FOLDER, (META, TRAIN, "cars_train", "cars_test"))
    return in_folder or missing(config, _test_notes(data_dir).parent, (TEST,))


def sources(config: DatasetConfig, data_dir: Path) -> list[Path]:
    """The folder, and the file of the test labels."""
    return [data_dir / FOLDER, _test_notes(data_dir)]


def read(config: DatasetConfig, data_dir: Path) -> Listing:
    """The official split, in the order of the MATLAB files; their labels count from 1, ours from 0.

    Raises:
        UserError: a wrong layout, no MATLAB file, a label out of range, an image that is listed but not there.
    """
    check(config.options, CarsOptions, f"{where(config)}: options")
    need(config, why_not(config, data_dir))
    root = data_dir / FOLDER
    names = tuple(str(name) for name in np.atleast_1d(_mat(config, root / META, "class_names")))
    train_files, train_labels = _annotated(config, root / TRAIN, root / "cars_train", len(names))
    test_files, test_labels = _annotated(config, _test_notes(data_dir), root / "cars_test", len(names))
    return Listing(train_files, train_labels, test_files, test_labels, names)


def _test_notes(data_dir: Path) -> Path:
    """It comes as a file of its own, beside the archives."""
    downloaded = data_dir / "downloads" / TEST
    return downloaded if downloaded.exists() else data_dir / FOLDER / TEST


def _annotated(config: DatasetConfig, notes: Path, images: Path, classes: int) -> tuple[list[Path], np.ndarray]:
    rows = np.atleast_1d(_mat(config, notes, "annotations"))
    try:
        files = [images / str(row["fname"]) for row in rows]
        labels = np.array([int(row["class"]) for row in rows], dtype=np.int64) - 1
    except (KeyError, TypeError, ValueError, IndexError):
        raise UserError(f"{where(config)}: {notes}: no class and file name of each image; {how(config)}") from None
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UserError(
            f"{where(config)}: {notes}: {files[wrong[0]].name}: label {labels[wrong[0]] + 1} is out of range "
            f"(1 to {classes})"
        )
    need_files(config, notes, files)
    return files, labels


def _mat(config: DatasetConfig, path: Path, key: str) -> Any:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path, simplify_cells=True, variable_names=[key])[key]
    except KeyError:
        raise UserError(f"{where(config)}: {path}: no variable {key}; {how(config)}") from None
    except OSError as error:
        raise UserError(f"{where(config)}: {path}: {error.strerror or error}; {how(config)}") from None
    except (MatReadError, ValueError, TypeError, NotImplementedError):
        raise UserError(f"{where(config)}: {path}: not a MATLAB file that can be read; {how(config)}") from None
