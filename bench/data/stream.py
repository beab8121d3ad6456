"""A dataset cut into T tasks: which classes come when, and which images train, validate and test each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from bench.common.seeds import numpy_rng
from bench.data.dataset import Dataset
from bench.data.images import Images, images_on
from bench.data.scenario import CLASS_INCREMENTAL, Cut, Scenario, listed


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
    domain: str | None = None  #: its name, where the task is one


class Stream:
    """All tasks of one (dataset, scenario, T, class order), with the images on the device.

    Columns are class positions in stream order: column c belongs to the c-th class to arrive. ``eval_split="val"``
    holds the validation part out of training and evaluates on it; the test images are then not even loaded.
    ``"test_heldout"`` holds it out as well and evaluates on the test images.

    Attributes:
        train_images, test_images: uint8 (N, C, H, W), indexed by (b,) tensors; on the device where they fit.
        train_columns, test_columns: int64 (N,): the true column of every image.
        tasks: the T tasks.
        cuts: what they were cut by.
        scenario: what kind of stream this is.
        class_order: the dataset's labels in column order.
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
        scenario: Scenario = CLASS_INCREMENTAL,
    ) -> None:
        classes = len(dataset.class_names)
        scenario.check_domains(dataset.key, dataset.domain_names, n_tasks)
        cuts = listed(task_classes) or scenario.cuts(classes, n_tasks, class_order_seed, order_kind)
        order = list(dict.fromkeys(c for cut in cuts for c in cut.classes))
        column_of = np.full(classes, -1, dtype=np.int64)  # a listed stream may leave classes out
        column_of[order] = np.arange(len(order))
        train_columns = column_of[dataset.train_labels]
        is_val = _validation_part(dataset, cuts, val_fraction)
        held_out, on_val = eval_split != "test", eval_split == "val"

        self.digest, self.scenario, self.cuts = dataset.digest, scenario, cuts
        self.class_order = order
        self.train_images: Images = images_on(device, dataset.train_images)
        self.train_columns = _on(device, train_columns)
        if on_val:
            self.test_images, self.test_columns, test_columns = self.train_images, self.train_columns, train_columns
            test_domains = dataset.train_domains
        else:
            test_columns, test_domains = column_of[dataset.test_labels], dataset.test_domains
            self.test_images, self.test_columns = images_on(device, dataset.test_images), _on(device, test_columns)
        self.tasks = []
        for cut in cuts:
            trained = cut.images(train_columns, dataset.train_domains)
            tested = cut.images(test_columns, test_domains)
            task = TaskData(
                t=cut.t,
                classes=cut.classes,
                columns=cut.columns,
                train=_on(device, np.flatnonzero(trained & ~is_val if held_out else trained)),
                val=_on(device, np.flatnonzero(trained & is_val)),
                test=_on(device, np.flatnonzero(tested & is_val if on_val else tested)),
                content=scenario.content(dataset.key, cut),
                domain=None if cut.domain is None else dataset.domain_names[cut.domain],
            )
            self.tasks.append(task)


def _validation_part(dataset: Dataset, cuts: Sequence[Cut], fraction: float) -> np.ndarray:
    """(N,) bool: a stratified part of each class (of each domain, where tasks are domains), the same for every order
    of tasks and run.
    """
    labels, domains = np.asarray(dataset.train_labels), dataset.train_domains
    part = np.zeros(len(labels), dtype=bool)
    for c, domain in product(range(len(dataset.class_names)), dict.fromkeys(cut.domain for cut in cuts)):
        index = np.flatnonzero(labels == c if domain is None else (labels == c) & (domains == domain))
        count = max(1, round(fraction * len(index)))
        name = (c, len(index)) if domain is None else (c, domain, len(index))
        part[numpy_rng("validation", *name).permutation(index)[:count]] = True
    return part


def _on(device: str, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(device)
