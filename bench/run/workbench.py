"""What the cells of one process share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common.cache import Store
from bench.config.files import shown_image
from bench.data.dataset import load_dataset
from bench.data.stream import Stream, TaskData
from bench.method import Trainer
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.plan.cell import Cell
from bench.run.classifiers import Classifier
from bench.run.evaluate import predict
from bench.run.task_models import SOURCES, TaskModels


@dataclass
class Workbench:
    """What the cells of one process share: folders, the store, the stream and backbone of the last cell."""

    results: Path
    data: Path
    store: Store
    device: str = "cpu"
    _kept: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _predicted: dict[Any, Any] = field(default_factory=dict)

    def _keep(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        if self._kept.get(kind, (None,))[0] != key:
            self._kept.pop(kind, None)  # free the old one before the new one is made
            self._predicted.clear()
            self._kept[kind] = (key, make())
        return self._kept[kind][1]

    def stream(self, cell: Cell) -> Stream:
        """The cell's stream with its images on the device."""
        protocol = cell.protocol
        place = (cell.n_tasks, cell.class_order_seed, cell.eval_split, protocol.val_fraction, self.device)
        order = (cell.task_classes, protocol.class_order, cell.scenario)
        return self._keep(
            "stream",
            (cell.dataset, protocol.image, place, order),
            lambda: Stream(load_dataset(cell.dataset, self.data, protocol.image), *place, *order),
        )

    def predict(
        self, cell: Cell, weights: Weights, classifier: Classifier, tasks: list[TaskData],
        beside: Sequence[Weights] = (),
    ) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
        """:func:`bench.run.evaluate.predict`, once for equal bits: rules on one training agree on theta*_t and often on
        theta_hat_1.
        """
        key = (weights.digest(), *(w.digest() for w in beside), classifier.digest(), *(task.t for task in tasks))
        if key not in self._predicted:
            batch, stream = cell.protocol.eval_batch, self.stream(cell)
            self._predicted[key] = predict(self.backbone(cell), weights, classifier, stream, tasks, batch, beside)
        return self._predicted[key]

    def backbone(self, cell: Cell) -> Backbone:
        """The cell's pretrained model."""
        protocol, image = cell.protocol, shown_image(cell.protocol, cell.dataset)
        key = (protocol.backbone, protocol.adapter, protocol.adapter_section, protocol.augment, image)
        return self._keep("backbone", key, lambda: SOURCES[type(cell)].backbone(cell, self.device))

    def models(self, cell: Cell, trainer: Trainer, record: tuple[str, ...]) -> TaskModels:
        """Where the cell's task models come from."""
        return SOURCES[type(cell)](cell, self.store, self.stream(cell), self.backbone(cell), trainer, record)

    def drop_backbone(self) -> None:
        """The next cell reads it from its file again: a plugin may have written into its weights."""
        self._kept.pop("backbone", None)
        self._predicted.clear()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's thread count for the length of a block (the number changes bits, so it belongs to the protocol)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
