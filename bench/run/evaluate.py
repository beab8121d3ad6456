"""Predictions of a served model and the integer counts made from them; no metric is computed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.data.stream import Stream, TaskData
from bench.method.weights import Weights
from bench.model.backbone import Backbone


@torch.inference_mode()
def predict(
    backbone: Backbone, weights: Weights, classifier: Callable[[Tensor], Tensor], stream: Stream,
    tasks: Sequence[TaskData], batch: int,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Predicted columns of every test image of ``tasks``, in one pass.

    Args:
        backbone: gives the forward pass.
        weights: the served weights.
        classifier: logits (b, columns) of features (b, D) over the classes of all tasks seen, in order.
        stream: gives the images.
        tasks: whose test images are predicted.
        batch: images a forward pass.

    Returns:
        Per task, int64 (m,) on the CPU: argmax over all classes seen, and argmax within the true task. Logits are the
        classifier's; ties go to the lowest column.
    """
    lengths = [len(task.test) for task in tasks]
    index = torch.cat([task.test for task in tasks])
    parts = (backbone.features(weights, stream.test_images[part]) for part in index.split(batch))
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
    backbone: Backbone, weights: Weights, stream: Stream, batch: int, task: TaskData
) -> tuple[Tensor, Tensor]:
    """Features (n, D) float32 of a task's training images as they are shown at test, and their columns (n,)."""
    parts = task.train.split(batch)
    x = torch.cat([backbone.features(weights, stream.train_images[part]).float() for part in parts])
    return x, stream.train_columns[task.train]
