"""A dataset cut into T tasks: which classes come when, and which images train, validate and test each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch

from bench.common.seeds import numpy_rng
from bench.data.class_order import boundaries, class_order
from bench.data.dataset import Dataset
from bench.data.images import Images, images_on


@dataclass(frozen=True)
class TaskData:
    """One task of a stream."""

    t: int  #: 1 for the first
    classes: tuple[int, ...]  #: the dataset's labels, in head column order
    columns: range  #: this task's columns among all classes of the stream
    train: torch.Tensor  #: (n,) indices into ``Stream.train_images``
    val: torch.Tensor  #: (v,) indices into ``Stream.train_images``: the validation part
    test: torch.Tensor  #: (m,) indices into ``Stream.test_images``
    content: str  #: what seeds of this task are derived from


class Stream:
    """All tasks of one (dataset, T, class order), with the images on the device.

    Columns are class positions in stream order: column c belongs to the c-th class to arrive. ``eval_split="val"``
    holds the validation part out of training and evaluates on it; the test images are then not even loaded.
    ``"test_heldout"`` holds it out as well and evaluates on the test images.

    Attributes:
        train_images, test_images: uint8 (N, C, H, W), indexed by (b,) tensors; on the device where they fit.
        train_columns, test_columns: int64 (N,): the true column of every image.
        tasks: the T tasks.
        digest: of the dataset's arrays.
    """

    def __init__(
        self,
        dataset: Dataset,
        n_tasks: int,
        class_order_seed: int,
        eval_split: str = "test",
        val_fraction: float = 0.1,
        device: str = "cpu",
        task_classes: Sequence[Sequence[int]] = (),
        order_kind: str | list[int] = "mt19937",
    ) -> None:
        classes = len(dataset.class_names)
        order = [c for task in task_classes for c in task] or class_order(classes, class_order_seed, order_kind)
        edges = [0, *accumulate(map(len, task_classes))]
        cuts = [range(a, b) for a, b in pairwise(edges)] or boundaries(classes, n_tasks)
        column_of = np.full(classes, -1, dtype=np.int64)  # a listed stream may leave classes out
        column_of[order] = np.arange(len(order))
        train_columns = column_of[dataset.train_labels]
        is_val = _validation_part(np.asarray(dataset.train_labels), classes, val_fraction)
        held_out, on_val = eval_split != "test", eval_split == "val"

        self.digest = dataset.digest
        self.class_order = order
        self.train_images: Images = images_on(device, dataset.train_images)
        self.train_columns = _on(device, train_columns)
        if on_val:
            self.test_images, self.test_columns, test_columns = self.train_images, self.train_columns, train_columns
        else:
            test_columns = column_of[dataset.test_labels]
            self.test_images, self.test_columns = images_on(device, dataset.test_images), _on(device, test_columns)
        self.tasks = []
        for t, columns in enumerate(cuts, 1):
            mine = np.isin(train_columns, columns)
            tested = np.isin(test_columns, columns)
            task = TaskData(
                t=t,
                classes=tuple(order[c] for c in columns),
                columns=columns,
                train=_on(device, np.flatnonzero(mine & ~is_val if held_out else mine)),
                val=_on(device, np.flatnonzero(mine & is_val)),
                test=_on(device, np.flatnonzero(tested & is_val if on_val else tested)),
                content=content_of(dataset.key, [order[c] for c in columns]),
            )
            self.tasks.append(task)


def content_of(dataset: str, classes: list[int]) -> str:
    """What a task's random streams are named after: its dataset and classes, not its place in the stream."""
    return f"{dataset}:{','.join(map(str, classes))}"


def _validation_part(labels: np.ndarray, classes: int, fraction: float) -> np.ndarray:
    """(N,) bool: a stratified part of each class, the same for every class order and run."""
    part = np.zeros(len(labels), dtype=bool)
    for c in range(classes):
        index = np.flatnonzero(labels == c)
        count = max(1, round(fraction * len(index)))
        part[numpy_rng("validation", c, len(index)).permutation(index)[:count]] = True
    return part


def _on(device: str, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(device)
