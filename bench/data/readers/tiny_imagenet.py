"""Tiny-ImageNet-200 as its publisher lays it out; its validation images serve as test images.

Source: the 200-class subset of ImageNet of Stanford's course CS231n, 500 training and 50 validation images a class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig, Section, check
from bench.data.readers.folders import images_in, lines, missing, named, need, need_files
from bench.data.readers.reader import Listing, where

VERSION = 1  # raise it when the same options give another listing
FOLDER = "tiny-imagenet-200"


class TinyImageNetOptions(Section):
    """Options of ``layout: tiny_imagenet``."""

    first: int = Field(0, ge=0)  #: first class, in the order of wnids.txt, counted from 0
    last: int | None = Field(None, ge=0)  #: last class, itself included; None: the last there is
    train_per_class: int | None = Field(None, ge=1)  #: the first so many images of each class; None: all


def why_not(config: DatasetConfig, data_dir: Path) -> str | None:
    """One line where the folder is not there or is laid out otherwise."""
    return missing(config, data_dir / FOLDER, ("wnids.txt", "words.txt", "train", "val/val_annotations.txt"))


def sources(config: DatasetConfig, data_dir: Path) -> list[Path]:
    """The folder."""
    return [data_dir / FOLDER]


def read(config: DatasetConfig, data_dir: Path) -> Listing:
    """Classes ``first`` to ``last`` of wnids.txt, named as in words.txt.

    Raises:
        UserError: a wrong option or layout, a missing class folder, an image that is annotated but not there.
    """
    options = check(config.options, TinyImageNetOptions, f"{where(config)}: options")
    need(config, why_not(config, data_dir))
    root = data_dir / FOLDER
    every = [line.strip() for line in lines(config, root / "wnids.txt")]
    last = len(every) - 1 if options.last is None else options.last
    if not options.first <= last < len(every):
        raise UserError(
            f"{where(config)}: options.first, options.last: {options.first} to {last} are no classes of "
            f"{root / 'wnids.txt'}, which has 0 to {len(every) - 1}"
        )
    wnids = every[options.first : last + 1]
    train = [images_in(config, root / "train" / wnid / "images")[: options.train_per_class] for wnid in wnids]
    for wnid, files in zip(wnids, train, strict=True):
        if options.train_per_class is not None and len(files) < options.train_per_class:
            raise UserError(
                f"{where(config)}: options.train_per_class: says {options.train_per_class}, but class {wnid} has "
                f"{len(files)} images"
            )
    annotated = _annotated(config, root / "val", every)
    test = [annotated[wnid] for wnid in wnids]
    labels = np.arange(len(wnids), dtype=np.int64)
    return Listing(
        [file for files in train for file in files],
        labels.repeat([len(files) for files in train]),
        [file for files in test for file in files],
        labels.repeat([len(files) for files in test]),
        named(config, root / "words.txt", wnids),
    )


def _annotated(config: DatasetConfig, val: Path, wnids: list[str]) -> dict[str, list[Path]]:
    """Validation images by class, as ``val_annotations.txt`` has them: file, class and box, with tabs between."""
    notes = val / "val_annotations.txt"
    files: dict[str, list[Path]] = {wnid: [] for wnid in wnids}
    for number, line in enumerate(lines(config, notes), 1):
        name, wnid = [*line.split("\t"), ""][:2]
        if wnid not in files:
            raise UserError(f"{where(config)}: {notes}, line {number}: {wnid!r} is no class of wnids.txt")
        files[wnid].append(val / "images" / name)
    need_files(config, notes, (file for own in files.values() for file in own))
    return files
