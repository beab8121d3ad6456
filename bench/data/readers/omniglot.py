"""Omniglot: every character of every alphabet is a class, drawn once by each of twenty people.

Source: https://github.com/brendenlake/omniglot (Lake, Salakhutdinov and Tenenbaum, Science 350, 2015).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from pydantic import Field

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig, Section, check
from bench.data.readers.folders import below, folders_in, images_in, missing, natural, need
from bench.data.readers.reader import Listing, where

VERSION = 1  # raise it when the same options give another listing


class OmniglotOptions(Section):
    """Options of ``layout: omniglot``."""

    path: str = "omniglot-small"  #: folder of alphabets, or of the publisher's sets of them
    train_drawings: int = Field(15, ge=1)  #: drawings 1 to this are trained on, the others tested on


def why_not(config: DatasetConfig, data_dir: Path) -> str | None:
    """One line where the folder is not there."""
    path = check(config.options, OmniglotOptions, f"{where(config)}: options").path
    return missing(config, below(data_dir, path), (".",))


def sources(config: DatasetConfig, data_dir: Path) -> list[Path]:
    """The folder."""
    return [below(data_dir, check(config.options, OmniglotOptions, f"{where(config)}: options").path)]


def read(config: DatasetConfig, data_dir: Path) -> Listing:
    """Characters in natural order of alphabet and folder; an alphabet that two sets share is taken from the first.

    The number of a drawing is the number at the end of its file name: ``0709_01.png`` and ``01.png`` are drawings 1.

    Raises:
        UserError: a wrong option or layout, or a file without a number.
    """
    options = check(config.options, OmniglotOptions, f"{where(config)}: options")
    need(config, why_not(config, data_dir))
    root = below(data_dir, options.path)
    alphabets: dict[str, Path] = {}
    for folder in folders_in(config, root):
        for alphabet in folders_in(config, folder) if folder.name.startswith("images_") else [folder]:
            alphabets.setdefault(alphabet.name, alphabet)
    files: tuple[list[Path], list[Path]] = ([], [])
    labels: tuple[list[int], list[int]] = ([], [])
    names: list[str] = []
    for name in sorted(alphabets, key=natural):
        for character in folders_in(config, alphabets[name]):
            for file in images_in(config, character):
                test = _drawing(config, file) > options.train_drawings
                files[test].append(file)
                labels[test].append(len(names))
            names.append(f"{name}/{character.name}")
    train_labels, test_labels = (np.array(side, dtype=np.int64) for side in labels)
    return Listing(files[0], train_labels, files[1], test_labels, tuple(names))


def _drawing(config: DatasetConfig, file: Path) -> int:
    number = re.search(r"(?:^|_)([0-9]+)$", file.stem)
    if number is None:
        raise UserError(f"{where(config)}: {file}: no drawing number at the end of its name (as in 0709_01.png)")
    return int(number[1])
