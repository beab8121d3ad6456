"""What a reader found, held against what the dataset's YAML says: no wrong copy of a dataset is ever run."""

from __future__ import annotations

from typing import Literal

import numpy as np

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig
from bench.data.readers.reader import Arrays, Listing, where
from bench.data.scenario import scenario_of


def check(config: DatasetConfig, source: Arrays | Listing) -> None:
    """Stop where classes, labels, numbers of images or their shape are not those described.

    Raises:
        UserError: what differs; the class, where it is one class's fault.
    """
    _same(config, "classes", config.classes, len(source.class_names))
    _check_labels(config, "train", source.train_labels, source.class_names)
    _check_labels(config, "test", source.test_labels, source.class_names)
    _same(config, "train", config.train, len(source.train_labels))
    _same(config, "test", config.test, len(source.test_labels))
    _check_domains(config, source)
    if isinstance(source, Listing):
        return
    for images in (source.train_images, source.test_images):
        height, width = (config.image.size or side for side in images.shape[2:])
        said = (config.image.channels, height, width)
        _same(config, "image (channels, height, width)", said, images.shape[1:])


def _same(config: DatasetConfig, name: str, said: object, given: object) -> None:
    if said != given:
        raise UserError(f"{where(config)}: {name}: says {said}, but the data has {given}; mend the number or the data")


def _check_domains(config: DatasetConfig, source: Arrays | Listing) -> None:
    scenario_of(config).check_domains(config.key, source.domain_names, config.tasks[0])
    for split, domains in (("train", source.train_domains), ("test", source.test_domains)):
        if domains is not None:
            counts = np.bincount(domains, minlength=len(source.domain_names))
            empty = [name for name, count in zip(source.domain_names, counts, strict=True) if not count]
            if empty:
                raise UserError(f"{where(config)}: {split}: domain {empty[0]!r} has no image; is the copy complete?")


def _check_labels(
    config: DatasetConfig, split: Literal["train", "test"], labels: np.ndarray, names: tuple[str, ...]
) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= config.classes))
    if len(outside):
        raise UserError(
            f"{where(config)}: {split}: {len(outside)} labels are not within 0 to {config.classes - 1}, the first: "
            f"{labels[outside[0]]} of image {outside[0]}"
        )
    counts = np.bincount(labels, minlength=config.classes)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        raise UserError(
            f"{where(config)}: {split}: {len(empty)} of {config.classes} classes have no image, the first: "
            f"{names[empty[0]]!r}; is the copy complete?"
        )
    said = config.per_class.get(split)
    if said is not None:
        low, high = (said, said) if isinstance(said, int) else said
        numbers = str(low) if low == high else f"{low} to {high}"
        wrong = np.flatnonzero((counts < low) | (counts > high))
        if len(wrong):
            raise UserError(
                f"{where(config)}: per_class.{split}: says {numbers}, but {len(wrong)} classes have other numbers "
                f"of images, the first: {names[wrong[0]]!r} with {counts[wrong[0]]}"
            )
