"""What a reader of one layout hands back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bench.config import DatasetConfig


class Arrays(NamedTuple):
    """A whole dataset in memory."""

    train_images: np.ndarray  # uint8 (N, C, H, W)
    train_labels: np.ndarray  # int64 (N,), 0..classes-1
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def where(config: DatasetConfig) -> str:
    """The file that a message about this dataset points at."""
    return f"dataset {config.key}"
