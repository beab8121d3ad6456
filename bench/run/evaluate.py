"""Predictions of a served model and the integer counts made from them; no metric is computed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.data.stream import Stream, TaskData
from bench.method.weights import Weights
from bench.model.backbone import Backbone


def features_of(backbone: Backbone, weights: Weights, beside: Sequence[Weights], pixels: Tensor) -> Tensor:
    """Features (b, D) of images under ``weights``, after those under each of ``beside``: (b, D (1 + len(beside)))."""
    own = backbone.features(weights, pixels)
    return torch.cat([*(backbone.features(other, pixels) for other in beside), own], 1) if beside else own


@torch.inference_mode()
def predict(
    backbone: Backbone, weights: Weights, classifier: Callable[[Tensor], Tensor], stream: Stream,
    tasks: Sequence[TaskData], batch: int, beside: Sequence[Weights] = (),
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Predicted columns of every test image of ``tasks``, in one pass.

    Args:
        backbone: gives the forward pass.
        weights: the served weights.
        classifier: logits (b, columns) of features (b, D) over the classes of all tasks seen, in order.
        stream: gives the images.
        tasks: whose test images are predicted.
        batch: images a forward pass.
        beside: see :func:`features_of`.

    Returns:
        Per task, int64 (m,) on the CPU: argmax over all classes seen, and argmax within the true task. Logits are the
        classifier's; ties go to the lowest column.
    """
    lengths = [len(task.test) for task in tasks]
    index = torch.cat([task.test for task in tasks])
    parts = (features_of(backbone, weights, beside, stream.test_images[part]) for part in index.split(batch))
    logits = torch.cat([classifier(features) for features in parts])
    everywhere, within = [], []
    for task, mine in zip(tasks, logits.split(lengths), strict=True):
        everywhere.append(mine.argmax(1).cpu())
        own = mine[:, task.columns.start : task.columns.stop]
        within.append((own.argmax(1) + task.columns.start).cpu())
    return everywhere, within


def count(predicted: Tensor, stream: Stream, task: TaskData) -> tuple[int, int]:
    """(correct, total) of the predictions for one task's test images."""
    truth = stream.test_columns[task.test].cpu()
    return int((predicted == truth).sum()), len(truth)


@torch.no_grad()
def training_features(
    backbone: Backbone, weights: Weights, stream: Stream, batch: int, task: TaskData, beside: Sequence[Weights] = ()
) -> tuple[Tensor, Tensor]:
    """Features (n, D) float32 of a task's training images as they are shown at test, and their columns (n,).

    For ``beside`` see :func:`features_of`.
    """
    parts = (stream.train_images[part] for part in task.train.split(batch))
    x = torch.cat([features_of(backbone, weights, beside, pixels).float() for pixels in parts])
    return x, stream.train_columns[task.train]
