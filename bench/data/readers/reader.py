"""What a reader of one layout is, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.config.schema import DatasetConfig


class Arrays(NamedTuple):
    """A whole dataset in memory."""

    train_images: np.ndarray  # uint8 (N, C, H, W)
    train_labels: np.ndarray  # int64 (N,), 0..classes-1
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    train_domains: np.ndarray | None = None  # int64 (N,), 0..domains-1, where the reader tells images' domains
    test_domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()


class Listing(NamedTuple):
    """Image files, decoded when the dataset is prepared."""

    train_files: list[Path]
    train_labels: np.ndarray  # int64 (N,), 0..classes-1
    test_files: list[Path]
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    train_domains: np.ndarray | None = None  # as of Arrays
    test_domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()


class Reader(NamedTuple):
    """How one layout is read."""

    version: int
    read: Callable[[DatasetConfig, Path], Arrays | Listing]
    why_not: Callable[[DatasetConfig, Path], str | None]  # a line with the command that mends it, or None
    sources: Callable[[DatasetConfig, Path], list[Path]]  # files, and folders with all that is in them, that it reads


def where(config: DatasetConfig) -> str:
    """The file that a message about this dataset points at."""
    return f"dataset {config.key}"
